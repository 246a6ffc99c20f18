"""Puts results into tables and plots: Markdown, CSV and PNG.

    python report.py runs/ [results/ ...] [--out=report]

Reads every result.json under the folders. Results that compare with LRA make
the table beside the paper's numbers; all others stand apart, with the reason,
in a table for each track: the paper's recipe on other data, tuned at its size,
of another size, self-pretrained, begun with another run's encoder; and runs on
hidden tokens in one of their own. Attentions that share a recipe stand side by
side. Only runs that differ in nothing but the seed are averaged. Unfinished
runs are listed, and files that can't be read are named and skipped.
"""

import argparse
import statistics
import sys
import warnings
from pathlib import Path

import matplotlib

from experiment.plots import (
    TITLES,
    plot_attentions,
    plot_curves,
    plot_landmarks,
    plot_speed,
)
from experiment.read_runs import read_runs
from experiment.records import (
    apart_records,
    attentions_records,
    curves_records,
    landmarks_records,
    lra_records,
    masked_records,
    score,
    skipped_records,
    speed_records,
    unfinished_records,
    write_csv,
)
from experiment.results import LRA_TASKS, PAPER, Found, Group
from experiment.signals import exit_status
from experiment.tracks import TRACKS
from experiment.workdir import folder_argument

MAX_DIGITS = 2  # of accuracies in %
NONE = "–"
HEADING = "# Results"  # every report begins with this line


def main(argv: list[str] | None = None) -> int:
    """Writes the report of a command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        "report.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", type=folder_argument,
                        help="folders with runs, such as runs/")  # fmt: skip
    parser.add_argument("--out", type=folder_argument, default=Path("report"),
                        help="the report's folder")  # fmt: skip
    options = parser.parse_args(argv)
    try:
        found = read_runs(options.folders)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    for path, why in found.skipped:
        print(f"{path}: {why}", file=sys.stderr)
    if not found.groups and not found.unfinished:
        folders = " ".join(map(str, options.folders))
        print(f"{folders}: no run of train.py in there, so nothing to report", file=sys.stderr)
        return 1
    try:
        if not is_ours(options.out / "report.md"):
            print(f"--out={options.out}: the report.md there is none of ours", file=sys.stderr)
            return 1
        write_report(found, options.out)
    except OSError as error:
        print(f"--out={options.out}: can't write there ({error})", file=sys.stderr)
        return 1
    num_runs = sum(len(group.runs) for group in found.groups)
    print(
        f"{num_runs} result{'s' * (num_runs != 1)} in {options.out / 'report.md'}", file=sys.stderr
    )
    return 0


def is_ours(path: Path) -> bool:
    """Whether a report.md is an earlier report, or not there."""
    return not path.exists() or path.read_bytes().startswith(HEADING.encode() + b"\n")


def write_report(found: Found, out: Path) -> None:
    """Writes report.md, a CSV for each of its tables (as data: `experiment.records`), the plots.

    What an earlier report has left there beyond these is removed.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures, is_report = {}, (out / "report.md").exists()
    # Names of folders may hold dollars, and letters that no font here has.
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figures = {
            "attentions": plot_attentions(found.groups),
            "landmarks": plot_landmarks(found.groups),
            "speed": plot_speed(found.groups),
            "curves": plot_curves(found.groups, found.unfinished),
        }
        for name, figure in figures.items():
            file = out / f"{name}.png"
            if is_report:
                file.unlink(missing_ok=True)
            if figure:
                figure.savefig(file, dpi=110)
                pictures[name] = f"\n\n![{name}]({file.name})"
    sections, groups = [HEADING], found.groups

    def section(title, text, records, columns=None, picture="", rows=None):
        name = title.lower().replace("'", "").replace(" ", "_") + ".csv"
        if is_report:
            (out / name).unlink(missing_ok=True)
        if records:
            write_csv(records, out / name)
            rows = table(records, columns) if columns else rows
            shown = markdown(*rows) if rows else f"Values: {name}."
            sections.append(f"## {title}\n\n{text}\n\n{shown}{pictures.get(picture, '')}")

    section("Long Range Arena", LRA_TEXT, lra_records(groups), rows=lra_table(groups))
    for track, (title, text) in TRACKS.items():
        section(title, f"{text} {APART_TEXT}", *apart_of(track, groups))
    records = attentions_records(groups)
    section("Attentions by one recipe", ATTENTIONS_TEXT, records, ATTENTIONS, "attentions")
    records = landmarks_records(groups)
    section("Accuracy against landmarks", LANDMARKS_TEXT, records, LANDMARKS, "landmarks")
    section("Speed and memory", SPEED_TEXT, speed_records(groups), SPEED, "speed")
    section("Learning curves", CURVES_TEXT, curves_records(found), picture="curves")
    section("Unfinished runs", UNFINISHED_TEXT, unfinished_records(found), UNFINISHED)
    section("Skipped", SKIPPED_TEXT, skipped_records(found), SKIPPED)
    (out / "report.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


LRA_TEXT = (
    "Test accuracy in %: mean ± sample standard deviation over seeds, and the number of runs in "
    "brackets; † where they are not all of one commit without changes and one set of package "
    "versions. Only runs of LRA's recipe, on its files or, with ‡, on as many examples made by its "
    "procedure here. The paper's rows are those of Xiong et al. (2021), whose number of runs is "
    "not given."
)
APART_TEXT = "Accuracy in %, means over seeds as in the first table."
ATTENTIONS_TEXT = (
    "Test accuracy in % of runs that differ in the attention and its own options alone, and in the "
    "taps of the convolution of the values that it has, 0: none."
)
LANDMARKS_TEXT = "Test accuracy in % of runs that differ in the number of landmarks alone."
SPEED_TEXT = (
    "Medians over runs on the same hardware: training examples per second, peak memory (of the "
    "device where JAX reports it, else of the whole process), time from start to result."
)
SKIPPED_TEXT = "Files that could not be used."
UNFINISHED_TEXT = (
    "Folders with a config but no result yet. The command that began one goes on with it, or says "
    "why it can't; what a sweep's run said last is in a log beside its folder."
)
CURVES_TEXT = "Validation accuracy of every run; dashed where it is unfinished."


def lra_table(groups: list[Group]) -> tuple[list[str], list[list[str]]]:
    """The comparable results by attention (rows) and task (columns), beside the paper's."""
    comparable = [group for group in groups if group.first["comparable_to_lra"]]
    rows = []
    known = [*PAPER, *sorted({group.attention for group in comparable} - set(PAPER))]
    for attention in known:
        of_attention = [group for group in comparable if group.attention == attention]
        for label in dict.fromkeys(group.label for group in of_attention) or [attention]:
            cells = {group.task: group for group in of_attention if group.label == label}
            means = [cells[task].accuracy for task in LRA_TASKS[:5] if task in cells]
            rows.append(
                [
                    label,
                    "ours",
                    *(lra_cell(cells[task]) if task in cells else NONE for task in LRA_TASKS),
                    f"{statistics.fmean(means):.2f}" if len(means) == 5 else NONE,
                ]
            )
        if attention in PAPER:
            numbers = PAPER[attention]
            mean = statistics.fmean(numbers)
            rows.append([attention, "paper", *(f"{x:.2f}" for x in numbers), NONE, f"{mean:.2f}"])
    header = ["attention", "", *(TITLES[task] for task in LRA_TASKS), "average without Path-X"]
    return header, rows


def lra_cell(group: Group) -> str:
    """A group's accuracy, marked where its data are not LRA's own files."""
    return accuracy(score(group)) + ("" if group.first["source"] == "release" else "‡")


def accuracy(record: dict) -> str:
    """Mean ± standard deviation, number of runs, and a mark where more than the seed made them."""
    spread = "" if record["std"] is None else f" ± {record['std']:.{MAX_DIGITS}f}"
    mark = "" if record["one_code"] else "†"
    return f"{record['mean']:.{MAX_DIGITS}f}{spread} ({record['num_seeds']}){mark}"


def data(record: dict) -> str:
    """The source, and enough of the fingerprint to tell sets apart."""
    return f"{record['source']} {record['fingerprint'][:8]}"


# Of each table its columns: a field of the record and how it is written, or a function of it.
TASK = {"task": ("task", ""), "attention": ("attention", "")}
APART = {
    **TASK,
    "test accuracy": accuracy,
    "steps": ("steps", ","),
    "data": data,
    "why not comparable": ("why_not_comparable", ""),
}
MASKED = {
    **TASK,
    "loss (nats)": ("loss_nats", ".4f"),
    "by frequencies alone": ("unigram_nats", ".4f"),
    "bits a token": ("bits_per_token", ".4f"),
    "accuracy": accuracy,
    "hidden": ("share", ".0%"),
    "steps": ("steps", ","),
    "data": data,
}
COMPARED = {
    "test accuracy": accuracy,
    "comparable to LRA": lambda record: "yes" if record["comparable_to_lra"] else "no",
}
ATTENTIONS = {
    "task": ("task", ""),
    "recipe": ("recipe", ""),
    "attention": ("attention", ""),
    "convolution": ("convolution", ""),
    **COMPARED,
}
LANDMARKS = {**TASK, "landmarks": ("landmarks", ""), **COMPARED}
SPEED = {
    **TASK,
    "hardware": ("hardware", ""),
    "runs": ("num_runs", ""),
    "examples/s": ("examples_per_second", ",.1f"),
    "peak memory (MiB)": ("peak_memory_bytes", ",.0f", 2**20),
    "of": ("peak_memory_of", ""),
    "parameters": ("num_parameters", ","),
    "hours": ("wall_seconds", ".2f", 3600),
    "commit": ("commits", ""),
}
UNFINISHED = {
    "run": ("folder", ""),
    **TASK,
    "steps done": ("steps_done", ","),
    "of": ("steps", ","),
}
SKIPPED = {"file": ("file", ""), "why": ("why", "")}


def table(records: list[dict], columns: dict) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of records; what a record doesn't know is a dash."""

    def cell(record, column):
        if callable(column):
            return column(record)
        name, form, *unit = column
        value = record[name]
        none = value is None or value != value  # a mean over none is NaN
        return NONE if none else format(value / unit[0] if unit else value, form)

    return list(columns), [[cell(r, column) for column in columns.values()] for r in records]


def apart_of(track: str, groups: list[Group]) -> tuple[list[dict], dict]:
    """The records of a track's results that don't compare with LRA's, and their columns."""
    of_track = [group for group in groups if group.track == track]
    if track == "masked":
        return masked_records(of_track), MASKED
    return apart_records(of_track), APART


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; what would break a cell is escaped."""

    def line(cells):
        kept = (" ".join(c.split()).replace("|", "\\|").replace("<", "&lt;") for c in cells)
        return "| " + " | ".join(kept) + " |"

    return "\n".join([line(header), "|" + " --- |" * len(header), *map(line, rows)])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(exit_status("SIGINT"))
