"""Plots of results: accuracy by attention and landmarks, speed and memory, learning curves."""

import itertools
import re
import textwrap
from collections.abc import Callable

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from experiment.comparisons import (
    attention_names,
    attention_series,
    landmark_series,
    recipe_names,
    same_but_attention,
    taps,
)
from experiment.records import by_hardware, median_of
from experiment.results import MODULES, TASKS, TITLES, Group, Run, unfinished_label

# Accuracies in % of chance: the commonest label, always.
CHANCE = {task: getattr(m, "CHANCE", 100 / m.NUM_CLASSES) for task, m in MODULES.items()}
NOT_LRA = "not comparable to LRA"
PANEL = (6.4, 4.2)  # inches
MAX_SERIES = 10  # in a panel: as many as there are colours, and no more can be told apart
DASHES = ("--", "-.", (0, (8, 2, 2, 2, 2, 2)))  # of lines of one colour; dots are chance's
LABEL_WIDTH = 80  # characters of a label in a line
MOST_TIMES = 4  # the shortest run's steps: a panel with longer ones has them on a logarithmic axis
LEAST_SPAN = 5  # percentage points on the axis of accuracies, lest noise look like news


# Of plot_speed: a field of results, what it is divided by, what it is called.
BARS = (
    ("examples_per_second", 1, "training examples/s"),
    ("peak_memory_bytes", 2**20, "peak memory (MiB)"),
)


def short_labels(labels: list[str]) -> list[str]:
    """Labels without what all of them say, but for the attention that each begins with."""
    parts = [_parts(label) for label in labels]
    sets = [set(p) for p in parts if "unfinished" not in p]  # those name their folder alone
    common = set.intersection(*sets) if len(sets) > 1 else set()
    return [", ".join([p[0], *(x for x in p[1:] if x not in common)]) for p in parts]


def plot_attentions(groups: list[Group]) -> Figure | None:
    """Test accuracy of attentions by one recipe, a panel a recipe; None without two of one."""
    panels, all_series = {}, attention_series(groups)
    for series, name in zip(all_series, recipe_names(all_series), strict=True):
        task, data = _panel(series[0])
        panels[task, "\n".join(text for text in (name, data) if text)] = series

    def draw(axes, series):
        series = sorted(series, key=lambda group: -group.accuracy)
        names = attention_names(series)
        rows = list(dict.fromkeys(names))[::-1]  # the best on top
        for has_it, color in ((True, "C0"), (False, "lightgrey")):
            label = f"{'with' if has_it else 'without'} a convolution of the values"
            for group, name in zip(series, names, strict=True):
                if bool(taps(group)) != has_it:
                    continue
                place = rows.index(name) + (names.count(name) > 1) * (0.2 if has_it else -0.2)
                error = None if len(group.runs) < 2 else group.deviation
                look = {"color": color, "capsize": 3, "label": label}
                axes.barh(place, group.accuracy, 0.38, xerr=error, **look)
                text = f"{group.accuracy:.1f}" + (f" ± {error:.1f}" if error else "")
                by = {"textcoords": "offset points", "va": "center", "fontsize": 8}
                axes.annotate(text, (group.accuracy + (error or 0), place), (5, 0), **by)
                label = None  # one entry in the legend for all
        axes.axvline(CHANCE[series[0].task], ls=":", color="grey", lw=1, label="chance")
        axes.set_axisbelow(True)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(min(len(rows) - 4, 0) - 0.6, len(rows) - 0.4)  # few bars are not broad ones
        axes.set_xlim(0, min(100, 1.25 * max(group.accuracy for group in series)))
        axes.set_xlabel("test accuracy (%)")

    return _figure(panels, draw)


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
            softmaxes = same_but_attention(series[0], groups)
            for other, dashes in zip(softmaxes, itertools.cycle(DASHES), strict=False):
                axes.axhline(other.accuracy, ls=dashes, color=f"C{i}", lw=1, label=other.label)
        axes.axhline(CHANCE[series[0].task], ls=":", color="grey", lw=1, label="chance")
        axes.set_xscale("log", base=2)
        counts = sorted({group.num_landmarks for series in all_series for group in series})
        axes.set_xticks(counts, map(str, counts))
        axes.set_xlabel("number of landmarks")
        axes.set_ylabel("test accuracy (%)")

    return _figure(panels, draw)


def plot_speed(groups: list[Group]) -> Figure | None:
    """Training speed and peak memory of each group, a row of bars, by task, data and hardware."""
    panels = {}
    for group in groups:
        for hardware, runs in by_hardware(group).items():
            if any(run.result.get("examples_per_second") for run in runs):
                panels.setdefault((_panel(group), hardware), []).append((group.label, runs))
    if not panels:
        return None
    labels = [short_labels([label for label, _ in bars]) for bars in panels.values()]
    labels = [[textwrap.fill(label, LABEL_WIDTH) for label in those] for those in labels]
    slots = [0.28 + 0.14 * max(1 + label.count("\n") for label in those) for those in labels]
    heights = [1.1 + slot * len(those) for slot, those in zip(slots, labels, strict=True)]
    figure = Figure(figsize=(11, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    drawn = zip(parts, panels.items(), labels, slots, strict=True)
    for part, (((task, data), hardware), bars), names, slot in drawn:
        title = ", ".join(text for text in (TITLES[task], data) if text)
        part.suptitle(f"{title}: {hardware}", x=0.01, ha="left", fontsize=9)
        for i, (axes, (name, unit, what)) in enumerate(zip(part.subplots(1, 2), BARS, strict=True)):
            values = [median_of(runs, name) / unit for _, runs in bars]
            places = range(len(bars))
            rows = axes.barh(places, values, 0.14 / slot, align="edge", color=f"C{i}")
            axes.bar_label(rows, [f"{v:,.0f}" if v else "not recorded" for v in values], padding=3)
            for place, label in zip(places, names, strict=True):
                # Above its bar, which leaves the bars the whole width.
                text, by = label if i == 0 else "", {"textcoords": "offset points"}
                axes.annotate(text, (0, place), (2, 2), **by, fontsize=7.5, va="bottom")
            axes.set_xlim(0, 1.25 * max(*values, 1))
            axes.set_ylim(len(bars) - 1 + 0.2 / slot, -1)  # the first on top
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.set_yticks([])
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_xlabel(what)
    return figure


def plot_curves(
    groups: list[Group], unfinished: list[Run] = (), split: str = "validation", value="accuracy"
) -> Figure | None:
    """Accuracy or loss against steps, a line a run, a panel for each task's data."""
    panels = {}
    for group in groups:
        panels.setdefault(_panel(group), []).append((group.label, group.runs, "-"))
    for run in unfinished:
        panels.setdefault(_panel(run), []).append((unfinished_label(run), [run], "--"))
    panels = {
        panel: [line for line in lines if any(run.curve(split, value)[0] for run in line[1])]
        for panel, lines in panels.items()
    }
    accuracy = value == "accuracy"

    def draw(axes, lines):
        labels = short_labels([label for label, _, _ in lines])
        for i, ((_, runs, style), label) in enumerate(zip(lines, labels, strict=True)):
            for run in runs:
                steps, values = run.curve(split, value)
                values = [100 * v for v in values] if accuracy else values
                axes.plot(steps, values, style, color=f"C{i}", lw=1.2, label=label)
                label = None  # one entry in the legend for all seeds
        if accuracy:
            _, (first, *_), _ = lines[0]
            if first.config["objective"] == "classify":
                chance = CHANCE[first.task]
                axes.axhline(chance, ls=":", color="grey", lw=1, label="chance")
            low, high = axes.get_ylim()
            if high - low < LEAST_SPAN:
                middle = (low + high) / 2
                axes.set_ylim(middle - LEAST_SPAN / 2, middle + LEAST_SPAN / 2)
        axes.set_xlabel("training step")
        curves = [run.curve(split, value)[0] for _, runs, _ in lines for run in runs]
        lengths = [steps[-1] for steps in curves if steps]
        if max(lengths) > MOST_TIMES * min(lengths):
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        which = "training" if split == "train" else split
        axes.set_ylabel(f"{which} accuracy (%)" if accuracy else f"{which} loss (nats)")

    return _figure(panels, draw)


def _figure(panels: dict, draw: Callable) -> Figure | None:
    """A grid of panels, two a row, with titles, each with its legend beneath."""
    parts = _parts_of_a_size(panels)
    if not parts:
        return None
    columns = min(len(parts), 2)
    rows = -(-len(parts) // columns)
    figure = Figure(layout="constrained")
    # Legends have axes of their own, as high as they are: none is cut off or meets a title.
    grid = figure.add_gridspec(2 * rows, columns)
    legend_heights = [0.0] * rows
    for i, (title, content) in enumerate(parts):
        row, column = divmod(i, columns)
        axes = figure.add_subplot(grid[2 * row, column])
        draw(axes, content)
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        below = figure.add_subplot(grid[2 * row + 1, column])
        below.set_axis_off()
        handles, labels = axes.get_legend_handles_labels()
        labels = [textwrap.fill(label, LABEL_WIDTH) for label in labels]
        below.legend(handles, labels, fontsize=7.5, loc="upper left", frameon=False)
        height = 0.15 + 0.16 * sum(1 + label.count("\n") for label in labels)
        legend_heights[row] = max(legend_heights[row], height)
    heights = [height for legend in legend_heights for height in (PANEL[1] - 1, legend)]
    grid.set_height_ratios(heights)
    figure.set_size_inches(PANEL[0] * columns, sum(heights) + rows)
    return figure


def _parts_of_a_size(panels):
    """Titles and contents of panels in their order, large ones in parts, empty ones left out."""
    parts = []
    for (task, data), content in sorted(
        panels.items(), key=lambda item: (TASKS.index(item[0][0]), item[0])
    ):
        number = -(-len(content) // MAX_SERIES)
        for i in range(number):
            batch = content[i * len(content) // number : (i + 1) * len(content) // number]
            title = TITLES[task] + (f" ({i + 1} of {number})" if number > 1 else "")
            parts.append((title + (f"\n{data}" if data else ""), batch))
    return parts


def _panel(item):
    """Task and what data it is: the panel that a group, or a run cut short, belongs to."""
    task = item.config["task"]
    size = f"up to {task['max_length']:,} tokens" if task.get("max_length") else ""
    examples = f"{task['num_train']:,} examples" if task.get("num_train") else ""
    lra = "" if isinstance(item, Group) and item.first["comparable_to_lra"] else NOT_LRA
    hidden = "hidden tokens" if item.config["objective"] == "masked" else ""
    return task["name"], ", ".join(text for text in (hidden, size, examples, lra) if text)


def _without_landmarks(label):
    return ", ".join(part for part in _parts(label) if not part.startswith("num_landmarks="))


def _parts(label):
    """What a label says, one by one: cut at its commas, but for those within a list's brackets."""
    return re.split(r", (?![^\[]*\])", label)
