"""Reads runs from their folders; what is broken or foreign is named and skipped."""

import hashlib
import json
import math
import os
from pathlib import Path

from configs import base
from configs.reading import fields
from experiment.results import TASKS, Found, Run, group_runs, key_of
from experiment.workdir import read_object, recorded, with_defaults

# The fields of a result.json that are used, and what they must be.
KINDS = {
    "task": str,
    "source": str,
    "fingerprint": str,
    "comparable_to_lra": bool,
    "why_not_comparable": str,
    "test_accuracy": float,
    "seed": int,
    "num_parameters": int,
    "wall_seconds": float,
    "commit": str,
    "hardware": dict,
    "config": dict,
}
OPTIONAL = {
    "examples_per_second": float,
    "peak_memory_bytes": int,
    "peak_memory_of": str,
    "test_loss": float,
    "test_token_loss": float,
    "test_bits_per_token": float,
    "unigram_nats": float,
    "init_from": dict,
    "earlier_starts": list,
}


def read_runs(paths: list[Path]) -> Found:
    """Reads every run under the paths; what can't be read is skipped and named.

    Raises:
      FileNotFoundError: a path that is not a folder.
    """
    finished, unfinished, skipped = [], [], []
    seen: set[str] = set()
    for folder in sorted(folder for path in paths for folder in _folders(path, seen, skipped)):
        shown = os.fsencode(folder).decode(errors="backslashreplace")
        if shown != str(folder):
            skipped.append((Path(shown), "its name is not UTF-8: rename it"))
            continue
        try:
            if (folder / "result.json").exists():
                finished.append(_read_finished(folder, skipped))
            else:
                unfinished.append(_read_unfinished(folder, skipped))
        except _BadFile as error:
            skipped.append((error.path, error.why))
    return Found(group_runs(finished, skipped), unfinished, skipped)


class _BadFile(Exception):
    def __init__(self, path, why):
        self.path, self.why = path, why


def _folders(path, seen, skipped):
    """The folders of runs; what is linked, once."""
    if not os.path.isdir(path):  # where a Path's own raise for names that are too long
        found = "not a folder" if os.path.exists(path) else "no such folder"
        raise FileNotFoundError(f"{path}: {found}; expected one with runs, such as runs/")

    def note(error):
        skipped.append((Path(error.filename), f"not readable ({error.strerror})"))

    for folder, subfolders, files in os.walk(path, onerror=note, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        if "result.json" in files or "config.json" in files:
            yield Path(folder)
        if "checkpoints" in subfolders:
            subfolders.remove("checkpoints")


def _read_finished(folder, skipped):
    path = folder / "result.json"
    result = _read_json(path)
    for name, kind in (KINDS | OPTIONAL).items():
        value = result.get(name)
        if value is None and name in OPTIONAL:
            continue
        _expect(path, name in result, f"not a result of train.py: {name} is missing")
        _expect(path, _is(value, kind), f"{name}={value!r}: expected {kind.__name__}")
    _expect(path, 0 <= result["test_accuracy"] <= 1, "test_accuracy is not between 0 and 1")
    for start in result.get("earlier_starts") or []:
        right = isinstance(start, dict) and isinstance(start.get("hardware"), dict)
        _expect(path, right and "commit" in start, "earlier_starts are not a run's")
    config = _checked_config(path, result["config"])
    _expect(path, config["seed"] == result["seed"], "seed and config.seed differ")
    _expect(path, config["task"]["name"] == result["task"], "task and config.task.name differ")
    if config["init_from"] and result.get("init_from"):
        config |= {"init_from": _source_name(path, result["init_from"])}
    return Run(folder, result, config, _read_reports(folder / "metrics.jsonl", skipped))


def _source_name(path, source):
    """What a run began with, in words that are equal for runs that differ in seeds and folders."""
    _expect(path, isinstance(source.get("config"), dict), "init_from is not a record of a run")
    fingerprint = source.get("fingerprint")
    _expect(path, isinstance(fingerprint, str | None), "init_from.fingerprint is no text")
    config = _checked_config(path, source["config"])
    made_by, steps = [key_of(config), fingerprint], f"{config['num_train_steps']} steps"
    if source.get("finished") is False:  # then seeds are not at the same of their steps
        made_by, steps = [*made_by, source.get("step")], f"{source.get('step')} of {steps}"
    digest = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:6]
    return f"{config['name']} {config['objective']} {steps} {digest}"


def _read_unfinished(folder, skipped):
    path = folder / "config.json"
    config = _checked_config(path, _read_json(path))
    return Run(folder, None, config, _read_reports(folder / "metrics.jsonl", skipped))


def _read_json(path):
    try:
        found = read_object(path)
        json.dumps(found, ensure_ascii=False).encode()  # JSON may hold halves of characters
        return found
    except ValueError as error:
        raise _BadFile(path, str(error)) from error


def _checked_config(path, config):
    """The config, with the defaults of fields that are newer than the run."""
    for name in ("task", "model"):
        _expect(path, isinstance(config.get(name), dict), f"not a run's: no config.{name}")
    known = fields(config)
    for name in ("seed", "num_train_steps", "model.num_landmarks", "task.name", "model.attention"):
        _expect(path, name in known, f"not a run's: no config.{name}")
    config = with_defaults(config)
    known = fields(config)
    for name, default in fields(recorded(base.get_config())).items():
        value, kind = known.get(name), type(default)
        _expect(
            path,
            _is(value, kind),
            f"not a run's: config.{name}={value!r}, expected {kind.__name__}",
        )
    name = known["task.name"]
    _expect(path, name in TASKS, f"config.task.name={name!r}: expected one of {', '.join(TASKS)}")
    return config


def _is(value, kind):
    """Whether a value of JSON is of a kind; numbers are those that can be divided and drawn."""
    if kind is int:
        return type(value) is int and abs(value) < 2**63
    if kind is float:
        return type(value) in (int, float) and abs(value) < 1e300  # and so no NaN
    return isinstance(value, kind)


def _expect(path, good, why):
    if not good:
        raise _BadFile(path, why)


def _read_reports(path, skipped):
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        skipped.append((path, f"not readable ({error})"))
        return []
    reports, bad = [], 0
    for line in text.splitlines():
        try:
            report = json.loads(line)
            numbers = {name: value for name, value in report.items() if name != "split"}
            if not all(type(value) in (int, float, type(None)) for value in numbers.values()):
                raise ValueError
            # A number that was none stands as null, and as NaN in older files.
            numbers = {k: v for k, v in numbers.items() if v is not None and math.isfinite(v)}
            reports.append(numbers | {"step": int(numbers["step"]), "split": str(report["split"])})
        except (ValueError, KeyError, AttributeError, OverflowError, RecursionError):
            bad += 1
    if bad:
        skipped.append((path, f"{bad} unreadable lines of {bad + len(reports)} were left out"))
    return reports
