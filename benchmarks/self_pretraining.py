"""What self-pretraining gains on Text at LRA's small size: from scratch against pretrained.

    python -m benchmarks.self_pretraining [--seeds=0,1] [--attentions=nystrom,linear]

For each attention and seed: a run on hidden tokens of the first 1,000 bytes of the package's
reviews, one on labels that begins with its encoder, and one on labels from scratch with the same
steps and rate. The same command goes on with what is unfinished, wherever it was stopped; at the
end it writes results.csv and curves.png, and copies each run's config, reports and result beside
them. Give all runs other fields after `--`: -- --config.task.num_train=1000.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.command_line import (
    count,
    make_parser,
    one_of,
    positive,
    run,
    seed,
    several,
    writable_folder,
)
from experiment.signals import STOPPED, StopSignals
from nystrom import ATTENTIONS

ROOT = Path(__file__).resolve().parent.parent
KEPT = ("config.json", "metrics.jsonl", "result.json")
COLUMNS = ("attention", "seed", "phase", "steps", "validation_accuracy", "test_accuracy",
           "validation_loss", "test_loss", "unigram_nats", "wall_seconds")  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Runs what is missing and writes the results; returns the exit status."""
    parser = make_parser(__doc__)
    attentions = several(one_of(ATTENTIONS))
    parser.add_argument("--attentions", type=attentions, default="nystrom,linear")
    parser.add_argument("--seeds", type=several(seed), default="0,1")
    parser.add_argument("--pretrain_steps", type=count, default=600)
    parser.add_argument("--finetune_steps", type=count, default=240, help="and from scratch")
    parser.add_argument("--pretrain_rate", type=positive, default=2e-3)
    parser.add_argument("--finetune_rate", type=positive, default=1e-3, help="and from scratch")
    parser.add_argument("--evaluations", type=count, default=4, help="in each run")
    parser.add_argument("--num_validation", type=count, default=800, help="reviews to select by")
    parser.add_argument("--runs", type=writable_folder, default="runs/self_pretraining")
    parser.add_argument("--out", type=writable_folder, default="results/self_pretraining")
    parser.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    runs = plan(options)
    for number, (name, given) in enumerate(runs.items(), 1):
        print(f"run {number} of {len(runs)}: {name}", flush=True)
        start = time.monotonic()
        workdir = from_root(options.runs) / name
        command = [sys.executable, "train.py", *given, f"--workdir={workdir}"]
        # One that is finished says so, or refuses other fields than its own.
        with StopSignals(interrupting=True):  # which train.py gets too, and saves
            status = subprocess.run(command, cwd=ROOT).returncode
        if status:
            after = "" if status in STOPPED else "once that is mended, "
            print(f"{name} ended with {status}; {after}the same command goes on", file=sys.stderr)
            return status
        print(f"{name} took {time.monotonic() - start:.0f} s", flush=True)
    write_results(options.runs, list(runs), options.out)
    return 0


def from_root(folder: Path) -> Path:
    """A folder as train.py is told of it, which runs in the repository's root."""
    return Path(os.path.relpath(folder, ROOT))


def plan(options) -> dict[str, list[str]]:
    """What train.py is given for each run, by its name, in the order in which they can run."""
    runs = {}
    for number in options.seeds:
        for attention in options.attentions:
            for phase in ("pretrain", "finetune", "scratch"):
                is_masked = phase == "pretrain"
                steps = options.pretrain_steps if is_masked else options.finetune_steps
                rate = options.pretrain_rate if is_masked else options.finetune_rate
                fields = {
                    "seed": number,
                    "model.attention": attention,
                    "num_train_steps": steps,
                    "warmup_steps": steps // 10,
                    "eval_every": -(-steps // options.evaluations),
                    "checkpoint_every": 50,
                    "log_every": 10,
                    "learning_rate": rate,
                    "task.source": "package",
                    "task.num_validation": options.num_validation,
                }
                if is_masked:
                    fields |= {"objective": "masked", "masked.head": "own"}
                if phase == "finetune":
                    source = f"{attention}-seed{number}-pretrain"
                    fields["init_from"] = from_root(options.runs) / source
                given = [f"--config.{field}={value}" for field, value in fields.items()]
                runs[f"{attention}-seed{number}-{phase}"] = [
                    "--config=configs/lra_text.py:1k",
                    *given,
                    *options.overrides,
                ]
    return runs


def write_results(runs: Path, names: list[str], out: Path) -> None:
    """The table, the curves and what makes them, of finished runs."""
    out.mkdir(parents=True, exist_ok=True)
    results = {name: json.loads((runs / name / "result.json").read_text()) for name in names}
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for name, result in results.items():
            attention, seed, phase = name.split("-")
            about = {"attention": attention, "seed": seed.removeprefix("seed"), "phase": phase}
            writer.writerow(result | about | {"steps": result["num_train_steps"]})
    for name in names:
        (out / name).mkdir(exist_ok=True)
        for file in KEPT:
            shutil.copy(runs / name / file, out / name / file)
    make_figure(runs, results).savefig(out / "curves.png", dpi=110)
    print((out / "results.csv").read_text(), end="")


def make_figure(runs: Path, results: dict):
    """Validation curves: loss on hidden tokens, accuracy and loss on labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    whats = (
        ("pretrain", "loss", "hidden tokens: validation loss (nats)"),
        ("labels", "accuracy", "labels: validation accuracy"),
        ("labels", "loss", "labels: training loss (nats)"),
    )
    attentions = list(dict.fromkeys(name.split("-")[0] for name in results))
    for axes, (kind, value, title) in zip(panels, whats, strict=True):
        shown = set()
        for name, result in results.items():
            attention, _, phase = name.split("-")
            if (phase == "pretrain") != (kind == "pretrain"):
                continue
            lines = (runs / name / "metrics.jsonl").read_text().splitlines()
            split = "train" if title.endswith("training loss (nats)") else "validation"
            points = [line for line in map(json.loads, lines) if line["split"] == split]
            label = attention if kind == "pretrain" else f"{attention}, {phase}"
            axes.plot(
                [point["step"] for point in points],
                [point[value] for point in points],
                color=f"C{attentions.index(attention)}",
                ls="--" if phase == "scratch" else "-",
                label=None if label in shown else label,
            )
            shown.add(label)
            if kind == "pretrain":
                level = result["unigram_nats"]
        if kind == "pretrain":
            axes.axhline(level, ls=":", color="grey", label="bytes' frequencies alone")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("training step")
        axes.legend(fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    run(main)
