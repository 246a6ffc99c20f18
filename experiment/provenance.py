"""What made a result: code, versions, hardware, and how the run departs from LRA's recipe."""

import contextlib
import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
import ml_collections

import lra_tasks
from experiment.tracks import changed_fields
from experiment.workdir import recorded

VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}  # by the flags of /proc/cpuinfo, widest first
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "tensorflow-datasets")
CODE = ("nystrom/*.py", "lra_tasks/*.py", "experiment/*.py")
USUAL_SETTINGS = {
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_enable_x64": False,
    "jax_default_matmul_precision": None,
}


def why_not_comparable(config, task: lra_tasks.Task, recipe=None) -> str:
    """How data and config depart from LRA's, "" where they don't.

    `recipe` is the config of the file that was given, without variant and overrides; None: LRA's.
    Asked for before training: that file may change while a run lasts.
    """
    reasons = [task.why_not_comparable] if not task.comparable_to_lra else []
    of_lra = config.task.name in lra_tasks.NAMES
    changes = recipe_changes(config, recipe) if recipe or of_lra else []
    if changes:
        reasons.append("not the recipe: " + ", ".join(changes))
    changes = [] if recipe is None or not of_lra else recipe_changes(recipe)
    if changes:
        reasons.append("the recipe is not LRA's: " + ", ".join(changes))
    return "; ".join(reasons)


def describe(config, task: lra_tasks.Task, why: str) -> dict:
    """What a result needs beside its numbers and `start`: data, recipe and memory.

    `why` is that of `why_not_comparable`.
    """
    return {
        "task": task.name,
        "source": task.source,
        "fingerprint": task.fingerprint,
        "data_version": lra_tasks.task_module(task.name).VERSION,
        "comparable_to_lra": not why,
        "why_not_comparable": why,
        "split_sizes": {name: len(split.examples) for name, split in task.splits.items()},
        "seed": config.seed,
        **peak_memory(),
        "config": recorded(config),
    }


def recipe_changes(config: ml_collections.ConfigDict, recipe=None) -> list[str]:
    """How a config departs from a recipe: "learning_rate=0.001 (recipe 0.0001)".

    The recipe is a config; None: that of configs/lra_<task>.py. What is free is `tracks`'. Which
    run it begins with is not said, since that differs between seeds: the result has a record of it.
    """
    given = None if recipe is None else recorded(recipe)
    return [
        "begins with another run's encoder (recipe: from scratch)"
        if name == "init_from" and new
        else f"{name}={new!r} (recipe {old!r})"
        for name, (old, new) in changed_fields(recorded(config), given).items()
    ]


def start() -> dict:
    """What a run begins or goes on with: the commit, packages and hardware.

    Asked for before training: while a run lasts the files may change, not what it has imported.
    """
    found = {"commit": code_version(), "versions": versions(), "hardware": hardware()}
    return found | ({"settings": unusual} if (unusual := settings()) else {})


def settings() -> dict[str, object]:
    """JAX's and XLA's settings that bear on a result, where they are not the usual ones."""
    found = {name: getattr(jax.config, name) for name in USUAL_SETTINGS}
    found = {name: value for name, value in found.items() if value != USUAL_SETTINGS[name]}
    return found | ({"XLA_FLAGS": flags} if (flags := os.environ.get("XLA_FLAGS")) else {})


def code_version() -> str:
    """The commit of this code, "+changes" where files differ from it; "unknown" outside git.

    What lies in results/ is no code: a benchmark adds to its CSV row by row. Files that git does
    not know count where the code imports them; a config is in the result itself.
    """
    root = Path(__file__).resolve().parent.parent
    try:
        _git(root, "ls-files", "--error-unmatch", "experiment")  # else another project's commit
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ":!results")
        changed += _git(root, "ls-files", "--others", "--exclude-standard", "--", *CODE)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit + ("+changes" if changed else "")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that bear on a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # under another name, say a nightly one
            found[package] = "unknown"
    return found


def hardware() -> dict[str, object]:
    """The devices that JAX runs on and the host's processor."""
    return {
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
        "processor": processor(),
        "num_cores": os.cpu_count(),
    }


def peak_memory() -> dict[str, object]:
    """The most memory in use so far: a device's where JAX reports it, else this process's."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peak = max(device.get("peak_bytes_in_use", 0) for device in stats)
    if peak:
        return {"peak_memory_bytes": peak, "peak_memory_of": "device"}
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_memory_bytes": peak, "peak_memory_of": "process"}


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Its name and, where Linux tells, family, model and vectors: hosts cut the name short."""
    found = {}
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text().partition("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            found[name.strip()] = value.strip()
    if "model name" not in found:
        return platform.processor() or platform.machine()
    facts = [f"{name} {found[name]}" for name in ("cpu family", "model") if name in found]
    flags = found.get("flags", "").split()
    vectors = [name for flag, name in VECTORS.items() if flag in flags][:1]
    return ", ".join([found["model name"], *facts, *vectors])


def _git(root, *arguments):
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()
