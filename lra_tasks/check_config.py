"""Problems of `config.task`, found before any data is touched."""

import dataclasses
import importlib
import itertools
import os
import re
from pathlib import Path
from types import ModuleType

from lra_tasks import store
from lra_tasks.disk import expand_user, path_problem

NAMES = ("image", "listops", "pathfinder", "pathx", "retrieval", "text")
LANGUAGE_NAMES = ("documents", "reviews")  # of tokens of a vocabulary
SOURCES = ("release", "generated", "package", "synthetic")
MAX_SEED = 2**32 - 1
MAX_LENGTH = 2**24
MAX_EXAMPLES = 2**31 - 1  # of a split
# What store.py says that every task defines.
INTEGERS = ("NUM_CLASSES", "VOCAB_SIZE", "NUM_DOCUMENTS", "ID_OFFSET", "FIRST_ID")
CONSTANTS = dict.fromkeys(INTEGERS, int) | dict.fromkeys(("TITLE", "VERSION"), str)
CONSTANTS |= dict.fromkeys(("SOURCES", "LABEL_NAMES"), tuple | list)
FUNCTIONS = ("check", "set_name", "find_files", "num_examples", "examples", "why_not_comparable")


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The fields of `config.task`, as task modules get them."""

    name: str
    source: str
    data_dir: str
    max_length: int
    min_length: int
    bucket_boundaries: tuple[int, ...]
    padded_length: int
    num_train: int
    num_validation: int
    num_test: int
    difficulty: str
    data_seed: int
    tokenizer: str
    vocab_size: int
    sop: bool
    augment: bool


def check(task_config, cache_dir=None) -> list[str]:
    """Problems of a task config, each "config.task.<field>=<value>: what is allowed or to do"."""
    problems = _check_types(task_config)
    if problems:
        return problems
    for field in ("data_dir", "tokenizer"):
        path = getattr(task_config, field)
        if path and (problem := path_problem(path)):
            problems.append(_problem(task_config, field, problem))
    if problems:
        return problems
    config = read_config(task_config)
    names = (*NAMES, *LANGUAGE_NAMES)
    if config.name not in names:
        return [_problem(config, "name", f"expected one of {', '.join(names)}")]
    module = task_module(config.name)
    if problems := _check_module(module):
        return problems
    problems = _check_lengths(config)
    for field in ("num_train", "num_validation", "num_test", "min_length"):
        if not 0 <= getattr(config, field) <= MAX_EXAMPLES:
            problems.append(_problem(config, field, f"expected 0 to {MAX_EXAMPLES}"))
    if not 0 <= config.data_seed <= MAX_SEED:
        problems.append(_problem(config, "data_seed", f"expected 0 to {MAX_SEED}"))
    if config.name in NAMES:
        for field in ("tokenizer", "vocab_size", "sop"):
            if getattr(config, field):
                named = " and ".join(LANGUAGE_NAMES)
                problems.append(_problem(config, field, f"only {named} have a vocabulary"))
    if config.difficulty and config.name not in ("pathfinder", "pathx"):
        problems.append(_problem(config, "difficulty", "only pathfinder and pathx have one"))
    if config.min_length and config.name != "listops":
        problems.append(_problem(config, "min_length", "expected 0: only listops has one"))
    if config.augment and not hasattr(module, "augment"):
        problems.append(
            _problem(config, "augment", f"expected False: {config.name} has nothing to change")
        )
    own = module.check(config)
    if not isinstance(own, list):
        return [f"{module.__name__}.check gave {own!r}, expected a list of problems"]
    problems += own
    # Names of prepared sets are made of the fields checked above.
    return problems or _check_source(config, module, store.datasets_dir(cache_dir))


def read_config(task_config) -> TaskConfig:
    """The fields of `config.task` from a ConfigDict or anything that has them as attributes."""
    fields = {f.name: getattr(task_config, f.name) for f in dataclasses.fields(TaskConfig)}
    fields["bucket_boundaries"] = tuple(fields["bucket_boundaries"])
    if fields["tokenizer"]:
        fields["tokenizer"] = str(expand_user(fields["tokenizer"]))
    fields["data_dir"] = str(expand_user(fields["data_dir"])) if fields["data_dir"] else ""
    return TaskConfig(**fields)


def task_module(name: str) -> ModuleType:
    """The module of a task; store.py says what it defines."""
    return importlib.import_module(f"lra_tasks.{name}")


def prepared_releases(config: TaskConfig, module: ModuleType, root: Path) -> list[Path]:
    """Prepared sets of source 'release' that fit the config, whatever files they came from.

    Where a vocabulary is asked for, a set must be of the same.
    """
    if "release" not in module.SOURCES:
        return []
    pattern = store.directory_name(config.name, module, config, "release", None)
    found = store.find_prepared(root, pattern, module.VERSION)
    if not (config.tokenizer and found):
        return found
    from lra_tasks.documents import tokenizer

    try:
        wanted = tokenizer.find(config.tokenizer).read_bytes()
    except ValueError:
        return []
    files = ((folder, folder / store.VOCABULARY) for folder in found)
    return [folder for folder, file in files if file.exists() and file.read_bytes() == wanted]


def _check_module(module: ModuleType) -> list[str]:
    """What the author of a task has to mend."""
    shown = () if hasattr(module, "PICTURE_SHAPE") else ("encode", "decode")
    missing = [name for name in (*CONSTANTS, *FUNCTIONS, *shown) if not hasattr(module, name)]
    if missing:
        return [f"{module.__name__} has no {', '.join(missing)}: see lra_tasks/store.py"]
    problems = [
        f"{name}={getattr(module, name)!r}, expected {getattr(kind, '__name__', kind)}"
        for name, kind in CONSTANTS.items()
        if not isinstance(getattr(module, name), kind)
    ]
    if problems:
        return [f"{module.__name__}: {problem}" for problem in problems]
    if unknown := [source for source in module.SOURCES if source not in SOURCES]:
        problems.append(f"SOURCES has {unknown}, expected some of {', '.join(SOURCES)}")
    if not re.fullmatch(r"\d+\.\d+\.\d+", module.VERSION):
        problems.append(f"VERSION={module.VERSION!r}, expected three numbers, as 1.0.0")
    if not 0 <= module.FIRST_ID < module.VOCAB_SIZE:
        problems.append(
            f"FIRST_ID={module.FIRST_ID}, expected one of VOCAB_SIZE={module.VOCAB_SIZE} ids"
        )
    if len(module.LABEL_NAMES) != module.NUM_CLASSES:
        problems.append(
            f"{len(module.LABEL_NAMES)} LABEL_NAMES, expected NUM_CLASSES={module.NUM_CLASSES}"
        )
    return [f"{module.__name__}: {problem}" for problem in problems]


def _check_types(task_config) -> list[str]:
    problems = []
    for field in dataclasses.fields(TaskConfig):
        if not hasattr(task_config, field.name):
            problems.append(f"config.task.{field.name} is missing: see configs/base.py")
            continue
        value = getattr(task_config, field.name)
        if field.type is int:
            good = isinstance(value, int) and not isinstance(value, bool)
        elif field.type in (str, bool):
            good = isinstance(value, field.type)
        else:
            good = isinstance(value, tuple | list) and all(type(v) is int for v in value)
        if not good:
            kind = getattr(field.type, "__name__", "tuple")
            kind = "tuple of ints" if kind == "tuple" else kind
            problems.append(f"config.task.{field.name}={value!r}: expected {kind}")
    return problems


def _check_lengths(config: TaskConfig) -> list[str]:
    problems = []
    if config.max_length < 1:
        problems.append(_problem(config, "max_length", "expected 1 or more"))
    if config.padded_length < config.max_length:
        problems.append(
            _problem(config, "padded_length", f"expected max_length={config.max_length} or more")
        )
    bounds = config.bucket_boundaries
    for field, lengths in (
        ("padded_length", [config.padded_length]),
        ("bucket_boundaries", bounds),
    ):
        if max(lengths, default=0) > MAX_LENGTH:
            problems.append(_problem(config, field, f"expected at most {MAX_LENGTH}"))
    if any(a >= b for a, b in itertools.pairwise(bounds)) or any(b < 1 for b in bounds):
        problems.append(
            _problem(config, "bucket_boundaries", "expected ascending positive lengths")
        )
    elif bounds and bounds[-1] < config.max_length:
        problems.append(
            _problem(
                config,
                "bucket_boundaries",
                f"expected the last to be max_length={config.max_length} or more, or () for none",
            )
        )
    return problems


def _check_source(config: TaskConfig, module: ModuleType, root: Path) -> list[str]:
    if config.source not in ("auto", *module.SOURCES):
        has = ", ".join(("auto", *module.SOURCES))
        return [_problem(config, "source", f"{config.name} has the sources {has}")]
    if config.data_dir:
        if config.source not in ("auto", "release") or "release" not in module.SOURCES:
            return [
                _problem(
                    config,
                    "data_dir",
                    "the official files are read by source 'release' alone, but config.task.source="
                    f"{config.source!r}; use 'release' or 'auto', or leave data_dir empty",
                )
            ]
        if not os.path.exists(config.data_dir):
            return [_problem(config, "data_dir", "there is no such folder or file")]
        return _check_files(config, module, "release")
    if config.source == "auto":
        fallbacks = [s for s in module.SOURCES if s not in ("release", "synthetic")]
        if any(not _check_files(config, module, source) for source in fallbacks):
            return []
    if config.source in ("auto", "release"):
        if prepared_releases(config, module, root):
            return []
        if hasattr(module, "download"):
            return _check_vocabulary(config)
        return _check_files(config, module, "release")
    return _check_files(config, module, config.source)


def _check_vocabulary(config: TaskConfig) -> list[str]:
    if not config.tokenizer:
        return []
    from lra_tasks.documents import tokenizer

    try:
        tokenizer.find(config.tokenizer)
    except ValueError as error:
        return [_problem(config, "tokenizer", str(error))]
    return []


def _check_files(config: TaskConfig, module: ModuleType, source: str) -> list[str]:
    if problems := _check_vocabulary(config):
        return problems
    try:
        found = module.find_files(config, source)
        if not isinstance(found, list | tuple):
            raise ValueError(
                f"{module.__name__}.find_files gave {found!r}, expected a list of files"
            )
        for path in found:
            if not os.access(path, os.R_OK):
                return [_problem(config, "data_dir", f"cannot read {path}")]
    except (ValueError, OSError) as error:
        field = "data_dir" if source == "release" else "source"
        return [_problem(config, field, str(error))]
    return []


def _problem(config: TaskConfig, field: str, what: str) -> str:
    return f"config.task.{field}={getattr(config, field)!r}: {what}"
