"""A run's folder: its default name, its config.json, and whose it is."""

import argparse
import fcntl
import fnmatch
import hashlib
import json
import os
import re
import time
from pathlib import Path

import ml_collections

import lra_tasks
from configs import base

MAX_NAME = 150  # of a folder's name; file systems allow 255 bytes


# Fields that may change when a run goes on: where files lie, how often it reports and saves, how a
# batch is cut and what is computed twice to fit the devices. A result changes by rounding only.
MAY_CHANGE = (
    "accumulate_steps",
    "checkpoint_every",
    "log_every",
    "mesh.data",
    "mesh.sequence",
    "model.remat",
    "num_workers",
    "task.data_dir",
    "task.source",  # the data's fingerprint may not
    "task.tokenizer",
)


class WorkdirError(ValueError):
    """The workdir can't be used for this run; the message says why and what to do."""


def default_workdir(config_file: str, overrides: dict[str, object]) -> Path:
    """runs/<config>[,<override>=<value>...] for `--config=<config_file>` and its overrides.

    Where the cache lies is a machine's own, and no part of the name.
    """
    path, _, variant = config_file.partition(":")
    name = Path(path).stem + (f"-{variant}" if variant else "")
    parts = [name, *(f"{k}={v}" for k, v in sorted(overrides.items()) if k != "cache_dir")]
    full = re.sub(r"[^\w.,=+-]", "_", ",".join(parts))
    if len(full.encode()) > MAX_NAME:
        digest = hashlib.sha256(full.encode()).hexdigest()[:12]
        full = f"{full.encode()[: MAX_NAME - 13].decode(errors='ignore')}-{digest}"
    return Path("runs") / full


def recorded(config: ml_collections.ConfigDict) -> dict:
    """A config as a run's files hold it: without cache_dir, which is a machine's own."""
    fields = json.loads(json.dumps(config.to_dict()))  # tuples become lists
    del fields["cache_dir"]
    return fields


def with_defaults(config: dict, defaults: dict | None = None) -> dict:
    """A recorded config; what is newer than its run has its default, which is what was before."""
    if defaults is None:
        defaults = recorded(base.get_config())
    parts = {
        name: with_defaults(value, defaults[name])
        for name, value in config.items()
        if isinstance(value, dict) and isinstance(defaults.get(name), dict)
    }
    return defaults | config | parts


def claim(workdir: Path, config: ml_collections.ConfigDict):
    """Creates or re-enters a workdir for a config; returns a lock to hold while the run lasts.

    A finished run's may be one that can't be written to: there is no lock then.

    Raises:
      WorkdirError: the workdir belongs to a run with another config (the differing fields are
        named), is in use by another process, can't be written, or holds something else; or it has
        a name that checkpoints can't have.
    """
    check_name(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        if read_result(workdir) is not None:  # finished: it is shown, and nothing written
            check_same_config(workdir, config)
            return None
        raise WorkdirError(f"--workdir={workdir}: can't write there ({error})") from error
    try:
        _lock(lock)
    except OSError as error:
        lock.close()
        why = f"can't be locked ({error}); choose one where files can be"
        if isinstance(error, BlockingIOError):
            why = "another process is running in it"
        raise WorkdirError(f"--workdir={workdir}: {why}") from error
    try:
        record_config(workdir, config)
    except WorkdirError:
        lock.close()
        raise
    return lock


def check_name(workdir: Path) -> None:
    """Raises WorkdirError for a name that checkpoints can't have."""
    if problem := lra_tasks.disk.path_problem(workdir):
        raise WorkdirError(f"--workdir={workdir}: {problem}")
    full = str(workdir.absolute())
    if not fnmatch.fnmatchcase(full, full):  # orbax takes the path for a pattern
        raise WorkdirError(
            f"--workdir={workdir}: checkpoints below {full} could not be read again, for its "
            "[brackets]; choose a path without"
        )


def folder_argument(text: str) -> Path:
    """A folder as a program of argparse's is given it, with a user's own for ~ or ~name."""
    try:
        return lra_tasks.disk.expand_user(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _lock(file, tries=5):
    """Locks a file, which another process's `is_running` may hold for a moment."""
    for left in reversed(range(tries)):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not left:
                raise
            time.sleep(0.05)


def record_config(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Writes config.json, or compares the one that is there.

    Raises:
      WorkdirError: as `claim` does.
    """
    config_path = workdir / "config.json"
    if config_path.exists():
        check_same_config(workdir, config)
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        ours = ".lock", _part_of(config_path).name
        others = sorted(path.name for path in workdir.iterdir() if path.name not in ours)
        if "checkpoints" in others:
            raise WorkdirError(
                f"--workdir={workdir}: holds checkpoints, but the config.json of their run is "
                "missing: put it back, or choose another --workdir"
            )
        if others:
            raise WorkdirError(
                f"--workdir={workdir}: holds {', '.join(others[:5])} but no config.json, so it is "
                "not a run's folder; choose an empty or new one"
            )
    except OSError as error:
        raise WorkdirError(f"--workdir={workdir}: can't write there ({error})") from error
    _write(config_path, (json.dumps(recorded(config), indent=2) + "\n").encode())


def keep_tokenizer(workdir: Path, tokenizer: Path | None) -> None:
    """Copies the vocabulary of a task, if it has one, into the run's folder.

    That of a run which has saved a step stays; of one that has not, the data may be others by now.
    """
    if tokenizer is None:
        return
    kept, vocabulary = workdir / tokenizer.name, tokenizer.read_bytes()
    if kept.exists() and (steps_saved(workdir) or kept.read_bytes() == vocabulary):
        return
    _write(kept, vocabulary)


def tokenizer_of(config: ml_collections.ConfigDict, workdir: Path) -> str:
    """`config.task.tokenizer`; where that is gone, the copy in the folder of a run under way."""
    tokenizer, kept = config.task.tokenizer, workdir / lra_tasks.store.VOCABULARY
    is_gone = tokenizer and not os.path.exists(os.path.expanduser(tokenizer))
    return str(kept) if is_gone and kept.exists() and steps_saved(workdir) else tokenizer


def steps_saved(workdir: Path) -> int:
    """The latest step that a run's folder has a checkpoint of; 0 if there is none."""
    names = (path.parent.name for path in (workdir / "checkpoints").glob("*/record"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def check_same_config(
    workdir: Path, config: ml_collections.ConfigDict, begun_with: dict | None = None
) -> None:
    """Raises WorkdirError if what a run was begun with is of another recipe than `config`.

    That is `begun_with`, as its checkpoints have it, or what config.json says, and its result.
    """
    if begun_with is None:
        begun_with = saved_config(workdir)
        if finished := read_result(workdir):  # config.json may have been edited since
            check_same_config(workdir, config, finished["config"])
    if different := differing_recipe(begun_with, config):
        advice = "That run took no step: delete its folder, or choose another --workdir."
        if is_begun(workdir):
            advice = (
                "Give the same config to resume that run, or another --workdir to start a new one."
            )
        raise WorkdirError(
            f"--workdir={workdir}: belongs to a run with another config. {advice} "
            "Differing fields:\n"
            + "\n".join(
                f"  config.{name}: {old!r} there, {new!r} now"
                for name, (old, new) in different.items()
            )
        )


def differing_recipe(saved: dict, config: ml_collections.ConfigDict) -> dict[str, tuple]:
    """Fields in which a recorded config is of another recipe than `config`: the two values."""
    saved = {name: value for name, value in saved.items() if name != "cache_dir"}  # of old runs
    different = differing_fields(with_defaults(saved), recorded(config))
    return {name: values for name, values in different.items() if name not in MAY_CHANGE}


def is_begun(workdir: Path) -> bool:
    """Whether the run of a folder has saved or reported anything."""
    metrics = workdir / "metrics.jsonl"
    return any(workdir.glob("checkpoints/*")) or (metrics.exists() and metrics.stat().st_size > 0)


def is_running(workdir: Path) -> bool:
    """Whether a process has claimed a workdir."""
    try:
        with (workdir / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock there, or none can be: the run says so
        pass
    return False


def read_result(workdir: Path) -> dict | None:
    """The result of a finished run; None where there is none, or no whole one."""
    try:
        result = read_object(workdir / "result.json")
    except ValueError:
        return None
    config = result.get("config")
    is_whole = isinstance(config, dict) and isinstance(config.get("task"), dict)
    return result if is_whole and {"test_accuracy", "fingerprint"} <= result.keys() else None


def is_of_other_data(result: dict) -> bool:
    """Whether its task's VERSION was raised since; older results don't say of which they are."""
    if (version := result.get("data_version")) is None:
        return False
    return version != lra_tasks.task_module(result["config"]["task"]["name"]).VERSION


def strict_json(value, indent: int | None = None) -> str:
    """JSON as its standard has it: numbers that are not finite become null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda name: None)
    return json.dumps(finite, indent=indent, allow_nan=False)


def write_result(workdir: Path, result: dict) -> None:
    """Writes result.json, whole or not at all."""
    _write(workdir / "result.json", (strict_json(result, indent=2) + "\n").encode())


def _part_of(path):
    return path.with_name(f".{path.name}.tmp")


def _write(path, data):
    temporary = _part_of(path)
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise WorkdirError(f"{path}: can't be written ({error})") from error


def recorded_accumulate_steps(workdir: Path) -> int:
    """The config.accumulate_steps that a run was begun with; runs used to record 0 resolved."""
    saved = saved_config(workdir).get("accumulate_steps")
    return saved if type(saved) is int else 0


def saved_config(workdir: Path) -> dict:
    """A run's config.json; WorkdirError if there is none that can be read."""
    path = workdir / "config.json"
    if not path.is_file():
        raise WorkdirError(f"--workdir={workdir}: no config.json there, so not a run's folder")
    try:
        return read_object(path)
    except ValueError as error:
        raise WorkdirError(f"{path}: {error}") from error


def read_object(path: Path) -> dict:
    """The object that a JSON file holds; a ValueError says, without the path, why there is none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def differing_fields(old: dict, new: dict, prefix: str = "") -> dict[str, tuple]:
    """Fields, dotted, whose values differ between two nested dicts: name -> (old, new)."""
    different = {}
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name, "absent"), new.get(name, "absent")
        if isinstance(a, dict) and isinstance(b, dict):
            different |= differing_fields(a, b, f"{prefix}{name}.")
        elif a != b:
            different[prefix + name] = (a, b)
    return different
