"""Plots of results: accuracy against landmarks, speed and memory, learning curves."""

import statistics
from collections.abc import Callable

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiment.results import CHANCE, OWN_FIELDS, TASKS, Group, Run, key_of

TITLES = {
    "listops": "ListOps",
    "text": "Text",
    "retrieval": "Retrieval",
    "image": "Image",
    "pathfinder": "Pathfinder",
    "pathx": "Path-X",
}
NOT_LRA = "not comparable to LRA"
PANEL = (6.4, 4.2)  # inches
BELOW = {"loc": "upper left", "bbox_to_anchor": (0, -0.28)}  # a legend under its panel
# Of curves: the ten dark ones of matplotlib's default, then a light one of each.
COLOURS = (*colormaps["tab20"].colors[::2], *colormaps["tab20"].colors[1::2])
LEAST_SPAN = 5  # percentage points on the axis of accuracies, lest noise look like news


def landmark_series(groups: list[Group]) -> list[list[Group]]:
    """Nyström groups that differ in the number of landmarks alone, ascending; two or more each."""
    series = {}
    for group in groups:
        if group.attention == "nystrom":
            key = (key_of(group.config, ("model.num_landmarks",)), *_data(group))
            series.setdefault(key, []).append(group)
    return [sorted(s, key=lambda g: g.num_landmarks) for s in series.values() if len(s) > 1]


def same_but_attention(group: Group, groups: list[Group]) -> list[Group]:
    """Groups of softmax attention that differ from `group` in nothing else that they read."""
    without = ("model.attention", *OWN_FIELDS)
    key = (key_of(group.config, without), *_data(group))
    return [
        other
        for other in groups
        if other.attention == "softmax" and (key_of(other.config, without), *_data(other)) == key
    ]


def plot_landmarks(groups: list[Group]) -> Figure | None:
    """Test accuracy against the number of landmarks, a panel a task; None without two counts."""
    panels = {}
    for series in landmark_series(groups):
        panels.setdefault(_panel(series[0]), []).append(series)

    def draw(axes, all_series):
        for i, series in enumerate(all_series):
            x = [group.num_landmarks for group in series]
            y = [group.accuracy for group in series]
            errors = [0 if len(group.runs) < 2 else group.deviation for group in series]
            label = "nystrom" if len(all_series) == 1 else _without_landmarks(series[0].label)
            axes.errorbar(x, y, errors, marker="o", capsize=3, color=f"C{i}", label=label)
            for softmax in same_but_attention(series[0], groups):
                axes.axhline(softmax.accuracy, ls="--", color=f"C{i}", lw=1, label=softmax.label)
        axes.axhline(CHANCE[series[0].task], ls=":", color="grey", lw=1, label="chance")
        axes.set_xscale("log", base=2)
        counts = sorted({group.num_landmarks for series in all_series for group in series})
        axes.set_xticks(counts, map(str, counts))
        axes.set_xlabel("number of landmarks")
        axes.set_ylabel("test accuracy (%)")
        axes.legend(fontsize=8)

    return _figure(panels, draw)


def plot_speed(groups: list[Group]) -> Figure | None:
    """Training speed and peak memory of each group, a row of bars, by task and hardware."""
    rows = {}
    for group in groups:
        for hardware, runs in by_hardware(group).items():
            if any(run.result.get("examples_per_second") for run in runs):
                rows.setdefault((group.task, hardware), []).append((group.label, runs))
    if not rows:
        return None
    heights = [1.0 + 0.32 * len(bars) for bars in rows.values()]
    figure = Figure(figsize=(11, sum(heights) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), 2, squeeze=False, height_ratios=heights)
    for (left, right), ((task, hardware), bars) in zip(axes, rows.items(), strict=True):
        bars = bars[::-1]
        labels = [label for label, _ in bars]
        for axis, name, unit in (
            (left, "examples_per_second", 1),
            (right, "peak_memory_bytes", 2**20),
        ):
            values = [median_of(runs, name) / unit for _, runs in bars]
            drawn = axis.barh(range(len(bars)), values, 0.6, color="C0" if axis is left else "C1")
            axis.bar_label(drawn, [f"{v:,.0f}" if v else "not recorded" for v in values], padding=3)
            axis.set_xlim(0, 1.25 * max(*values, 1))
            axis.set_ylim(-0.6, len(bars) - 0.4)
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.xaxis.set_major_formatter("{x:,.0f}")
            axis.set_yticks(range(len(bars)), labels if axis is left else [""] * len(bars))
            axis.spines[["top", "right"]].set_visible(False)
        left.set_title(f"{TITLES[task]} on {hardware}", fontsize=9, loc="left")
        left.set_xlabel("training examples/s")
        right.set_xlabel("peak memory (MiB)")
    return figure


def plot_curves(groups: list[Group], unfinished: list[Run] = ()) -> Figure | None:
    """Validation accuracy against steps, a line a run, a panel for each task's data."""
    panels = {}
    for group in groups:
        panels.setdefault(_panel(group), []).append((group.label, group.runs, "-"))
    for run in unfinished:
        label = f"{run.attention} (unfinished)"
        panels.setdefault(_panel(run), []).append((label, [run], "--"))

    def draw(axes, lines):
        for i, (label, runs, style) in enumerate(lines):
            for run in runs:
                steps, accuracies = run.curve()
                axes.plot(
                    steps,
                    [100 * a for a in accuracies],
                    style,
                    color=COLOURS[i % len(COLOURS)],
                    lw=1.2,
                    label=label,
                )
                label = None  # one entry in the legend for all seeds
        axes.axhline(CHANCE[runs[0].task], ls=":", color="grey", lw=1, label="chance")
        low, high = axes.get_ylim()
        if high - low < LEAST_SPAN:
            middle = (low + high) / 2
            axes.set_ylim(middle - LEAST_SPAN / 2, middle + LEAST_SPAN / 2)
        axes.set_xlabel("training step")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set_ylabel("validation accuracy (%)")
        axes.legend(fontsize=7, **BELOW)

    has_curve = {k: v for k, v in panels.items() if any(r.curve()[0] for _, rs, _ in v for r in rs)}
    return _figure(has_curve, draw)


def by_hardware(group: Group) -> dict[str, list[Run]]:
    """A group's runs by what they ran on: times of different machines are never mixed."""
    found = {}
    for run in group.runs:
        hardware = run.result["hardware"]
        device = hardware.get("device", "unknown")
        if hardware.get("platform") == "cpu":
            device = f"{hardware.get('processor', device)} ({hardware.get('num_cores', '?')} cores)"
        found.setdefault(f"{hardware.get('num_devices', 1)} x {device}", []).append(run)
    return found


def median_of(runs: list[Run], name: str) -> float:
    """The median of a field of the results that have it; 0 where none has."""
    return statistics.median([run.result[name] for run in runs if run.result.get(name)] or [0])


def _figure(panels: dict, draw: Callable) -> Figure | None:
    """A grid of panels, two a row, with titles."""
    if not panels:
        return None
    panels = dict(sorted(panels.items(), key=lambda item: (TASKS.index(item[0][0]), item[0])))
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (title, content) in zip(all_axes, panels.items(), strict=False):
        draw(axes, content)
        axes.set_title(TITLES[title[0]] + (f"\n{title[1]}" if title[1] else ""), fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    for axes in all_axes[len(panels) :]:
        axes.remove()
    return figure


def _panel(item):
    """Task and what data it is: the panel that a group, or a run cut short, belongs to."""
    task = item.config["task"]
    size = f"up to {task['max_length']:,} tokens" if task.get("max_length") else ""
    examples = f"{task['num_train']:,} examples" if task.get("num_train") else ""
    lra = "" if isinstance(item, Group) and item.first["comparable_to_lra"] else NOT_LRA
    return task["name"], ", ".join(text for text in (size, examples, lra) if text)


def _data(group):
    return group.first["source"], group.first["fingerprint"]


def _without_landmarks(label):
    return ", ".join(part for part in label.split(", ") if not part.startswith("num_landmarks="))
