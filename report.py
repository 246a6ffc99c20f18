"""Puts results into tables and plots: Markdown, CSV and PNG.

    python report.py runs/ [results/ ...] [--out=report]

Reads every result.json under the folders. Results that compare with LRA make the table beside the
paper's numbers; all others stand apart, with the reason, in a table for each track: the paper's
recipe on other data, tuned at its size, of another size, self-pretrained. Only runs that differ in
nothing but the seed are averaged. Unfinished runs are listed, and files that can't be read are
named and skipped.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path

from experiment.plots import (
    TITLES,
    by_hardware,
    landmark_series,
    median_of,
    plot_curves,
    plot_landmarks,
    plot_speed,
)
from experiment.read_runs import read_runs
from experiment.records import (
    apart_records,
    curves_records,
    landmarks_records,
    lra_records,
    masked_records,
    skipped_records,
    speed_records,
    unfinished_records,
    write_csv,
)
from experiment.results import LRA_TASKS, PAPER, Found, Group
from experiment.signals import exit_status
from experiment.tracks import TRACKS

PNG = ("landmarks.png", "speed.png", "curves.png")
MAX_DIGITS = 2  # of accuracies in %
NONE = "–"


def main(argv: list[str] | None = None) -> int:
    """Writes the report of a command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        "report.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders with runs, such as runs/")
    parser.add_argument("--out", type=Path, default=Path("report"), help="the report's folder")
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
    out = options.out.expanduser()
    try:
        write_report(found, out)
    except OSError as error:
        print(f"--out={options.out}: can't write there ({error})", file=sys.stderr)
        return 1
    num_runs = sum(len(group.runs) for group in found.groups)
    print(f"{num_runs} results in {out / 'report.md'}", file=sys.stderr)
    return 0


def write_report(found: Found, out: Path) -> None:
    """Writes report.md, a CSV for each of its tables (as data: `experiment.records`), the plots."""
    out.mkdir(parents=True, exist_ok=True)
    pictures = {}
    figures = (
        plot_landmarks(found.groups),
        plot_speed(found.groups),
        plot_curves(found.groups, found.unfinished),
    )
    for name, figure in zip(PNG, figures, strict=True):
        (out / name).unlink(missing_ok=True)  # one of an earlier report
        if figure:
            figure.savefig(out / name, dpi=110)
            pictures[name] = f"\n\n![{name.removesuffix('.png')}]({name})"
    sections = ["# Results"]
    groups = found.groups
    tracks = [
        (title, f"{text} {APART_TEXT}", *apart_of(track, groups), "")
        for track, (title, text) in TRACKS.items()
    ]
    for title, text, table, records, picture in (
        ("Long Range Arena", LRA_TEXT, lra_table(groups), lra_records(groups), ""),
        *tracks,
        (
            "Accuracy against landmarks",
            LANDMARKS_TEXT,
            landmarks_table(groups),
            landmarks_records(groups),
            PNG[0],
        ),
        ("Speed and memory", SPEED_TEXT, speed_table(groups), speed_records(groups), PNG[1]),
        ("Learning curves", CURVES_TEXT, None, curves_records(found), PNG[2]),
        (
            "Unfinished runs",
            UNFINISHED_TEXT,
            unfinished_table(found),
            unfinished_records(found),
            "",
        ),
        ("Skipped", SKIPPED_TEXT, skipped_table(found), skipped_records(found), ""),
    ):
        name = title.lower().replace("'", "").replace(" ", "_") + ".csv"
        write_csv(records, out / name)
        shown = markdown(*table) if table else f"Values: {name}."
        if records:
            sections.append(f"## {title}\n\n{text}\n\n{shown}{pictures.get(picture, '')}")
    (out / "report.md").write_text("\n\n".join(sections) + "\n")


LRA_TEXT = (
    "Test accuracy in %: mean ± sample standard deviation over seeds, and the number of runs in "
    "brackets; † where they are not all of one commit without changes and one set of package "
    "versions. Only runs of LRA's recipe, on its files or, with ‡, on as many examples made by its "
    "procedure here. The paper's rows are those of Xiong et al. (2021), whose number of runs is "
    "not given."
)
APART_TEXT = "Accuracy in %, means over seeds as in the first table."
LANDMARKS_TEXT = "Test accuracy in % of runs that differ in the number of landmarks alone."
SPEED_TEXT = (
    "Medians over runs on the same hardware: training examples per second, peak memory (of the "
    "device where JAX reports it, else of the whole process), time from start to result."
)
SKIPPED_TEXT = "Files that could not be used."
UNFINISHED_TEXT = "Folders with a config but no result yet; train.py goes on with them."
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
    return accuracy(group) + ("" if group.first["source"] == "release" else "‡")


def apart_of(track: str, groups: list[Group]) -> tuple[tuple, list[dict]]:
    """The table and the records of the results of a track that don't compare with LRA's."""
    of_track = [group for group in groups if group.track == track]
    if track == "masked":
        return masked_table(of_track), masked_records(of_track)
    return apart_table(of_track), apart_records(of_track)


def apart_table(groups: list[Group]) -> tuple[list[str], list[list[str]]]:
    """Results that don't compare with LRA's, each with the reason."""
    header = ["task", "attention", "test accuracy", "steps", "data", "why not comparable"]
    return header, [
        [
            TITLES[group.task],
            group.label,
            accuracy(group),
            f"{group.config['num_train_steps']:,}",
            f"{group.first['source']} {group.first['fingerprint'][:8]}",
            group.first["why_not_comparable"] or "no reason recorded",
        ]
        for group in groups
        if not group.first["comparable_to_lra"]
    ]


def masked_table(groups: list[Group]) -> tuple[list[str], list[list[str]]]:
    """Results on hidden tokens."""
    header = ["task", "attention", "loss (nats)", "by frequencies alone", "bits a token",
              "accuracy", "hidden", "steps", "data"]  # fmt: skip
    return header, [
        [
            TITLES[group.task],
            group.label,
            f"{group.token_loss:.4f}",
            f"{group.mean('unigram_nats'):.4f}",
            f"{group.mean('test_bits_per_token'):.4f}",
            accuracy(group),
            f"{group.config['masked']['share']:.0%}",
            f"{group.config['num_train_steps']:,}",
            f"{group.first['source']} {group.first['fingerprint'][:8]}",
        ]
        for group in groups
    ]


def landmarks_table(groups: list[Group]) -> tuple[list[str], list[list[str]]]:
    """Accuracy against landmarks where that alone differs."""
    header = ["task", "attention", "landmarks", "test accuracy", "comparable to LRA"]
    return header, [
        [
            TITLES[group.task],
            group.label,
            str(group.num_landmarks),
            accuracy(group),
            "yes" if group.first["comparable_to_lra"] else "no",
        ]
        for series in landmark_series(groups)
        for group in series
    ]


def speed_table(groups: list[Group]) -> tuple[list[str], list[list[str]]]:
    """Speed, memory and size of each group on each hardware."""
    header = ["task", "attention", "hardware", "runs", "examples/s", "peak memory (MiB)", "of",
              "parameters", "hours", "commit"]  # fmt: skip
    rows = []
    for group in groups:
        for hardware, runs in by_hardware(group).items():
            first = runs[0].result
            rate = median_of(runs, "examples_per_second")
            memory = median_of(runs, "peak_memory_bytes") / 2**20
            commits = sorted({run.result["commit"][:8] for run in runs})
            rows.append(
                [
                    TITLES[group.task],
                    group.label,
                    hardware,
                    str(len(runs)),
                    f"{rate:,.1f}" if rate else NONE,
                    f"{memory:,.0f}" if memory else NONE,
                    first.get("peak_memory_of") or NONE,
                    f"{first['num_parameters']:,}",
                    f"{median_of(runs, 'wall_seconds') / 3600:.2f}",
                    ", ".join(commits),
                ]
            )
    return header, rows


def unfinished_table(found: Found) -> tuple[list[str], list[list[str]]]:
    """Runs without a result, and how far they are."""
    header = ["run", "task", "attention", "steps done", "of"]
    return header, [
        [
            str(run.folder),
            TITLES[run.task],
            run.attention,
            f"{run.step:,}",
            f"{run.config['num_train_steps']:,}",
        ]
        for run in found.unfinished
    ]


def skipped_table(found: Found) -> tuple[list[str], list[list[str]]]:
    """What was not used, and why."""
    return ["file", "why"], [[str(path), why] for path, why in found.skipped]


def accuracy(group: Group) -> str:
    """Mean ± standard deviation, number of runs, and a mark where more than the seed made them."""
    spread = "" if math.isnan(group.deviation) else f" ± {group.deviation:.{MAX_DIGITS}f}"
    return f"{group.accuracy:.{MAX_DIGITS}f}{spread} ({len(group.runs)})" + (
        "" if group.of_one_code else "†"
    )


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
