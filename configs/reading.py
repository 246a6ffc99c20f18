"""Config files and overrides as command lines give them: read, checked, explained.

    --config=FILE[:VARIANT] --config.FIELD=VALUE ...

FILE is any Python file with a `get_config()` that changes the fields of `configs.base`; with a
variant, `get_config(variant)` is called. `VARIANTS`, a tuple of the names, is for help alone.
"""

import ast
import difflib
import importlib.util
import inspect
import itertools
import os
import re
import textwrap
import traceback
import warnings
from collections import Counter
from pathlib import Path
from types import ModuleType

import ml_collections
from absl import flags
from ml_collections import config_flags

from configs import base

FOLDER = Path(__file__).resolve().parent
OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)(?:=.*)?", re.DOTALL)
KINDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "True or False",
    "tuple": "a tuple, such as (64,128)",
}
WIDTH = 79  # of a line of help


class ArgumentError(ValueError):
    """The arguments make no config; the message has a line for each problem."""


def read_config(arguments) -> tuple[ml_collections.ConfigDict, str, dict]:
    """The locked config, its file's name as given, and the overrides' values by dotted name.

    Args:
      arguments: `--config=FILE[:VARIANT]` and `--config.field=value`, nothing else.

    Raises:
      ArgumentError: no such file, variant or field, a value of the wrong type, anything else.
    """
    values = flags.FlagValues()
    argv = ["", *arguments]
    config_flags.DEFINE_config_file("config", None, "", values, sys_argv=argv)
    surplus = parse(argv, values)[1:]
    if surplus:
        raise ArgumentError(f"unexpected {' '.join(surplus)}; overrides are --config.field=value")
    return (
        values["config"].value,
        values["config"].config_filename,
        values["config"].override_values,
    )


def parse(argv: list[str], values: flags.FlagValues) -> list[str]:
    """Parses as absl does, `config` being one of the flags; returns what is no flag.

    Raises:
      ArgumentError: an argument is wrong.
    """
    problems = find_problems(argv)
    if problems:
        raise ArgumentError("\n".join(problems))
    try:
        with warnings.catch_warnings():
            # ml_collections loads files in a way that Python 3.12 will lose.
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
            return values(argv)
    except flags.IllegalFlagValueError as error:
        raise ArgumentError(_wrong_value(str(error), fields(last_config(argv)))) from error
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArgumentError(" ".join(str(error).split())) from error


def _wrong_value(message, known):
    """absl's message, or for a field of the config what was expected."""
    match = re.match(r"flag (--config\.([\w.]+)=.*?): ", message, re.DOTALL)
    if not match or match[2] not in known:
        return " ".join(message.split())
    kind = type(known[match[2]]).__name__
    return f"{match[1]}: expected {KINDS.get(kind, kind)}"


def find_problems(argv: list[str]) -> list[str]:
    """What is wrong with the config's file, and with the names of the fields."""
    try:
        files = _files(argv)
        if not files:
            return [f"--config=FILE is missing; there are {', '.join(known_files())}"]
        for file in files:
            config = load(file)
    except ArgumentError as error:
        return [str(error)]
    paths = Counter(m[1] for a in _flags(argv) if (m := OVERRIDE.fullmatch(a)))
    problems = [problem for path in paths if (problem := field_problem(config, path))]
    known = fields(config)
    return problems + [
        f"--config.{path}: given {count} times, which would join the values of a tuple; give one"
        for path, count in paths.items()
        if count > 1 and isinstance(known.get(path), tuple)
    ]


def load(file: str) -> ml_collections.ConfigDict:
    """The config of `FILE[:VARIANT]`.

    Raises:
      ArgumentError: as `read_config`; errors in the file name its line.
    """
    path, colon, variant = file.partition(":")
    get_config = _get_config(file)
    try:
        inspect.signature(get_config).bind(*[variant] if colon else [])
    except TypeError as error:
        what = f"it takes no variant; use {path} alone" if colon else f"use {path}:VARIANT"
        raise ArgumentError(f"--config={file}: {what}") from error
    return _call(file, get_config, *[variant] if colon else [])


def last_config(argv: list[str]) -> ml_collections.ConfigDict | None:
    """The config of the file that a command line gives last; None if it gives none."""
    files = _files(argv)
    return load(files[-1]) if files else None


def load_recipe(file: str) -> ml_collections.ConfigDict:
    """The config of a file without its variant, which runs of any variant are compared with."""
    try:
        return load(file.partition(":")[0])
    except ArgumentError:
        return load(file)  # it has none without a variant


def lra_file(task: str) -> str:
    """The file of this repository's config of a task."""
    return str(FOLDER / f"lra_{task}.py")


def _get_config(file):
    module = load_module(file)
    if not callable(getattr(module, "get_config", None)):
        raise ArgumentError(
            f"--config={file}: has no function get_config(); see configs/lra_text.py"
        )
    return module.get_config


def load_module(file: str) -> ModuleType:
    """Runs the Python file of `FILE[:VARIANT]`; raises ArgumentError."""
    path = Path(file.partition(":")[0])
    if not os.path.isfile(path):  # where a Path's own raises for names that are too long
        what = "is a folder" if os.path.isdir(path) else "no such file"
        what = what if path.name else "names no file; expected FILE or FILE:VARIANT"
        raise ArgumentError(f"--config={file}: {what}; {_other_files(path)}")
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None:
        raise ArgumentError(f"--config={file}: not a Python file; its name should end in .py")
    module = importlib.util.module_from_spec(spec)
    _guard(file, lambda: spec.loader.exec_module(module))
    return module


def _call(file, get_config, *arguments):
    config = _guard(file, lambda: get_config(*arguments))
    frozen = isinstance(config, ml_collections.FrozenConfigDict)
    if frozen or not isinstance(config, ml_collections.ConfigDict):
        kind = type(config).__name__
        raise ArgumentError(
            f"--config={file}: get_config() returned {kind}; expected the ConfigDict of "
            "configs.base.get_config(), changed"
        )
    try:
        fields(config)
    except ml_collections.config_dict.RequiredValueError as error:
        raise ArgumentError(
            f"--config={file}: has a required_placeholder; expected a value, or a placeholder, "
            "which --config.FIELD=VALUE gives one"
        ) from error
    return config


def _guard(file, run):
    """Runs code of a config file; its errors become one line."""
    try:
        return run()
    except (Exception, SystemExit) as error:  # some files call sys.exit()
        words = " ".join(str(error).split())
        if isinstance(error, base.UnknownVariant):
            raise ArgumentError(f"--config={file}: {words}") from error
        path = os.path.abspath(file.partition(":")[0])
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        if isinstance(error, SyntaxError):
            lines, words = [error.lineno] if error.lineno else [], error.msg
        where = f", line {lines[-1]}" if lines else ""
        raise ArgumentError(
            f"--config={file}: {Path(path).name}{where}: {type(error).__name__}: {words}"
        ) from error


def field_problem(config: ml_collections.ConfigDict, path: str) -> str:
    """Why `config.<path>` can't be overridden, with the fields there are; "" if it can."""
    here, names = config, path.split(".")
    for depth, name in enumerate(names):
        if isinstance(here, ml_collections.ConfigDict) and name in here:
            here = here[name]
            continue
        parent = ".".join(["config", *names[:depth]])
        if not isinstance(here, ml_collections.ConfigDict):
            return f"--config.{path}: no field {name!r}: {parent} has no fields"
        meant = nearest(path, fields(config), name)
        return (
            f"--config.{path}: no field {name!r}"
            + (f"; did you mean --config.{meant}?" if meant else ";")
            + f" {parent} has {', '.join(sorted(here))}"
        )
    if isinstance(here, ml_collections.ConfigDict):
        return f"--config.{path}: has fields, give one: {', '.join(sorted(here))}"
    return ""


def fields(config: ml_collections.ConfigDict | dict, prefix: str = "") -> dict[str, object]:
    """Values by dotted name, of a config or of the dict that a run's config.json holds."""
    found = {}
    for name, value in config.items():
        deeper = isinstance(value, ml_collections.ConfigDict | dict)
        found |= fields(value, f"{prefix}{name}.") if deeper else {prefix + name: value}
    return found


def nearest(path: str, known, name: str = "") -> str:
    """The known dotted name that is most like `path`, or that ends in `name`; "" for none."""
    ends = [other for other in known if name and other.rpartition(".")[2] == name]
    close = difflib.get_close_matches(path, known, 1, 0.7)
    if not ends and not close and name:  # misspelt, and a level too high
        leaves = {other.rpartition(".")[2]: other for other in known}
        close = [leaves[leaf] for leaf in difflib.get_close_matches(name, leaves, 1, 0.7)]
    return (ends or close or [""])[0]


def known_files(folder: Path = FOLDER) -> list[str]:
    """The config files in a folder, as one would type them here."""
    found = [
        path
        for path in sorted(folder.glob("*.py"))
        if path.name not in ("base.py", "reading.py")
        and "\ndef get_config(" in path.read_text(errors="replace")
    ]
    return [os.path.relpath(path) if folder == FOLDER else str(path) for path in found]


def _other_files(path):
    """The files that are where `path` is not, or this repository's, and the nearest of them."""
    folder = path if os.path.isdir(path) else path.parent
    known = os.path.isdir(folder) and known_files(folder)
    known = known or known_files()
    stems = {Path(other).stem: other for other in known}
    close = difflib.get_close_matches(path.stem, stems, 1, 0.5)
    meant = f"did you mean {stems[close[0]]}? There" if close else "there"
    return f"{meant} are {', '.join(known)}"


def _flags(argv):
    """The arguments that are flags, those of a --flagfile too: all before a lone "--"."""
    given = flags.FLAGS.read_flags_from_files(list(argv[1:]), force_gnu=False)
    return given[: given.index("--")] if "--" in given else given


def _files(argv):
    """The values of --config, in either form, in their order."""
    given = _flags(argv)
    found = [a.partition("=")[2] for a in given if re.match(r"--?config=", a)]
    apart = [b for a, b in itertools.pairwise(given) if a in ("--config", "-config")]
    return found + apart


def variants(file: str) -> tuple[str, ...]:
    """The variants that a config file says it has."""
    return tuple(getattr(load_module(file), "VARIANTS", ()))


def list_files() -> str:
    """Each config file of this repository: its name, its variants, what it is."""
    lines = []
    for file in known_files():
        module = load_module(file)
        names = [file, *(f":{name}" for name in variants(file))]
        what = (module.__doc__ or "").strip().partition("\n")[0]
        lines += textwrap.wrap(" ".join(names), WIDTH - 4, subsequent_indent="    ")
        lines += textwrap.wrap(what, WIDTH - 8, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def explain_fields(config: ml_collections.ConfigDict, choices: dict[str, tuple]) -> str:
    """Every field with its value in `config` and its comment in configs/base.py."""
    comments, values = field_comments(), fields(config)
    lines = []
    for name in [n for n in comments if n in values] + [n for n in values if n not in comments]:
        text = comments.get(name, "")
        if name in choices:
            text += ("; " if text else "") + "one of " + ", ".join(choices[name])
        lines.append(f"--config.{name}={values[name]!r}")
        lines += textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def field_comments() -> dict[str, str]:
    """The comment of each field of configs/base.py, by dotted name, in the order of that file."""
    source = inspect.getsource(base)
    lines = source.splitlines()
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            name = ast.unparse(node.targets[0]).removeprefix("config.")
            after = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
            found[name] = after.partition("#")[2].strip()
    return found
