"""report.py's tables: what is averaged, what stands where, what is marked."""

import copy
import importlib
import json
import statistics

import numpy as np
import pytest

import report
from configs import base
from configs.reading import fields
from experiment.plots import plot_curves
from experiment.read_runs import read_runs
from experiment.results import OWN_FIELDS
from tests.written_runs import changed, data_of, rows_of, write_run


def test_seeds_are_averaged_beside_the_papers_numbers(tmp_path):
    accuracies = [0.61, 0.64, 0.655]
    for seed, value in enumerate(accuracies):
        write_run(tmp_path, f"deep/down/{seed}", value, seed=seed)
    write_run(tmp_path, "one", 0.37, task="listops")
    rows = rows_of("lra", tmp_path)
    ours, paper = [row for row in rows if row["attention"].startswith("nystrom")]
    mean = 100 * statistics.fmean(accuracies)
    deviation = 100 * np.std(accuracies, ddof=1)
    assert ours["Text"] == f"{mean:.2f} ± {deviation:.2f} (3)"
    assert ours["ListOps"] == "37.00 (1)"
    assert ours["Image"] == "–" and ours["average without Path-X"] == "–"
    assert (paper["Text"], paper["ListOps"]) == ("65.52", "37.15")
    assert paper["average without Path-X"] == "58.95"


def test_rows_are_attentions_and_landmarks_of_nystrom(tmp_path):
    write_run(tmp_path, "a", 0.61, changed(model__num_landmarks=32))
    write_run(tmp_path, "b", 0.62, changed(model__num_landmarks=128))
    write_run(tmp_path, "c", 0.63, changed(model__attention="softmax"))
    write_run(tmp_path, "d", 0.40, changed("image", model__num_landmarks=128))
    rows = rows_of("lra", tmp_path)
    found = {row["attention"]: (row["Text"], row["Image"]) for row in rows if row[""] == "ours"}
    assert found["nystrom, num_landmarks=32"] == ("61.00 (1)", "–")
    assert found["nystrom, num_landmarks=128"] == ("62.00 (1)", "40.00 (1)")
    assert found["softmax"] == ("63.00 (1)", "–")


def test_runs_that_do_not_compare_leave_the_rows_as_they_are(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, f"text-{seed}", 0.6, seed=seed)
    write_run(tmp_path, "image", 0.4, task="image")
    apart = {"comparable_to_lra": False, "why_not_comparable": "for a reason"}
    write_run(tmp_path, "short", 0.9, changed(num_train_steps=2_000), **apart)
    write_run(tmp_path, "copy", 0.8, source="package", fingerprint="0" * 64, **apart)
    rows = rows_of("lra", tmp_path)
    (ours,) = [r for r in rows if r["attention"].startswith("nystrom") and r[""] == "ours"]
    assert ours["attention"] == "nystrom, num_landmarks=64"
    assert (ours["Text"], ours["Image"]) == ("60.00 ± 0.00 (2)", "40.00 (1)")
    labels = {r["test accuracy"]: r["attention"] for r in rows_of("apart", tmp_path)}
    assert labels["90.00 (1)"] == "nystrom, num_landmarks=64, num_train_steps=2000"
    assert "num_train_steps=20000" in labels["80.00 (1)"]


@pytest.mark.parametrize(
    ("fields", "result", "label"),
    [
        ({}, {"source": "generated", "fingerprint": "0" * 64}, "generated data 00000000"),
        ({"eval_every": 100}, {}, "eval_every=100"),
    ],
)
def test_a_further_run_leaves_a_whole_row_and_its_average(fields, result, label, tmp_path):
    for task in ("listops", "text", "retrieval", "image", "pathfinder"):
        write_run(tmp_path, task, 0.5, task=task)
    for i, task in enumerate(("listops", "text")):
        write_run(tmp_path, f"a-{task}", 0.6 + i / 10, changed(task, **fields), **result)
    rows = [row for row in rows_of("lra", tmp_path) if row[""] == "ours"]
    rows = {row.pop("attention"): row for row in rows}
    whole = rows.pop("nystrom, num_landmarks=64")
    assert (whole["ListOps"], whole["average without Path-X"]) == ("50.00 (1)", "50.00")
    (others,) = [row for name, row in rows.items() if name.startswith("nystrom")]
    assert others["ListOps"].startswith("60.00 (1)") and others["Image"] == "–"
    assert any(label in name for name in rows)


def test_labels_name_no_more_fields_than_tell_recipes_apart(tmp_path):
    apart = {"comparable_to_lra": False, "why_not_comparable": "for a reason"}
    listops = importlib.import_module("configs.lra_listops")
    for variant in ("quick", "tuned"):  # they differ in more than a dozen fields
        for attention in ("linear", "none"):
            config = listops.get_config(variant)
            config.model.attention = attention
            write_run(tmp_path, f"{variant}-{attention}", 0.3, config, **apart)
    assert sorted(r["attention"] for r in rows_of("apart", tmp_path)) == [
        f"{attention}, pooling={pooling}"
        for attention in ("linear", "none")
        for pooling in ("cls", "max")
    ]


def test_a_run_older_than_a_field_had_what_is_its_default_now(tmp_path):
    write_run(tmp_path, "new", 0.6)
    old = write_run(tmp_path, "old", 0.7, seed=1) / "result.json"
    result = json.loads(old.read_text())
    del result["config"]["model"]["pooling"], result["config"]["adam_b2"]
    old.write_text(json.dumps(result))
    write_run(tmp_path, "cls", 0.8, changed(model__pooling="cls"), seed=1)
    seeds = [[run.config["seed"] for run in group.runs] for group in read_runs([tmp_path]).groups]
    assert sorted(seeds) == [[0, 1], [1]]


def test_a_run_older_than_a_field_with_a_tuple_is_of_the_recipe(tmp_path):
    apart = {"comparable_to_lra": False, "why_not_comparable": "for a reason"}
    old = write_run(tmp_path, "old", 0.7, source="package", **apart) / "result.json"
    result = json.loads(old.read_text())
    del result["config"]["adam_b1_cycle"]
    old.write_text(json.dumps(result))
    write_run(tmp_path, "cycle", 0.6, changed(adam_b1_cycle=(0.95, 0.85)), **apart)
    found = {group.accuracy: group for group in read_runs([tmp_path]).groups}
    assert (found[70].track, found[60].track) == ("recipe", "tuned")
    assert "adam_b1_cycle" not in found[70].label
    assert "adam_b1_cycle=[0.95, 0.85]" in found[60].label


@pytest.mark.parametrize("field", fields(base.get_config().to_dict()))
def test_what_may_differ_within_an_average(field, tmp_path):
    config = changed()
    write_run(tmp_path, "a", 0.5, config)
    value = fields(config.to_dict())[field]
    if field == "seed":
        other = {"seed": 1}
    else:
        other = {}
        new = {str: "image" if field == "task.name" else "other", bool: True, tuple: (4_096,)}
        new = new.get(type(value), value + 1 if isinstance(value, int | float) else None)
        config.update_from_flattened_dict({field: new})
        other["seed"] = 1
    write_run(tmp_path, "b", 0.7, config, **other)
    found = read_runs([tmp_path])
    assert not found.skipped
    may_differ = {"seed", "cache_dir", "task.data_dir", "log_every", "checkpoint_every"}
    may_differ |= {
        "task.source",  # which of them "auto" took is in the result
        "task.tokenizer",
        "accumulate_steps",
        "mesh.data",
        "mesh.sequence",
        "num_workers",
    }
    may_differ |= {name for name, readers in OWN_FIELDS.items() if "nystrom" not in readers}
    assert len(found.groups) == (1 if field in may_differ else 2)
    labels = [group.label for group in found.groups if group.task == "text"]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("other", [{"fingerprint": "0" * 64}, {"source": "package"}])
def test_results_on_other_data_are_not_averaged(other, tmp_path):
    write_run(tmp_path, "a", 0.5, seed=0)
    write_run(tmp_path, "b", 0.7, seed=1, **other)
    groups = read_runs([tmp_path]).groups
    assert sorted(group.accuracy for group in groups) == [50, 70]
    assert len({group.label for group in groups}) == 2


def test_results_that_do_not_compare_stand_apart_with_the_reason(tmp_path):
    why = "not the recipe: learning_rate=0.001 (recipe 0.0001) | <b>and\nmore"
    write_run(tmp_path, "a", 0.999, comparable_to_lra=False, why_not_comparable=why)
    write_run(tmp_path, "b", 0.60, seed=1)
    assert "60.00 (1)" in str(rows_of("lra", tmp_path))
    assert "99.90" not in str(rows_of("lra", tmp_path))
    (row,) = rows_of("apart", tmp_path)
    assert row["test accuracy"] == "99.90 (1)" and row["why not comparable"] == why
    *_, line = report.markdown(["why"], [[row["why not comparable"]]]).splitlines()
    assert line == "| not the recipe: learning_rate=0.001 (recipe 0.0001) \\| &lt;b>and more |"


def test_runs_of_several_commits_are_marked(tmp_path):
    write_run(tmp_path, "a", 0.5, seed=0)
    write_run(tmp_path, "b", 0.5, seed=1, commit="d" * 40)
    rows = rows_of("lra", tmp_path)
    assert "50.00 ± 0.00 (2)†" in [row["Text"] for row in rows]


def test_runs_of_commits_that_are_not_known_are_marked(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, str(seed), 0.5, seed=seed, commit="unknown")
    rows = rows_of("lra", tmp_path)
    assert "50.00 ± 0.00 (2)†" in [row["Text"] for row in rows]


def test_data_made_here_are_marked(tmp_path):
    write_run(tmp_path, "a", 0.5, source="generated")
    rows = rows_of("lra", tmp_path)
    assert "50.00 (1)‡" in [row["Text"] for row in rows]


@pytest.mark.parametrize(
    "other",
    [{"commit": "d" * 40}, {"versions": {"jax": "0.11.2"}}, {"settings": {"jax_enable_x64": True}}],
)
def test_a_run_of_several_codes_is_marked(tmp_path, other):
    made_by = {"commit": "c" * 40, "versions": {"jax": "0.10.2"}, "hardware": {}}
    write_run(tmp_path, "a", 0.5, earlier_starts=[made_by | other])
    rows = rows_of("lra", tmp_path)
    assert "50.00 (1)†" in [row["Text"] for row in rows]


def test_the_same_run_twice_counts_once_and_is_named(tmp_path):
    write_run(tmp_path, "a", 0.5)
    write_run(tmp_path, "b", 0.7)
    found = read_runs([tmp_path])
    assert [group.accuracy for group in found.groups] == [50]
    ((path, why),) = found.skipped
    assert path == tmp_path / "b" / "result.json" and f"seed as {tmp_path / 'a'}" in why
    assert read_runs([tmp_path / "a", tmp_path]).groups == found.groups


def test_fields_that_the_attention_does_not_read_make_no_other_run(tmp_path):
    for landmarks in (32, 64):
        config = changed(model__attention="softmax", model__num_landmarks=landmarks)
        write_run(tmp_path, f"{landmarks}-0", 0.5, config)
        write_run(tmp_path, f"{landmarks}-{landmarks}", 0.7, config, seed=landmarks)
    found = read_runs([tmp_path])
    assert [[run.config["seed"] for run in group.runs] for group in found.groups] == [[0, 32, 64]]
    assert [path.parent.name for path, _ in found.skipped] == ["64-0"]


def test_unfinished_runs_are_listed_with_their_steps(tmp_path):
    folder = write_run(tmp_path, "begun", reports=[(500, 0.6), (1000, 0.7)])
    (folder / "result.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("[" * 100_000 + "\n")
        file.write('{"step": 1500, "spl')  # killed while writing
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"name": "another program"}')
    (row,) = rows_of("unfinished", tmp_path)
    assert (row["run"], row["steps done"], row["of"]) == (str(folder), "1,000", "20,000")
    (lines, other) = rows_of("skipped", tmp_path)
    assert lines["file"] == str(folder / "metrics.jsonl")
    assert lines["why"].startswith("2 unreadable lines of 4")
    assert other["file"] == str(foreign / "config.json") and "not a run's" in other["why"]


def test_landmarks_are_compared_where_they_alone_differ(tmp_path):
    for landmarks, value in ((32, 0.61), (64, 0.62), (128, 0.63)):
        for seed in (0, 1):
            config = changed(model__num_landmarks=landmarks)
            write_run(tmp_path, f"{landmarks}-{seed}", value, config, seed=seed)
    write_run(tmp_path, "wider", 0.9, changed(model__num_landmarks=256, model__width=128))
    write_run(tmp_path, "softmax", 0.65, changed(model__attention="softmax"))
    rows = rows_of("landmarks", tmp_path)
    assert [(row["landmarks"], row["test accuracy"]) for row in rows] == [
        ("32", "61.00 ± 0.00 (2)"), ("64", "62.00 ± 0.00 (2)"), ("128", "63.00 ± 0.00 (2)")
    ]  # fmt: skip


def with_gone_option(runs, name, value, config, **result):
    """A run of a time when there was an option `model.bias_std`."""
    path = write_run(runs, name, 0.5, config, **result) / "result.json"
    saved = json.loads(path.read_text())
    saved["config"]["model"]["bias_std"] = value
    path.write_text(json.dumps(saved))


def test_runs_with_an_option_that_is_gone_are_labelled_by_it(tmp_path):
    write_run(tmp_path, "plain", 0.5, changed(learning_rate=3e-3))
    other = changed(learning_rate=3e-3, adam_b2=0.98, adam_eps=1e-8)
    with_gone_option(tmp_path, "wide-0", 3.0, other)
    with_gone_option(tmp_path, "wide-1", 3.0, other, seed=1)
    labels = {group.runs[0].folder.name: group.label for group in read_runs([tmp_path]).groups}
    assert labels == {
        "plain": "nystrom, num_landmarks=64",
        "wide-0": "nystrom, bias_std=3.0, num_landmarks=64",
    }


def test_an_option_that_is_gone_and_was_off_is_named_only_where_nothing_else_tells(tmp_path):
    write_run(tmp_path, "without", 0.5)
    with_gone_option(tmp_path, "off", 0.0, changed())
    with_gone_option(tmp_path, "slow", 0.0, changed(learning_rate=1e-5))
    labels = {group.runs[0].folder.name: group.label for group in read_runs([tmp_path]).groups}
    assert "bias_std" not in labels["slow"] and "learning_rate=1e-05" in labels["slow"]
    assert "bias_std=0.0" in labels["off"]
    assert len(set(labels.values())) == 3


APART = {"comparable_to_lra": False, "why_not_comparable": "for a reason"}


def source_record(config, **other):
    """What a result records of the run that it began with."""
    config = copy.deepcopy(config)
    config.objective = "masked"
    config.num_train_steps = 500
    record = {"objective": "masked", "fingerprint": "f" * 64, "config": config.to_dict()}
    return record | other


def test_tracks_are_never_mixed_in_a_table(tmp_path):
    runs, steps = tmp_path / "runs", {"num_train_steps": 2_000}
    write_run(runs, "other", 0.51, source="package", **APART)
    write_run(runs, "tuned", 0.52, changed(**steps, model__num_landmarks=32), **APART)
    write_run(runs, "heads", 0.522, changed(model__num_heads=4), **APART)
    write_run(runs, "augmented", 0.524, changed(task__augment=True), **APART)
    write_run(runs, "free", 0.53, changed(**steps, model__width=128), **APART)
    for seed in (0, 1):  # each begins with a run of its own
        config = changed(**steps, init_from=f"runs/pretrain-{seed}")
        made_by = source_record(changed(seed=seed))
        write_run(runs, f"self-{seed}", 0.6, config, seed=seed, init_from=made_by, **APART)
    split = {**steps, "task__data_seed": 1}  # the same files, in other splits
    config = changed(**split, init_from="runs/split")
    write_run(runs, "split", 0.54, config, init_from=source_record(changed()), **APART)
    config = changed(init_from="runs/else")
    foreign = source_record(changed(), fingerprint="0" * 64)
    write_run(runs, "else", 0.54, config, init_from=foreign, **APART)
    write_run(
        runs, "labels", 0.55, config, init_from=source_record(config, objective="classify"), **APART
    )
    write_run(runs, "lost", 0.56, changed(init_from="runs/lost"), **APART)
    config = changed(objective="masked", masked__share=0.3)
    hidden = {"test_loss": 2.5, "test_bits_per_token": 3.6067, "unigram_nats": 3.1}
    write_run(runs, "hidden", 0.57, config, reports=[(500, 0.2)], **hidden, **APART)
    config = changed(objective="masked", model__num_landmarks=32)
    write_run(runs, "few", 0.58, config, **hidden, **APART)
    tables = {
        name: {row.get("mean", row.get("accuracy")) for row in data_of(runs, tmp_path, file)}
        for name, file in (
            ("recipe", "papers_recipe_on_other_data"),
            ("tuned", "tuned_at_the_same_size"),
            ("free", "free_size"),
            ("self-pretrained", "self-pretrained"),
            ("pretrained", "begun_with_another_runs_encoder"),
            ("masked", "hidden_tokens"),
        )
    }
    assert tables == {
        "recipe": {"51.0"},
        "tuned": {"52.0", "52.2", "52.4"},
        "free": {"53.0"},
        "self-pretrained": {"60.0"},
        "pretrained": {"54.0", "55.0", "56.0"},
        "masked": {"57.0", "58.0"},
    }
    write_run(tmp_path / "old", "hidden", 0.59, config, **hidden | {"unigram_nats": None}, **APART)
    (row,) = data_of(tmp_path / "old", tmp_path / "old", "hidden_tokens")
    assert row["unigram_nats"] == ""
    assert "2.5000 | – | 3.6067 | 59.00 (1)" in (tmp_path / "old" / "report.md").read_text()
    text = (tmp_path / "report.md").read_text()
    assert "60.00 ± 0.00 (2)" in text and "2.5000 | 3.1000 | 3.6067 | 57.00 (1) | 30%" in text
    sections = {part.splitlines()[0]: part for part in text.split("\n## ")}
    assert "Hidden tokens" in sections and "Accuracy against landmarks" not in sections
    figure = plot_curves(read_runs([runs]).groups)
    (axes,) = [axes for axes in figure.axes if axes.lines]
    assert "hidden tokens" in axes.get_title() and len(axes.lines) == 1  # and no chance
