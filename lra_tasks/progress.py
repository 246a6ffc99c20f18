"""Progress of long preparations: a bar on a terminal, plain lines elsewhere."""

import contextlib
import os
import sys
import textwrap
import time
import warnings
from collections.abc import Iterable, Iterator

import tqdm

SECONDS_BETWEEN_LINES = 10.0
DESCRIPTION_WIDTH = 30  # leaves room for the numbers on a terminal of 80 columns


class Heedless:
    """A stream that drops what can't be written any more, for nobody reads it: work goes on.

    A pipe's reader ended, a terminal was closed, a disk is full.
    """

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())  # what waits in the stream goes there too
        os.close(null)


def outlive_readers() -> None:
    """Has the program go on where nobody reads what it says, or its streams were closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115
        setattr(sys, name, Heedless(stream))


def say(message: str, enabled: bool = True) -> None:
    """Writes one line to stderr, clear of any bar on it."""
    if enabled:
        tqdm.tqdm.write(message, file=sys.stderr)


def terminal_width() -> int:
    """Columns of the terminal that stderr is, or 80."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def on_terminal(line: str) -> str:
    """A line as it is, or where stderr is a terminal in lines of its width."""
    if not sys.stderr.isatty():
        return line
    return textwrap.fill(line, terminal_width(), break_long_words=False, break_on_hyphens=False)


@contextlib.contextmanager
def plain_warnings(enabled: bool = True) -> Iterator[None]:
    """While entered, warnings for users are one line each, or none, without a place in our code.

    On a terminal the line is broken between words.
    """

    def show(message, category, filename, lineno, file=None, line=None):
        if issubclass(category, UserWarning):
            say(on_terminal(f"warning: {message}"), enabled)
        else:
            usual(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        usual, warnings.showwarning = warnings.showwarning, show
        yield


def track(
    items: Iterable,
    description: str,
    total: int | None = None,
    enabled: bool = True,
    unit: str = "examples",
) -> Iterator:
    """Yields `items`, showing how many of `total` have passed and how fast."""
    if not enabled:
        yield from items
        return
    if sys.stderr.isatty():
        kept = DESCRIPTION_WIDTH  # of the end, which has what is being made
        short = description if len(description) <= kept else "..." + description[3 - kept :]
        with tqdm.tqdm(items, desc=short, total=total, unit=f" {unit}") as bar:
            yield from bar
        return
    start = last = time.monotonic()
    count = 0
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            of = f" of {total:,}" if total else ""
            say(f"{description}: {count:,}{of} {unit}, {count / (now - start):,.0f}/s")
    say(f"{description}: {count:,} {unit} in {time.monotonic() - start:.1f} s")
