"""The benchmarks' command lines: help that fits the terminal, values that are checked, an end."""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lra_tasks.errors import is_worded


def run(main: Callable[[], int | None]) -> None:
    """Ends the program as `main` does; by Ctrl-C, or what users can mend, without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # XLA may crash of an exception
    try:
        sys.exit(main())
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}: are this benchmark's requirements installed, see --help?")
    except (ValueError, OSError) as error:
        if not is_worded(error):
            raise
        sys.exit(f"error: {error}")


def make_parser(description: str, **options: Any) -> argparse.ArgumentParser:
    """A parser whose help begins with a module's docstring, as wide as the terminal."""
    lines = []
    for paragraph in description.strip().split("\n\n"):
        is_prose = not paragraph.startswith(" ")
        lines += [paragraph] if is_prose else paragraph.splitlines()
        lines.append("")
    return argparse.ArgumentParser(
        description="\n".join(map(_fill, lines)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )


def add_options(
    parser: argparse.ArgumentParser, size: Callable[[str], Any], sizes: str, output: str
) -> None:
    """What a benchmark by size is asked for; `size` reads one of its sizes."""
    parser.add_argument("--sizes", type=several(size), default=sizes)
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--threads", type=count, default=2)
    add_output(parser, output)


def add_output(parser: argparse.ArgumentParser, output: str) -> None:
    """Where a benchmark's CSV goes, in a file that can be written."""
    parser.add_argument("--output", type=writable_file, default=output)


def _fill(text):
    indent = " " * (len(text) - len(text.lstrip()))
    width = shutil.get_terminal_size().columns - 2  # argparse's own
    more = " " * 4 if indent else ""
    return textwrap.fill(text, width, subsequent_indent=indent + more, break_on_hyphens=False)


def count(text: str, least: int = 1) -> int:
    """A whole number of at least one."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least {least}")
    return int(text)


def seed(text: str) -> int:
    """A whole number, zero too."""
    return count(text, 0)


def positive(text: str) -> float:
    """A number above zero."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """One of several names."""

    def read(text):
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r}: expected one of {', '.join(names)}")
        return text

    return read


def numbers(form: str, separator: str, fit: Callable[..., bool]) -> Callable[[str], tuple]:
    """Whole numbers that `fit`, with separators between, as many as `form` has."""

    def read(text):
        parts = text.split(separator)
        if len(parts) == len(form.split(separator)) and all(part.isdecimal() for part in parts):
            found = tuple(map(int, parts))
            if fit(*found):
                return found
        raise argparse.ArgumentTypeError(f"{text!r}: expected {form}")

    return read


def several(read: Callable[[str], Any]) -> Callable[[str], tuple]:
    """Values with commas between."""

    def read_all(text):
        return tuple(read(part) for part in text.split(","))

    return read_all


def checkout_with(marker: str) -> Callable[[str], Path]:
    """The folder of another checkout of this project, which has the file `marker`."""

    def read(text):
        if not (Path(text) / marker).is_file():
            raise argparse.ArgumentTypeError(
                f"{text}: no {marker} there, expected a checkout of this project"
            )
        return Path(text).resolve()

    return read


def writable_folder(text: str) -> Path:
    """A folder that files can be written to, there or to be made."""
    path = Path(text)
    there = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        problem = f"can't write in {there}: {error.strerror}"
        raise argparse.ArgumentTypeError(problem) from error
    return path


def writable_file(text: str) -> Path:
    """A file that can be written, there or not yet."""
    path = Path(text)
    if os.path.exists(path) and not path.is_file():
        raise argparse.ArgumentTypeError(f"{text!r}: is no file, expected one or a new name")
    writable_folder(str(path.parent))
    return path


def use_cores(number: int) -> None:
    """Leaves this process so many cores: before JAX starts, which has as many threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:number])
