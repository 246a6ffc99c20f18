"""Folders of runs as train.py leaves them, for the tests of reports."""

import contextlib
import copy
import csv
import importlib
import json

from flax import nnx

import lra_tasks
import report
from experiment.checkpoints import Checkpoints
from experiment.model import make_model
from experiment.read_runs import read_runs
from experiment.training import initial_state, make_optimizer
from experiment.workdir import record_config

# The least that counts as the result of a finished run.
RESULT = {"test_accuracy": 0.5, "fingerprint": "f" * 64, "config": {"task": {}}}


def write_run(runs, name, accuracy=0.5, run_config=None, task="text", reports=(), **result):
    """A finished run's folder with a result as train.py writes it; the keywords change it."""
    config = copy.deepcopy(
        run_config or importlib.import_module(f"configs.lra_{task}").get_config()
    )
    with config.unlocked():
        config.seed = result.get("seed", config.seed)
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    values = {
        "test_accuracy": accuracy,
        "num_parameters": 1_000,
        "wall_seconds": 3_600.0,
        "examples_per_second": 100.0,
        "peak_memory_bytes": 2**30,
        "peak_memory_of": "process",
        "task": config.task.name,
        "source": "release",
        "fingerprint": "f" * 64,
        "comparable_to_lra": True,
        "why_not_comparable": "",
        "seed": config.seed,
        "commit": "c" * 40,
        "versions": {"jax": "0.10.2"},
        "hardware": {"platform": "gpu", "device": "H100", "num_devices": 1},
        "config": config.to_dict(),
    }
    (folder / "result.json").write_text(json.dumps(values | result))
    lines = [json.dumps({"step": s, "split": "validation", "accuracy": a, "loss": 1.0})
             for s, a in reports]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def write_untrained(workdir, config, accuracies=(0.5,)):
    """A run's folder with checkpoints of its initial parameters, from step 3 on; the model."""
    record_config(workdir, config)
    model = make_model(config.model, lra_tasks.without_data(config.task), config.seed)
    state = initial_state(make_optimizer(config), nnx.state(model))
    progress = {"fingerprint": lra_tasks.load(config.task).fingerprint}
    with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
        for step, accuracy in enumerate(accuracies, 3):
            checkpoints.save(step, state, progress, accuracy)
    return model


def changed(task="text", **fields):
    """A task's config with fields changed: `model__num_landmarks=32` is model.num_landmarks."""
    config = importlib.import_module(f"configs.lra_{task}").get_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def rows_of(name, runs):
    """Rows of one of report.py's tables of the runs in a folder, as dicts."""
    found = read_runs([runs])
    if name == "lra":
        header, rows = report.lra_table(found.groups)
    else:
        records = getattr(report, f"{name}_records")
        records = records(found if name in ("unfinished", "skipped") else found.groups)
        header, rows = report.table(records, getattr(report, name.upper()))
    return [dict(zip(header, row, strict=True)) for row in rows]


def data_of(runs, out, name):
    """A CSV of a report as strict readers see it: a dict a row, as many cells as columns."""
    make_report(runs, out)
    with (out / f"{name}.csv").open(newline="") as file:
        header, *rows = csv.reader(file, strict=True)
    assert len(set(header)) == len(header) and all(header)
    return [dict(zip(header, row, strict=True)) for row in rows]


def make_report(runs, out):
    assert report.main([str(runs), f"--out={out}"]) == 0
    return (out / "report.md").read_text()
