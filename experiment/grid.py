"""The runs of a sweep: the product of the values given for the fields of a config."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import ml_collections

from configs import reading
from experiment.results import fields_read
from experiment.workdir import default_workdir, recorded

GridError = reading.ArgumentError  # the arguments of a sweep make no runs
FLAG = re.compile(r"--(config(?:\.\w+)*)=(.*)", re.DOTALL)
BRACKETS = {"(": ")", "[": "]", "{": "}"}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: what train.py is given, where it goes, and the config that comes of it."""

    arguments: tuple[str, ...]  # --config=FILE and --config.field=value, one value each
    workdir: Path
    config: ml_collections.ConfigDict
    label: str  # what tells it from the sweep's other runs: "model.num_landmarks=32 seed=0"


def make_runs(arguments: list[str], runs_dir: Path) -> list[Run]:
    """The product of all values, the last argument's changing fastest; workdirs in `runs_dir`.

    Args:
      arguments: `--config=FILE[,FILE...]` and `--config.field=value[,value...]`. Commas in
        brackets or quotes don't separate; where the field is a tuple and no bracket is given,
        the whole text is one tuple, as for train.py.

    Raises:
      GridError: another argument, a file, field or value that is refused, a value given twice.
    """
    choices = _read_arguments(arguments)
    runs = {}
    for values in itertools.product(*choices.values()):
        given = tuple(f"--{name}={value}" for name, value in zip(choices, values, strict=True))
        config, filename, overrides = reading.read_config(given)
        workdir = runs_dir / default_workdir(filename, overrides).name
        varied = [
            f"{name.removeprefix('config.')}={value}"
            for name, value in zip(choices, values, strict=True)
            if len(choices[name]) > 1
        ]
        if workdir in runs:
            raise GridError(
                f"two runs would share {workdir}: {' '.join(runs[workdir].arguments)} and "
                f"{' '.join(given)}; give each value once"
            )
        runs[workdir] = Run(given, workdir, config, " ".join(varied) or workdir.name)
    return list(runs.values())


def without_repeats(runs: list[Run]) -> tuple[list[Run], list[tuple[Run, Run]]]:
    """The runs, less those that differ from an earlier one in what their attention doesn't read.

    Each of these comes in a pair with the one that it would repeat.
    """
    kept: dict[str, Run] = {}
    repeats = []
    for run in runs:
        key = json.dumps(fields_read(recorded(run.config)), sort_keys=True)
        if key in kept:
            repeats.append((run, kept[key]))
        else:
            kept[key] = run
    return list(kept.values()), repeats


def split_values(text: str) -> list[str]:
    """Splits at the commas that are not within brackets or quotes.

    Raises:
      GridError: an empty value among several, or a bracket or quote without its partner.
    """
    values, expected, quote = [""], [], ""
    for character in text:
        if character == "," and not expected and not quote:
            values.append("")
            continue
        values[-1] += character
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in BRACKETS:
            expected.append(BRACKETS[character])
        elif expected and character == expected[-1]:
            expected.pop()
        elif character in BRACKETS.values():
            raise GridError(f"{text!r}: {character} has no partner; quote a value that has one")
    if quote or expected:
        raise GridError(
            f"{text!r}: {quote or expected[-1]} is missing; quote a value that is to have "
            "a single bracket or quote"
        )
    values = [value.strip() for value in values]
    if len(values) > 1 and "" in values:
        raise GridError(f"{text!r}: an empty value between commas")
    return values


def _read_arguments(arguments):
    """Field (`config` for the file itself) -> its values as text."""
    texts = {}
    for argument in arguments:
        match = FLAG.fullmatch(argument)
        if not match:
            raise GridError(
                f"{argument}: expected --config=FILE or --config.field=value[,value...]"
            )
        name, text = match.groups()
        if name in texts:
            raise GridError(f"--{name} is given twice; put its values in one: --{name}=a,b")
        texts[name] = text
    if "config" not in texts:
        raise GridError("; ".join(reading.find_problems([""])))
    files = split_values(texts.pop("config"))
    config, *_ = [reading.load(file) for file in files]
    choices = {"config": files}
    for name, text in texts.items():
        path = name.removeprefix("config.")
        problem = reading.field_problem(config, path)
        if problem:
            raise GridError(problem)
        try:
            choices[name] = _values_of(reading.fields(config)[path], text)
        except GridError as error:
            raise GridError(f"--{name}: {error}") from error
    return choices


def _values_of(default, text):
    if isinstance(default, tuple) and not text.startswith(tuple(BRACKETS)):
        return [text]
    values = split_values(text)
    if isinstance(default, str):
        quoted = re.compile(r"(['\"])(.*)\1", re.DOTALL)
        values = [match[2] if (match := quoted.fullmatch(value)) else value for value in values]
    return values
