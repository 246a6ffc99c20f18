"""The plots of results: what is drawn, told apart, and within the figure."""

import csv
import itertools
import json

import pytest

from benchmarks import attention_report
from experiment.plots import MAX_SERIES, plot_curves, plot_landmarks, plot_speed, short_labels
from experiment.read_runs import read_runs
from tests.conftest import ROOT
from tests.written_runs import changed, write_run


def drawn_boxes(figure, artists):
    """Where artists lie in the figure, in pixels: a list of boxes."""
    figure.draw_without_rendering()
    return [artist.get_window_extent() for artist in artists]


def many_runs(runs):
    """More runs of one task than fit a panel, in two sizes of the data, and another task."""
    long = "mlp_width"
    for width in range(12):
        config = changed(**{f"model__{long}": 100 + width, "learning_rate": 0.00012345 + width})
        write_run(runs, f"wide-{width}", 0.6, config, reports=[(500, 0.6), (1000, 0.6)])
    for landmarks in (8, 16):
        config = changed("listops", model__num_landmarks=landmarks)
        config.task.max_length = 200
        write_run(runs, f"short-{landmarks}", 0.3, config, reports=[(500, 0.2), (1000, 0.3)],
                  examples_per_second=5_000.0)  # fmt: skip
    write_run(runs, "listops", 0.3, task="listops", reports=[(500, 0.2), (1000, 0.3)])


@pytest.mark.parametrize("plot", [plot_curves, plot_landmarks])
def test_legends_lie_within_the_figure_and_touch_nothing(plot, tmp_path):
    many_runs(tmp_path)
    figure = plot(read_runs([tmp_path]).groups)
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    panels = [axes for axes in figure.axes if axes.lines]
    assert len(legends) == len(panels)
    texts = [*(axes.title for axes in panels), *(axes.xaxis.label for axes in panels)]
    boxes = drawn_boxes(figure, [*legends, *texts])
    for i, box in enumerate(boxes[: len(legends)]):
        assert box.x0 >= 0 and box.y0 >= 0
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for j, other in enumerate(boxes) if j != i)
        assert not any(box.overlaps(axes.get_window_extent()) for axes in panels)


def test_no_panel_has_more_curves_than_can_be_told_apart(tmp_path):
    many_runs(tmp_path)
    figure = plot_curves(read_runs([tmp_path]).groups)
    counts = {a.get_title(): len(a.lines) - 1 for a in figure.axes if a.lines}  # and chance
    assert max(counts.values()) <= MAX_SERIES and sum(counts.values()) == 15
    assert [title.split("\n")[0] for title in counts if title.startswith("Text")] == [
        "Text (1 of 2)",
        "Text (2 of 2)",
    ]


def test_softmax_with_and_without_a_convolution_are_told_apart(tmp_path):
    for landmarks in (32, 64):
        write_run(tmp_path, f"{landmarks}", 0.6, changed(model__num_landmarks=landmarks))
    for taps in (0, 35):
        fields = {"model__attention": "softmax", "model__baseline_conv_kernel_size": taps}
        write_run(tmp_path, f"softmax-{taps}", 0.5 + taps / 100, changed(**fields))
    figure = plot_landmarks(read_runs([tmp_path]).groups)
    (axes,) = [axes for axes in figure.axes if axes.lines]
    lines = [line for line in axes.lines if line.get_linestyle() != "None"]  # no caps of errors
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(looks) == len(lines) == 4  # nystrom, both of softmax, chance


def panels_of(figure):
    """The axes of a figure that have something in them."""
    return [axes for axes in figure.axes if axes.lines or axes.patches]


def test_landmarks_are_drawn_at_their_accuracies(tmp_path):
    for seed, landmarks, accuracy in ((0, 32, 0.6), (1, 32, 0.62), (0, 64, 0.7)):
        config = changed(model__num_landmarks=landmarks)
        write_run(tmp_path, f"{landmarks}-{seed}", accuracy, config, seed=seed)
    write_run(tmp_path, "softmax", 0.8, changed(model__attention="softmax"))
    (axes,) = panels_of(plot_landmarks(read_runs([tmp_path]).groups))
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    (points, _, (bars,)) = handles["nystrom"]
    assert points.get_xydata().tolist() == [[32, pytest.approx(61)], [64, 70]]
    assert [low[1] for low, _ in bars.get_segments()] == pytest.approx([61 - 2**0.5, 70])
    heights = {label: handles[label].get_ydata()[0] for label in ("softmax", "chance")}
    assert heights == {"softmax": 80, "chance": 50} and axes.get_xscale() == "log"


def test_curves_are_in_percent_and_dashed_where_the_run_is_unfinished(tmp_path):
    write_run(tmp_path, "a", seed=0)  # of which no report is left
    write_run(tmp_path, "b", seed=1, reports=[(500, 0.6), (1000, 0.601)])
    begun = write_run(tmp_path, "begun", reports=[(500, 0.7), (1000, 0.701)], seed=2)
    (begun / "result.json").unlink()
    found = read_runs([tmp_path])
    whole, unfinished = panels_of(plot_curves(found.groups, found.unfinished))
    drawn = [line for axes in (whole, unfinished) for line in axes.lines if len(line.get_xdata())]
    styles = [(line.get_ydata()[0], line.get_linestyle()) for line in drawn]
    assert styles == [(60, "-"), (50, ":"), (70, "--"), (50, ":")]
    figure = plot_curves(found.groups, split="validation", value="loss")
    assert panels_of(figure)[0].lines[1].get_ydata().tolist() == [1, 1]


def test_noise_does_not_fill_a_panel(tmp_path):
    write_run(tmp_path, "a", reports=[(500, 0.5), (1000, 0.501)])  # of chance, 50
    (axes,) = panels_of(plot_curves(read_runs([tmp_path]).groups))
    low, high = axes.get_ylim()
    assert low < 50 < high and high - low >= 5


def test_bars_of_speed_have_their_numbers_and_names_the_first_on_top(tmp_path):
    write_run(tmp_path, "a", seed=0, examples_per_second=None)
    write_run(tmp_path, "b", seed=1, examples_per_second=120.0)
    config = changed(model__attention="softmax")
    write_run(tmp_path, "c", 0.5, config, examples_per_second=80.0, peak_memory_bytes=None)
    figure = plot_speed(read_runs([tmp_path]).groups)
    speed, memory = figure.axes
    assert [patch.get_width() for patch in speed.patches] == [120, 80]
    assert [patch.get_width() for patch in memory.patches] == [2**10, 0]
    names = [text for text in speed.texts if text.xy[0] == 0 and text.get_text()]
    assert [(text.get_text()[:7], text.xy[1]) for text in names] == [("nystrom", 0), ("softmax", 1)]
    assert speed.get_ylim()[0] > speed.get_ylim()[1] and memory.get_ylim() == speed.get_ylim()
    assert [text.get_text() for text in memory.texts if text.get_text()] == [
        "1,024",
        "not recorded",
    ]
    assert (speed.get_xlabel(), memory.get_xlabel()) == (
        "training examples/s",
        "peak memory (MiB)",
    )


def test_losses_are_drawn_from_the_reports_of_training(tmp_path):
    folder = write_run(tmp_path, "a", reports=[(500, 0.6)])
    lines = [{"step": step, "split": "train", "loss": 2.0 - step / 100} for step in (10, 20)]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    figure = plot_curves(read_runs([tmp_path]).groups, split="train", value="loss")
    (line,) = figure.axes[0].lines
    assert line.get_ydata().tolist() == [1.9, 1.8]
    assert figure.axes[0].get_ylabel() == "training loss (nats)"


def test_few_steps_are_ticked_once_each(tmp_path):
    write_run(tmp_path, "a", reports=[(step, 0.6) for step in (3, 4, 5, 6)])
    figure = plot_curves(read_runs([tmp_path]).groups)
    figure.draw_without_rendering()
    (axes,) = [axes for axes in figure.axes if axes.lines]
    shown = [tick.get_text() for tick in axes.get_xticklabels()]
    assert len(set(shown)) == len(shown) >= 4


def test_steps_are_logarithmic_beside_a_run_that_is_much_longer(tmp_path):
    scales = {}
    for last in (2_000, 10_000):
        runs = tmp_path / str(last)
        runs.mkdir()
        write_run(runs, "short", reports=[(250, 0.5), (500, 0.6)])
        config = changed(num_train_steps=last)
        write_run(runs, "long", 0.6, config, reports=[(500, 0.5), (last, 0.6)])
        figure = plot_curves(read_runs([runs]).groups)
        figure.draw_without_rendering()
        (axes,) = [axes for axes in figure.axes if axes.lines]
        scales[last] = axes.get_xscale()
        assert f"{last:,}" in [tick.get_text() for tick in axes.get_xticklabels()]
    assert scales == {2_000: "linear", 10_000: "log"}


def test_speeds_on_other_lengths_have_panels_of_their_own_and_bars_the_width(tmp_path):
    many_runs(tmp_path)
    figure = plot_speed(read_runs([tmp_path]).groups)
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert len(titles) == 3 and len({title.split(":")[0] for title in titles}) == 3
    assert any("up to 200 tokens" in title for title in titles)
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_window_extent().width > 0.4 * figure.bbox.width
        labels = [label for label in axes.get_xticklabels() if label.get_text()]
        boxes = sorted(drawn_boxes(figure, labels), key=lambda box: box.x0)
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_labels_of_a_panel_leave_out_what_all_say():
    labels = ["nystrom, rate=1, num_landmarks=16", "nystrom, rate=1, num_landmarks=32"]
    assert short_labels(labels) == ["nystrom, num_landmarks=16", "nystrom, num_landmarks=32"]
    assert short_labels(labels[:1]) == labels[:1]
    lists = [f"linear, lengths=[512, {n}], rate=1" for n in (1024, 2048)]
    assert short_labels(lists) == [label.removesuffix(", rate=1") for label in lists]
    unfinished = "softmax, unfinished, in folder"
    assert short_labels([*labels, unfinished])[1:] == ["nystrom, num_landmarks=32", unfinished]


def test_benchmark_plots_tick_the_lengths_that_were_measured(tmp_path):
    with (ROOT / "results" / "benchmarks" / "attention.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = attention_report.make_figure(rows, "milliseconds", "milliseconds")
    for axes in figure.axes:
        shown = [label.get_text() for label in axes.get_xticklabels(which="both")]
        assert [text for text in shown if text] == [
            f"{length:,}" for length in sorted({int(row["length"]) for row in rows})
        ]
