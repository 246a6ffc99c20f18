"""Lines of progress: how often, of what, how fast; on terminals of any width."""

import fcntl
import os
import struct
import sys
import termios
import warnings

import pytest

from lra_tasks import progress


def test_what_nobody_reads_stops_no_work(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        monkeypatch.setattr(sys, "stderr", None)  # as where it was closed
        progress.outlive_readers()
        for _ in range(2):
            print("a line", flush=True)
        print(20_000 * "long ")
        progress.say("a line")
        assert not sys.stdout.isatty() and sys.stderr.fileno() > 0
        sys.stderr.close()


@pytest.fixture
def terminal_of(monkeypatch):
    """Makes stderr a terminal of so many columns; returns what reads it."""
    opened = []

    def make(columns):
        outer, inner = os.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        terminal = open(inner, "w")  # noqa: SIM115
        opened.append((outer, terminal))
        monkeypatch.setattr(sys, "stderr", terminal)
        return lambda: os.read(outer, 4_096).decode()

    yield make
    for outer, terminal in opened:
        terminal.close()
        os.close(outer)


def test_lines_come_now_and_then_with_the_number_and_the_rate(monkeypatch, capsys):
    clock = [0.0]

    def items():
        for _ in range(4_000):
            clock[0] += 0.01
            yield None

    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    assert len(list(progress.track(items(), "drawing", 4_000))) == 4_000
    *lines, last = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 4 and lines[0].startswith("drawing: 1,00")
    assert all(line.endswith(" of 4,000 examples, 100/s") for line in lines)
    assert last == "drawing: 4,000 examples in 40.0 s"


@pytest.mark.parametrize(("columns", "width"), [(0, 80), (40, 40)])
def test_a_terminal_that_does_not_know_its_width_has_80_columns(columns, width, terminal_of):
    terminal_of(columns)
    assert progress.terminal_width() == width
    assert max(map(len, progress.on_terminal("word " * 40).splitlines())) <= width


def test_a_long_description_keeps_its_end_on_a_terminal(terminal_of):
    read = terminal_of(100)
    list(progress.track("abc", 40 * "x" + " validation", 3))
    assert "..." + 16 * "x" + " validation:" in read()


def test_warnings_that_are_not_for_users_keep_their_place(capsys):
    with pytest.warns(DeprecationWarning, match="old"), progress.plain_warnings():
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        warnings.warn("said", stacklevel=1)
    assert capsys.readouterr().err == "warning: said\n"
