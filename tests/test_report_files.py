"""report.py: what it reads, draws and writes, and files that are none."""

import functools
import json
import os
import warnings

import numpy as np
import pytest
from PIL import Image

import report
from experiment.plots import NOT_LRA, plot_curves
from experiment.read_runs import read_runs
from experiment.records import by_hardware
from experiment.tracks import track_of
from experiment.workdir import recorded
from tests.test_report import source_record
from tests.written_runs import changed, data_of, make_report, rows_of, write_run


def test_broken_and_foreign_files_are_named_and_skipped(tmp_path, capsys):
    write_run(tmp_path / "runs", "good", 0.62)
    broken = {
        "half": ('{"test_accuracy": 0.', "not readable as JSON"),
        "list": ("[1, 2]", "not a JSON object"),
        "foreign": ('{"accuracy": 0.9}', "not a result of train.py: task is missing"),
        "deep": ("[" * 100_000, "not readable as JSON"),
        "half a character": ('{"task": "\\ud800"}', "surrogates not allowed"),
    }
    for name, (text, _) in broken.items():
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "result.json").write_text(text)
    wrong = {
        "percent": ({"test_accuracy": 62.1}, "test_accuracy is not between 0 and 1"),
        "nan": ({"test_accuracy": float("nan")}, "test_accuracy=nan: expected float"),
        "time": ({"wall_seconds": 10**400}, "expected float"),
        "memory": ({"peak_memory_bytes": 10**400}, "expected int"),
        "text": ({"comparable_to_lra": "yes"}, "comparable_to_lra='yes': expected bool"),
        "flag": ({"seed": True}, "seed=True: expected int"),
        "hardware": ({"hardware": "H100"}, "hardware='H100': expected dict"),
        "config": ({"config": {"task": 3}}, "not a run's: no config.task"),
        "starts": ({"earlier_starts": [{"commit": "c"}]}, "earlier_starts are not a run's"),
        "begun": (
            {"config": changed(init_from="runs/x").to_dict()}
            | {"init_from": {"config": changed().to_dict(), "fingerprint": [1]}},
            "init_from.fingerprint is no text",
        ),
        "rate": ({"examples_per_second": "fast"}, "examples_per_second='fast': expected float"),
        "share": (with_fields({"masked": None}), "config.masked.head=None, expected str"),
        "landmarks": (with_fields({"model.num_landmarks": 10**20}), "expected int"),
        "task": (with_fields({"task.name": "nix"}), "config.task.name='nix': expected one of"),
        "length": (with_fields({"task.max_length": "x"}), "max_length='x', expected int"),
    }
    for name, (result, _) in wrong.items():
        write_run(tmp_path / "runs", name, **({"accuracy": 0.1} | result))
    (tmp_path / "runs" / "binary").mkdir()
    (tmp_path / "runs" / "binary" / "result.json").write_bytes(b"\xff\xfe\x00")
    text = make_report(tmp_path / "runs", tmp_path / "out")
    err = capsys.readouterr().err
    for name, (_, why) in (broken | wrong).items():
        path = str(tmp_path / "runs" / name / "result.json")
        (line,) = [line for line in err.splitlines() if line.startswith(path + ":")]
        assert why in line
        assert path in text
    assert str(tmp_path / "runs" / "binary") in err
    assert "62.00 (1)" in text and "10.00" not in text


def with_fields(fields):
    """A result whose config has these values, of whatever kind."""
    config = changed().to_dict()
    for name, value in fields.items():
        *parts, last = name.split(".")
        functools.reduce(dict.__getitem__, parts, config)[last] = value
    return {"config": config}


def test_a_result_without_speed_and_memory_is_still_a_result(tmp_path):
    folder = write_run(tmp_path, "old", 0.6)
    result = json.loads((folder / "result.json").read_text())
    for name in ("examples_per_second", "peak_memory_bytes", "peak_memory_of"):
        del result[name]
    (folder / "result.json").write_text(json.dumps(result))
    (row,) = rows_of("speed", tmp_path)
    assert (row["examples/s"], row["peak memory (MiB)"]) == ("–", "–")


def test_linked_runs_are_found_once_and_closed_folders_named(tmp_path, monkeypatch):
    write_run(tmp_path / "elsewhere", "run", 0.6)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere" / "run")
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "runs")
    (group,) = read_runs([tmp_path / "runs"]).groups
    assert [run.folder.name for run in group.runs] == ["linked"]
    (tmp_path / "runs" / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # as for users who may not look into it
    ((path, why),) = read_runs([tmp_path / "runs"]).skipped
    assert path.name == "closed" and why == "not readable (Permission denied)"


def test_curves_of_unfinished_runs_are_apart_from_comparable_ones(tmp_path):
    write_run(tmp_path, "whole", reports=[(500, 0.6), (1000, 0.7)])
    begun = write_run(tmp_path, "begun", reports=[(500, 0.6)], seed=1)
    (begun / "result.json").unlink()
    found = read_runs([tmp_path])
    figure = plot_curves(found.groups, found.unfinished)
    labels = {}
    for axes in figure.axes:
        apart = NOT_LRA in axes.get_title()
        if axes.lines:
            labels[apart] = axes.get_legend_handles_labels()[1]
    assert any("unfinished" in label for label in labels[True])
    assert not any("unfinished" in label for label in labels[False])


def test_times_on_different_hardware_are_kept_apart(tmp_path):
    cpu = {"platform": "cpu", "device": "cpu", "processor": "EPYC", "num_cores": 2}
    write_run(tmp_path, "a", seed=0, examples_per_second=10.0, hardware=cpu)
    write_run(tmp_path, "b", seed=1, examples_per_second=1_000.0)
    write_run(tmp_path, "c", seed=2, examples_per_second=2_000.0)
    earlier = [{"commit": "c" * 40, "hardware": cpu}]
    write_run(tmp_path, "d", seed=3, examples_per_second=50.0, earlier_starts=earlier)
    (group,) = read_runs([tmp_path]).groups
    assert {name: len(runs) for name, runs in by_hardware(group).items()} == {
        "1 x EPYC (2 cores)": 1,
        "1 x H100": 2,
        "1 x EPYC (2 cores), then 1 x H100": 1,
    }
    rows = rows_of("speed", tmp_path)
    assert [row["examples/s"] for row in rows] == ["10.0", "1,500.0", "50.0"]


def test_plots_are_drawn_and_those_of_an_earlier_report_go(tmp_path):
    out = tmp_path / "out"
    for landmarks in (32, 64):
        config = changed(model__num_landmarks=landmarks)
        reports = [(500, 0.6), (1000, 0.6 + landmarks / 1000)]
        write_run(tmp_path / "runs", str(landmarks), 0.6, config, reports=reports)
    write_run(tmp_path / "runs", "linear", 0.6, changed(model__attention="linear"))
    text = make_report(tmp_path / "runs", out)
    for name in ("attentions.png", "landmarks.png", "speed.png", "curves.png"):
        assert f"]({name})" in text
        picture = np.asarray(Image.open(out / name))
        assert picture.shape[0] > 200 and picture.std() > 5
    points = data_of(tmp_path / "runs", out, "learning_curves")
    assert [float(point["accuracy"]) for point in points] == [60, 63.2, 60, 66.4]

    write_run(tmp_path / "one", "only")
    text = make_report(tmp_path / "one", out)
    assert "landmarks.png" not in text and not (out / "landmarks.png").exists()

    mine = [tmp_path / name for name in ("landmarks.png", "skipped.csv")]
    for file in mine:  # not of a report
        file.write_text("mine")
    make_report(tmp_path / "one", tmp_path)
    assert all(file.read_text() == "mine" for file in mine)


def test_reports_that_are_no_file_and_names_that_are_no_text(tmp_path):
    folder = write_run(tmp_path / "runs", "a", 0.5, reports=[(500, 0.6)])
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    write_run(tmp_path / "runs", os.fsdecode(b"\xff"), 0.7, seed=1)
    text = make_report(tmp_path / "runs", tmp_path / "out")
    assert "50.00 (1)" in text and "metrics.jsonl | not readable" in text
    assert "runs/\\xff | its name is not UTF-8" in text


def test_names_that_are_no_formulas_and_not_of_latin_letters(tmp_path):
    folder = write_run(tmp_path / "runs", "a$_{b$", 0.5, reports=[(500, 0.6), (1000, 0.7)])
    (folder / "result.json").unlink()
    folder = write_run(tmp_path / "runs", "\u8a13\u7df4", 0.5, reports=[(500, 0.7), (1000, 0.6)])
    (folder / "result.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "curves.png" in make_report(tmp_path / "runs", tmp_path / "out")


def test_an_out_that_can_not_be_written_is_refused_in_a_line(tmp_path, capsys):
    write_run(tmp_path / "runs", "a")
    (tmp_path / "file").write_text("")
    for out in ("file", "file/under"):
        assert report.main([str(tmp_path / "runs"), f"--out={tmp_path / out}"]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"--out={tmp_path / out}: can't write there")


def test_folders_without_runs_are_refused(tmp_path, capsys):
    too_long = 300 * "x"
    for name in ("nix", too_long):
        assert report.main([str(tmp_path / name)]) == 1
        assert f"{name}: no such folder" in capsys.readouterr().err
    assert report.main([str(tmp_path), f"--out={tmp_path / 'out'}"]) == 1
    assert "no run of train.py in there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_of_changed_code_are_told_from_those_of_a_commit(tmp_path):
    for seed, commit in enumerate(("1662619" + 33 * "0", "1662619" + 33 * "0" + "+changes")):
        write_run(tmp_path, f"{seed}", seed=seed, commit=commit)
    (row,) = rows_of("speed", tmp_path)
    assert row["commit"] == "16626190 16626190+changes"


def test_csvs_have_numbers_in_columns_of_their_own(tmp_path):
    apart = {"comparable_to_lra": False, "why_not_comparable": 'a, "b"\nc'}
    for seed, value in enumerate([0.61, 0.64, 0.655]):
        write_run(tmp_path / "runs", f"lra-{seed}", value, seed=seed)
    config = changed(model__num_landmarks=32)
    write_run(tmp_path / "runs", "few", 0.5, config, examples_per_second=None)
    write_run(tmp_path / "runs", "apart", 0.4, task="image", **apart)
    begun = write_run(tmp_path / "runs", "begun", reports=[(1500, 0.5)], seed=7)
    (begun / "result.json").unlink()
    read = lambda name: data_of(tmp_path / "runs", tmp_path / "out", name)  # noqa: E731
    rows = read("long_range_arena")
    few, three = [row for row in rows if row["from"] == "ours"]
    assert (float(three["mean"]), int(three["num_seeds"])) == (pytest.approx(63.5), 3)
    assert float(three["std"]) == pytest.approx(100 * np.std([0.61, 0.64, 0.655], ddof=1), abs=1e-4)
    assert (few["mean"], few["std"], few["num_seeds"]) == ("50.0", "", "1")
    assert [float(row["mean"]) for row in rows if row["attention"] == "softmax"][:2] == [
        37.1,
        65.02,
    ]
    (row,) = read("papers_recipe_on_other_data")
    assert (row["mean"], row["steps"]) == ("40.0", "35000")
    assert row["why_not_comparable"] == apart["why_not_comparable"]
    assert [int(row["landmarks"]) for row in read("accuracy_against_landmarks")] == [32, 64]
    speed = {row["attention"]: row for row in read("speed_and_memory")}
    assert speed["nystrom, num_landmarks=32"]["examples_per_second"] == ""
    assert float(speed["nystrom, num_landmarks=64"]["peak_memory_bytes"]) == 2**30
    (row,) = read("unfinished_runs")
    assert (int(row["steps_done"]), int(row["steps"])) == (1500, 20000)


def test_numbers_that_are_none_are_empty_cells(tmp_path):
    folder = write_run(tmp_path / "runs", "a", reports=[(500, 0.6), (1000, float("nan"))])
    text = (folder / "metrics.jsonl").read_text()
    assert "NaN" in text  # as files of earlier versions have it
    null = '{"step": 1500, "split": "validation", "accuracy": null, "loss": Infinity}\n'
    (folder / "metrics.jsonl").write_text(text + null)
    points = data_of(tmp_path / "runs", tmp_path / "out", "learning_curves")
    assert [(p["step"], p["accuracy"], p["loss"]) for p in points] == [
        ("500", "60.0", "1.0"),
        ("1000", "", "1.0"),
        ("1500", "", ""),
    ]
    for path in (tmp_path / "out").glob("*.csv"):
        assert not {"nan", "inf"} & set(path.read_text().lower().replace("\n", ",").split(","))
    assert not read_runs([tmp_path / "runs"]).skipped


def test_results_that_are_not_of_their_config_are_skipped(tmp_path):
    write_run(tmp_path, "seed", seed=3, config=changed().to_dict())
    write_run(tmp_path, "task", task="text", config=changed("listops").to_dict())
    found = read_runs([tmp_path])
    assert not found.groups
    assert {path.parent.name: why for path, why in found.skipped} == {
        "seed": "seed and config.seed differ",
        "task": "task and config.task.name differ",
    }


def test_times_are_medians_over_the_seeds(tmp_path):
    for seed, hours in enumerate((9, 1, 2)):
        write_run(tmp_path, f"{seed}", seed=seed, wall_seconds=3_600.0 * hours)
    (row,) = rows_of("speed", tmp_path)
    assert row["hours"] == "2.00"


SPLITS_BY = {"difficulty": "easy", "data_seed": 7} | dict.fromkeys(
    ("num_train", "num_validation", "num_test"), 9
)


@pytest.mark.parametrize("field", SPLITS_BY)
def test_a_run_is_self_pretrained_on_its_own_splits_alone(field):
    config, source = recorded(changed(init_from="runs/source")), source_record(changed())
    assert track_of(config, source["fingerprint"], source) == "self-pretrained"
    source["config"]["task"][field] = SPLITS_BY[field]
    assert track_of(config, source["fingerprint"], source) == "pretrained"


def test_tasks_beyond_lra_are_of_no_recipe():
    config = recorded(changed())
    assert track_of(config | {"task": config["task"] | {"name": "reviews"}}) == "free"


@pytest.mark.parametrize(
    ("field", "value", "track"),
    [
        *((f"model.{x}", 24, "free") for x in ("num_layers", "width", "mlp_width", "head_width")),
        ("model.num_landmarks", 32, "recipe"),
        ("eval_every", 7, "recipe"),
        ("masked.share", 0.5, "recipe"),
        ("learning_rate", 0.5, "tuned"),
    ],
)
def test_a_run_of_another_size_or_recipe_is_of_another_track(field, value, track):
    assert track_of(recorded(changed(**{field: value}))) == track


def test_runs_begun_with_encoders_of_other_data_are_no_seeds_of_one(tmp_path):
    config = changed(init_from="runs/source")
    for seed, data in enumerate("0ff"):
        source = source_record(changed(), fingerprint=64 * data)
        write_run(tmp_path, f"{seed}", run_config=config, seed=seed, init_from=source)
    assert sorted(len(group.runs) for group in read_runs([tmp_path]).groups) == [1, 2]


def test_runs_begun_with_unfinished_encoders_are_no_seeds_of_others(tmp_path):
    config = changed(init_from="runs/source")
    for seed, (finished, step) in enumerate([(True, 400), (True, 500), (False, 400), (False, 50)]):
        source = source_record(changed(seed=seed), finished=finished, step=step)
        write_run(tmp_path, f"{seed}", run_config=config, seed=seed, init_from=source)
    groups = read_runs([tmp_path]).groups
    assert sorted(len(group.runs) for group in groups) == [1, 1, 2]
    names = {group.first["seed"]: group.runs[0].config["init_from"] for group in groups}
    assert "500 steps" in names[0] and " 50 of 500 steps" in names[3]


def test_tables_of_an_earlier_report_go(tmp_path):
    write_run(tmp_path / "runs", "a", 0.6, changed(model__num_landmarks=32))
    write_run(tmp_path / "runs", "b", 0.6)
    make_report(tmp_path / "runs", tmp_path / "out")
    assert (tmp_path / "out/accuracy_against_landmarks.csv").exists()
    make_report(tmp_path / "runs/b", tmp_path / "out")
    assert not (tmp_path / "out/accuracy_against_landmarks.csv").exists()


def test_files_of_others_are_not_written_over(tmp_path, capsys):
    write_run(tmp_path / "runs", "a", 0.6)
    (tmp_path / "report.md").write_text("# Results of mine\n")
    (tmp_path / "speed.png").write_text("mine")
    assert report.main([str(tmp_path / "runs"), f"--out={tmp_path}"]) == 1
    assert "the report.md there is none of ours" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.md", "runs", "speed.png"]
    assert (tmp_path / "speed.png").read_text() == "mine"


def test_losses_of_hidden_tokens_are_without_that_of_order(tmp_path):
    config = changed(objective="masked")
    write_run(tmp_path, "a", 0.5, config, test_loss=3.0, test_token_loss=2.5)
    write_run(tmp_path, "b", 0.5, config, seed=1, test_loss=3.5, test_token_loss=3.0)
    (row,) = rows_of("masked", tmp_path)
    assert row["loss (nats)"] == "2.7500"
