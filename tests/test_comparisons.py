"""Attentions side by side: which results are, what they are called, and how they are drawn."""

import csv

import pytest

from experiment.comparisons import (
    attention_names,
    attention_series,
    landmark_series,
    recipe_names,
    same_but_attention,
)
from experiment.plots import plot_attentions
from experiment.read_runs import read_runs
from tests.test_plots import drawn_boxes
from tests.written_runs import changed, make_report, rows_of, write_run


def of(attention, taps=0, task="text", **fields):
    """A config of an attention with so many taps of the convolution of the values."""
    name = "conv_kernel_size" if attention == "nystrom" else "baseline_conv_kernel_size"
    return changed(task, model__attention=attention, **{f"model__{name}": taps}, **fields)


def series_of(runs):
    """Of each series its recipe, and of its groups names and accuracies."""
    all_series = attention_series(read_runs([runs]).groups)
    return {
        name: [
            (each, round(g.accuracy))
            for each, g in zip(attention_names(series), series, strict=True)
        ]
        for name, series in zip(recipe_names(all_series), all_series, strict=True)
    }


def test_only_the_attention_and_its_own_options_may_differ(tmp_path):
    write_run(tmp_path, "a", 0.6, of("nystrom", 35))
    write_run(tmp_path, "b", 0.5, of("nystrom", 35, model__num_landmarks=32))
    write_run(tmp_path, "c", 0.4, of("linear"))
    write_run(tmp_path, "d", 0.3, of("linear", 35))
    write_run(tmp_path, "other recipe", 0.7, of("softmax", learning_rate=0.5))
    write_run(tmp_path, "other data", 0.8, of("softmax"), fingerprint="e" * 64)
    write_run(tmp_path, "hidden tokens", 0.9, of("softmax", objective="masked"))
    (found,) = series_of(tmp_path).values()
    assert sorted(found) == [
        ("linear", 30),
        ("linear", 40),
        ("nystrom, num_landmarks=32", 50),
        ("nystrom, num_landmarks=64", 60),
    ]


def begun_with(attention, **fields):
    """What a result records of the run on short expressions that it began with."""
    config = of(attention, task="listops", **fields).to_dict()
    return {"workdir": f"runs/{attention}", "config": config, "fingerprint": "d" * 64}


def test_encoders_may_come_from_runs_that_differ_in_the_same_way(tmp_path):
    for attention, rate in (("nystrom", 1e-3), ("linear", 1e-3), ("softmax", 1e-4)):
        config = of(attention, task="listops", init_from=f"runs/{attention}")
        begun = begun_with(attention, learning_rate=rate)
        write_run(tmp_path, attention, 0.5, config, init_from=begun)
    config = of("none", task="listops", init_from="runs/none")
    write_run(tmp_path, "of no record", 0.5, config, init_from={"workdir": "runs/none"})
    (found,) = series_of(tmp_path).values()
    assert sorted(found) == [("linear", 50), ("nystrom", 50)]


def test_recipes_have_different_names(tmp_path):
    for seed, pooling in enumerate(("mean", "max", "cls")):
        for attention in ("nystrom", "linear"):
            config = of(attention, model__pooling=pooling)
            write_run(tmp_path, f"{attention}-{pooling}", 0.5, config)
            config = of(attention, model__pooling="max", adam_eps=10.0**-seed)
            write_run(tmp_path, f"{attention}-{seed}", 0.5, config)
    names = list(series_of(tmp_path))
    assert len(names) == 6
    assert sum("pooling=cls" in name for name in names) == 1  # the mean is the recipe itself
    assert sum("pooling=max, as in " in name for name in names) == 4


def test_recipes_that_no_field_of_note_tells_apart_have_panels_of_their_own(tmp_path):
    for attention in ("nystrom", "linear"):
        for eps in (1e-8, 1e-7):
            config = of(attention, adam_eps=eps)
            write_run(tmp_path, f"{attention}-{eps}", 0.5, config)
        write_run(tmp_path, f"{attention}-image", 0.5, of(attention, task="image"))
    figure = plot_attentions(read_runs([tmp_path]).groups)
    titles = [axes.get_title() for axes in figure.axes if axes.patches]
    assert len(set(titles)) == 3
    assert [title.split("\n")[0] for title in titles] == ["Text", "Text", "Image"]


def test_recipes_of_other_tasks_make_no_name_longer(tmp_path):
    for attention in ("nystrom", "linear"):
        for task in ("text", "listops"):
            config = of(attention, task=task, num_train_steps=700)
            write_run(tmp_path, f"{attention}-{task}", 0.5, config)
    all_series = attention_series(read_runs([tmp_path]).groups)
    assert recipe_names(all_series) == ["tuned at the same size, 700 steps"] * 2


@pytest.mark.parametrize("attentions", [["nystrom", "linear"], ["nystrom"]])
def test_a_report_has_attentions_side_by_side_where_there_are_two(attentions, tmp_path, capsys):
    for seed in (0, 1):
        for i, attention in enumerate(attentions):
            write_run(
                tmp_path / "runs", f"{attention}-{seed}", 0.4 + i / 10, of(attention), seed=seed
            )
    text = make_report(tmp_path / "runs", tmp_path / "out")
    assert capsys.readouterr().err.startswith(f"{2 * len(attentions)} results in ")
    shown = (tmp_path / "out" / "attentions.png").exists()
    assert shown == ("![attentions](attentions.png)" in text) == (len(attentions) == 2)
    if shown:
        with (tmp_path / "out" / "attentions_by_one_recipe.csv").open(newline="") as file:
            rows = {row["attention"]: row for row in csv.DictReader(file)}
        assert {name: float(row["mean"]) for name, row in rows.items()} == {
            "nystrom": 40, "linear": 50,
        }  # fmt: skip
        assert rows_of("attentions", tmp_path / "runs")[0]["test accuracy"].endswith("(2)")


def test_each_bar_is_in_its_row_and_named_beside_it(tmp_path):
    for attention, taps, accuracy in (
        ("nystrom", 35, 0.8),
        ("nystrom", 0, 0.6),
        ("linear", 35, 0.9),
        ("none", 0, 0.5),
    ):
        for seed in (0, 1):
            name = f"{attention}-{taps}-{seed}"
            write_run(tmp_path, name, accuracy + seed / 50, of(attention, taps), seed=seed)
    figure = plot_attentions(read_runs([tmp_path]).groups)
    (axes,) = [axes for axes in figure.axes if axes.patches]
    rows = [tick.get_text() for tick in axes.get_yticklabels()]
    bars = {
        (rows[round(p.get_y() + p.get_height() / 2)], round(p.get_width())) for p in axes.patches
    }
    assert rows[::-1] == ["linear", "nystrom", "none"]
    assert bars == {("linear", 91), ("nystrom", 81), ("nystrom", 61), ("none", 51)}
    assert "81.0 ± 1.4" in [text.get_text() for text in axes.texts]
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    looks = {round(p.get_width()): p.get_facecolor() for p in axes.patches}
    for which, accuracies in (("with", (91, 81)), ("without", (61, 51))):
        (bar, *_) = handles[f"{which} a convolution of the values"]
        assert {looks[accuracy] for accuracy in accuracies} == {bar.get_facecolor()}
    assert list(handles["chance"].get_xdata()) == [50, 50]
    boxes = drawn_boxes(figure, axes.texts)
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_encoders_of_other_data_and_hidden_tokens_are_not_laid_side_by_side(tmp_path):
    for attention, data in (("nystrom", "d"), ("linear", "e")):
        config = of(attention, task="listops", init_from=f"runs/{attention}")
        begun = begun_with(attention) | {"fingerprint": data * 64}
        write_run(tmp_path, attention, 0.5, config, init_from=begun)
    for attention in ("nystrom", "linear"):
        write_run(tmp_path, f"masked-{attention}", 0.5, of(attention, objective="masked"))
    assert series_of(tmp_path) == {}


def test_landmarks_and_softmax_of_other_data_are_not_compared(tmp_path):
    for data in ("e", "f"):
        for landmarks in (32, 64) if data == "f" else (128,):
            config = changed(model__num_landmarks=landmarks)
            write_run(tmp_path, f"{data}-{landmarks}", 0.5, config, fingerprint=data * 64)
            masked = changed(model__num_landmarks=landmarks, objective="masked")
            write_run(tmp_path, f"{data}-{landmarks}-masked", 0.5, masked, fingerprint=data * 64)
        config = changed(model__attention="softmax")
        write_run(tmp_path, f"{data}-softmax", 0.6, config, fingerprint=data * 64)
    groups = read_runs([tmp_path]).groups
    (series,) = landmark_series(groups)
    assert [group.num_landmarks for group in series] == [32, 64]
    (softmax,) = same_but_attention(series[0], groups)
    assert softmax.data == series[0].data
