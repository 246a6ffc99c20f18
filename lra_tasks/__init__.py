"""The tasks of the Long Range Arena: data, prepared once, and batches of it."""

import contextlib
import dataclasses
import warnings
from pathlib import Path

import numpy as np

import lra_tasks.needs  # noqa: F401  first, since it says what to install
from lra_tasks import store, writing
from lra_tasks.check_config import (
    LANGUAGE_NAMES,
    NAMES,
    SOURCES,
    TaskConfig,
    check,
    prepared_releases,
    read_config,
    task_module,
)
from lra_tasks.disk import lock
from lra_tasks.progress import say
from lra_tasks.task import Batches, Split, Task, prefetch

__all__ = [
    "LANGUAGE_NAMES",
    "NAMES",
    "SOURCES",
    "Batches",
    "Split",
    "Task",
    "TaskConfig",
    "check",
    "has_labels",
    "is_prepared",
    "load",
    "open_set",
    "prefetch",
    "prepare_set",
    "task_module",
    "without_data",
]


def load(task_config, cache_dir=None, progress: bool = True, fingerprint: str = "") -> Task:
    """Opens a task's data, preparing it first where that has not been done.

    Args:
      task_config: `config.task`; its fields are described in configs/base.py.
      cache_dir: where prepared sets are kept; None or "": ~/.cache/nystrom.
      progress: show the progress of a preparation on stderr.
      fingerprint: of several prepared releases that fit, the one to open, if it is among them;
        else the newest.

    Raises:
      ValueError: the config is wrong (all problems in one message), the official files are
        malformed (file and line in the message), or a prepared set is damaged.
    """
    return open_set(task_config, prepare_set(task_config, cache_dir, progress, fingerprint))


def open_set(task_config, directory: Path) -> Task:
    """Opens the prepared set in `directory`, as returned by prepare_set for the same config."""
    config = read_config(task_config)
    module = task_module(config.name)
    dtype = getattr(module, "DTYPE", np.uint8)
    splits, description = store.open_splits(directory, module.NUM_DOCUMENTS, dtype)
    source = description["source"]
    why_not = module.why_not_comparable(config, source, description["notes"])
    if not isinstance(why_not, str):
        found = f"{module.__name__}.why_not_comparable gave {why_not!r}"
        raise ValueError(f"{found}, expected a reason, or '' where there is none")
    task = _task(config, splits, source, description["fingerprint"], why_not)
    vocabulary = directory / store.VOCABULARY
    return dataclasses.replace(task, tokenizer=vocabulary if vocabulary.exists() else None)


def without_data(task_config) -> Task:
    """A task without splits: what a model for it needs to know, where no data are to be read."""
    config = read_config(task_config)
    return _task(config, {}, config.source, "", "no data were read")


def _task(config: TaskConfig, splits, source: str, fingerprint: str, why_not: str) -> Task:
    module = task_module(config.name)
    return Task(
        name=config.name,
        num_classes=module.NUM_CLASSES,
        vocab_size=config.vocab_size or module.VOCAB_SIZE,
        max_length=config.max_length,
        num_documents=module.NUM_DOCUMENTS,
        id_offset=module.ID_OFFSET,
        splits=splits,
        source=source,
        fingerprint=fingerprint,
        comparable_to_lra=not why_not,
        why_not_comparable=why_not,
        bucket_boundaries=config.bucket_boundaries,
        padded_length=config.padded_length,
        first_id=module.FIRST_ID,
        mask_id=getattr(module, "MASK_ID", None),
        sop=config.sop,
        augment=module.augment if config.augment else None,
    )


def has_labels(task_config) -> bool:
    """Whether the examples of a task's config, one without problems, have labels to learn."""
    config = read_config(task_config)
    return getattr(task_module(config.name), "has_labels", lambda _: True)(config)


def prepare_set(task_config, cache_dir=None, progress: bool = True, fingerprint: str = "") -> Path:
    """Prepares a task's data unless that has been done; returns the directory: see `load`."""
    problems = check(task_config, cache_dir)
    if problems:
        raise ValueError("\n".join(problems))
    config = read_config(task_config)
    module = task_module(config.name)
    root = store.datasets_dir(cache_dir)
    source = config.source
    if source in ("auto", "release") and not config.data_dir:
        found = prepared_releases(config, module, root)
        wanted = [path for path in found if store.fingerprint(path) == fingerprint]
        if wanted:
            return wanted[0]
        if not config.tokenizer:
            found = [path for path in found if not store.has_given_vocabulary(path)]
        if len(found) > 1:
            warnings.warn(
                f"{len(found)} prepared {config.name} sets of source 'release' fit; using the "
                f"newest, {found[0]}. Set config.task.data_dir to choose by the official files.",
                stacklevel=3,
            )
        if found:
            say(f"using the prepared set {found[0]}", progress)
            return found[0]
        config, source = _without_release(config, module, root, progress)
    elif source == "auto":
        source = "release"
    files = module.find_files(config, source)
    name = store.directory_name(config.name, module, config, source, files)
    return writing.prepare(root, name, module, config, source, files, progress)


def is_prepared(task_config, cache_dir, fingerprint: str) -> bool:
    """Whether a release with that fingerprint has been prepared, whatever files it came from."""
    config = read_config(task_config)
    root = store.datasets_dir(cache_dir)
    found = prepared_releases(config, task_module(config.name), root)
    return any(store.fingerprint(path) == fingerprint for path in found)


def _without_release(config: TaskConfig, module, root: Path, show: bool) -> tuple[TaskConfig, str]:
    """Downloads the official files, or falls back to another source with a warning."""
    why = f"config.task.data_dir is empty and no prepared {config.name} release was found"
    if hasattr(module, "download"):
        owner = module.download.__module__.rpartition(".")[2]  # tasks may share one
        folder = root.parent / "downloads" / owner
        here = dataclasses.replace(config, data_dir=str(folder))
        try:
            with lock(folder.with_name(f"{owner}.lock"), show):
                with contextlib.suppress(ValueError, OSError):
                    module.find_files(here, "release")
                    return here, "release"
                folder.mkdir(parents=True, exist_ok=True)
                say(f"downloading the official {config.name} files to {folder}", show)
                module.download(folder, show)
            return here, "release"
        except OSError as error:
            why += f", and downloading it failed ({error})"
    for source in module.SOURCES if config.source == "auto" else ():
        if source in ("release", "synthetic"):
            continue
        with contextlib.suppress(ValueError, OSError):
            module.find_files(config, source)
            if "release" not in module.SOURCES:
                return config, source
            why_not = module.why_not_comparable(config, source, {})
            so = f", so results are not comparable with LRA's: {why_not}" if why_not else ""
            warnings.warn(
                f"{config.name}: {why}; using source {source!r}{so}. Set config.task.data_dir to "
                f"the official files, or config.task.source={source!r} to silence this.",
                stacklevel=4,
            )
            return config, source
    raise ValueError(
        f"config.task.source={config.source!r}: {why}. {_instructions(config, module)}"
    )


def _instructions(config: TaskConfig, module) -> str:
    """What the task module says about getting its official files."""
    try:
        module.find_files(config, "release")
    except (ValueError, OSError) as error:
        return str(error)
    return ""
