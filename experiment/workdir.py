"""A run's folder: its default name, its config.json, and whose it is."""

import fcntl
import hashlib
import json
import os
import re
from pathlib import Path

import ml_collections

MAX_NAME = 150  # of a folder's name; file systems allow 255 bytes


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
    if len(full) > MAX_NAME:
        digest = hashlib.sha256(full.encode()).hexdigest()[:12]
        full = f"{full[: MAX_NAME - 13]}-{digest}"
    return Path("runs") / full


def recorded(config: ml_collections.ConfigDict) -> dict:
    """A config as a run's files hold it: without cache_dir, which is a machine's own."""
    fields = config.to_dict()
    del fields["cache_dir"]
    return fields


def claim(workdir: Path, config: ml_collections.ConfigDict):
    """Creates or re-enters a workdir for a config; returns a lock to hold while the run lasts.

    Raises:
      WorkdirError: the workdir belongs to a run with another config (the differing fields are
        named), is in use by another process, can't be written, or holds something else.
    """
    config_path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise WorkdirError(f"--workdir={workdir}: can't write there ({error})") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise WorkdirError(f"--workdir={workdir}: another process is running in it") from error
    if not config_path.exists():
        others = sorted(p.name for p in workdir.iterdir() if p.name not in (".lock", ".config.tmp"))
        if others:
            raise WorkdirError(
                f"--workdir={workdir}: holds {', '.join(others[:5])} but no config.json, so it is "
                "not a run's folder; choose an empty or new one"
            )
        temporary = workdir / ".config.tmp"
        temporary.write_text(json.dumps(recorded(config), indent=2) + "\n")
        os.replace(temporary, config_path)
        return lock
    check_same_config(workdir, config)
    return lock


def check_same_config(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Raises WorkdirError if the workdir's config.json is not that of `config`'s run."""
    config_path = workdir / "config.json"
    try:
        saved = json.loads(config_path.read_text())
    except ValueError as error:
        raise WorkdirError(f"{config_path}: not readable as JSON ({error})") from error
    different = differing_fields(saved, json.loads(json.dumps(recorded(config))))
    if different:
        raise WorkdirError(
            f"--workdir={workdir}: belongs to a run with another config. Differing fields:\n"
            + "\n".join(
                f"  config.{name}: {old!r} there, {new!r} now"
                for name, (old, new) in different.items()
            )
            + "\nGive the same config to resume that run, or another --workdir to start a new one."
        )


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
