"""The report's tables as data: a value a column, numbers as numbers, for CSV.

A record is a dict of column -> value; None is an empty cell, and so is a number that is not finite.
Accuracies are in %, `std` is the sample standard deviation over seeds, empty for a single run.
"""

import csv
import math
import statistics
from pathlib import Path

from experiment.comparisons import (
    attention_names,
    attention_series,
    landmark_series,
    recipe_names,
    taps,
)
from experiment.results import PAPER, TASKS, TITLES, Found, Group, Run, unfinished_label

DIGITS = 4  # after the point of an accuracy in %: 1e-6 of the test set


def score(group: Group) -> dict:
    """A group's test accuracy; `one_code`: all runs of one commit, without changes."""
    return {
        "mean": round(group.accuracy, DIGITS),
        "std": None if math.isnan(group.deviation) else round(group.deviation, DIGITS),
        "num_seeds": len(group.runs),
        "one_code": group.of_one_code,
    }


def lra_records(groups: list[Group]) -> list[dict]:
    """The comparable results, then the paper's, whose number of seeds is not known."""
    ours = [
        {
            "task": TITLES[group.task],
            "attention": group.label,
            "from": "ours",
            "source": group.first["source"],
            **score(group),
        }
        for group in groups
        if group.first["comparable_to_lra"]
    ]
    unknown = {"source": "release", "std": None, "num_seeds": None, "one_code": None}
    return ours + [
        {"task": TITLES[task], "attention": name, "from": "paper", "mean": mean, **unknown}
        for name, means in PAPER.items()
        for task, mean in zip(TASKS, means, strict=False)
    ]


def apart_records(groups: list[Group]) -> list[dict]:
    """The results that don't compare with LRA's."""
    return [
        {
            "task": TITLES[group.task],
            "attention": group.label,
            **score(group),
            "steps": group.config["num_train_steps"],
            "source": group.first["source"],
            "fingerprint": group.first["fingerprint"],
            "why_not_comparable": group.first["why_not_comparable"] or "no reason recorded",
        }
        for group in groups
        if not group.first["comparable_to_lra"]
    ]


def masked_records(groups: list[Group]) -> list[dict]:
    """The results on hidden tokens; `mean` and `std` are of the accuracy in guessing them."""
    return [
        {
            "task": TITLES[group.task],
            "attention": group.label,
            "loss_nats": group.token_loss,
            "unigram_nats": group.mean("unigram_nats"),
            "bits_per_token": group.mean("test_bits_per_token"),
            **score(group),
            "share": group.config["masked"]["share"],
            "steps": group.config["num_train_steps"],
            "source": group.first["source"],
            "fingerprint": group.first["fingerprint"],
        }
        for group in groups
    ]


def attentions_records(groups: list[Group]) -> list[dict]:
    """Accuracy of attentions that share a recipe."""
    all_series = attention_series(groups)
    return [
        {
            "task": TITLES[group.task],
            "recipe": recipe,
            "attention": name,
            "convolution": taps(group),
            **score(group),
            "comparable_to_lra": group.first["comparable_to_lra"],
        }
        for series, recipe in zip(all_series, recipe_names(all_series), strict=True)
        for group, name in zip(series, attention_names(series), strict=True)
    ]


def landmarks_records(groups: list[Group]) -> list[dict]:
    """Accuracy against landmarks where that alone differs."""
    return [
        {
            "task": TITLES[group.task],
            "attention": group.label,
            "landmarks": group.num_landmarks,
            **score(group),
            "comparable_to_lra": group.first["comparable_to_lra"],
        }
        for series in landmark_series(groups)
        for group in series
    ]


def shortened(commit: str) -> str:
    """A commit's first eight digits, and whether files differed from it."""
    digits, plus, changes = commit.partition("+")
    return digits[:8] + plus + changes


def speed_records(groups: list[Group]) -> list[dict]:
    """Medians of each group on each hardware."""
    return [
        {
            "task": TITLES[group.task],
            "attention": group.label,
            "hardware": hardware,
            "num_runs": len(runs),
            "examples_per_second": median_of(runs, "examples_per_second") or None,
            "peak_memory_bytes": median_of(runs, "peak_memory_bytes") or None,
            "peak_memory_of": runs[0].result.get("peak_memory_of"),
            "num_parameters": runs[0].result["num_parameters"],
            "wall_seconds": median_of(runs, "wall_seconds"),
            "commits": " ".join(sorted({shortened(run.result["commit"]) for run in runs})),
        }
        for group in groups
        for hardware, runs in by_hardware(group).items()
    ]


def curves_records(found: Found) -> list[dict]:
    """Every point of every run's validation curve."""
    runs = [(group.label, run) for group in found.groups for run in group.runs]
    runs += [(unfinished_label(run), run) for run in found.unfinished]
    return [
        {
            "task": TITLES[run.task],
            "attention": label,
            "seed": run.config["seed"],
            "folder": run.folder,
            "step": report["step"],
            "accuracy": round(100 * report["accuracy"], DIGITS) if "accuracy" in report else None,
            "loss": report.get("loss"),
        }
        for label, run in runs
        for report in run.reports
        if report["split"] == "validation"
    ]


def unfinished_records(found: Found) -> list[dict]:
    """Runs without a result, and how far they are."""
    return [
        {
            "folder": run.folder,
            "task": TITLES[run.task],
            "attention": run.attention,
            "steps_done": run.step,
            "steps": run.config["num_train_steps"],
        }
        for run in found.unfinished
    ]


def skipped_records(found: Found) -> list[dict]:
    """What was not used, and why."""
    return [{"file": path, "why": why} for path, why in found.skipped]


def write_csv(records: list[dict], path: Path) -> None:
    """Writes a CSV file, its columns those of the records."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in r.items()} for r in records)


def _cell(value):
    if isinstance(value, bool):
        return str(value).lower()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def by_hardware(group: Group) -> dict[str, list[Run]]:
    """A group's runs by what they ran on: times of different machines are never mixed."""
    found = {}
    for run in group.runs:
        names = dict.fromkeys(_hardware_name(start["hardware"]) for start in run.starts)
        found.setdefault(", then ".join(names), []).append(run)
    return found


def _hardware_name(hardware: dict) -> str:
    device = hardware.get("device", "unknown")
    if hardware.get("platform") == "cpu":
        device = f"{hardware.get('processor', device)} ({hardware.get('num_cores', '?')} cores)"
    return f"{hardware.get('num_devices', 1)} x {device}"


def median_of(runs: list[Run], name: str) -> float:
    """The median of a field of the results that have it; 0 where none has."""
    return statistics.median([run.result[name] for run in runs if run.result.get(name)] or [0])
