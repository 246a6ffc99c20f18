"""Signals that a run notes, and errors that end it: what is said, and what a second one does."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from experiment import processes
from experiment.signals import StopSignals
from tests.conftest import ROOT, SMALL


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """In the background a shell has processes ignore SIGINT, and nohup SIGHUP."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)


def test_the_first_is_noted_and_told_and_the_second_is_heeded_at_once(capfd):
    with StopSignals(notice="stops soon") as stop:
        send()
        assert stop.received == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            send()
    assert capfd.readouterr().err == "\nSIGINT: stops soon\n"


def test_of_nested_ones_the_second_signal_is_heeded_at_once_too():
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as outer, StopSignals(outer) as inner:
        send(signal.SIGTERM)
        assert (inner.received, outer.received) == ("SIGTERM", "")
        with pytest.raises(KeyboardInterrupt):
            send()
    assert signal.getsignal(signal.SIGINT) is before
    with StopSignals() as outer:
        send()
        with StopSignals(outer) as inner:
            assert inner.received == "SIGINT"


def test_where_it_is_to_interrupt_a_second_one_of_either_kind_does():
    usual = signal.getsignal(signal.SIGTERM)
    with StopSignals(interrupting=True) as stop:
        send(signal.SIGTERM)
        assert stop.received == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is usual


def test_ctrl_c_is_noted_where_a_shell_has_had_it_ignored():
    """As of a command that ends in &, to which kill -INT may be sent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignals() as stop:
        send()
        assert stop.received == "SIGINT"
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_closed_terminal_is_told_once_or_twice_and_not_heeded_under_nohup():
    with StopSignals() as stop:
        send(signal.SIGHUP)
        send(signal.SIGHUP)  # of the system and of a shell
        assert stop.received == "SIGHUP"
        with pytest.raises(KeyboardInterrupt):
            send()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignals() as stop:
        send(signal.SIGHUP)
        send(signal.SIGTERM)
        assert stop.received == "SIGTERM"
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_signal_counts_where_nobody_reads_what_is_said_of_it():
    kept, (reader, writer) = os.dup(2), os.pipe()
    os.close(reader)
    try:
        os.dup2(writer, 2)
        with StopSignals(notice="saves") as stop:
            send()
    finally:
        os.dup2(kept, 2)
        os.close(writer)
    assert stop.received == "SIGINT"


def test_work_that_may_be_interrupted_is_by_the_first_signal_and_by_one_before():
    with StopSignals() as stop:
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"), stop.raising():
            send(signal.SIGTERM)
        assert stop.received == "SIGTERM"
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"), stop.raising():
            pytest.fail("not reached")
    with StopSignals() as stop:
        with stop.raising():
            pass
        send()
        assert stop.received == "SIGINT"


def test_after_work_that_may_be_interrupted_all_is_as_before():
    usual = signal.getsignal(signal.SIGALRM)
    with StopSignals() as stop:
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"), stop.raising():
            with stop.raising():
                pass
            send(signal.SIGTERM)  # in the outer one still
        assert signal.getsignal(signal.SIGALRM) == usual


def test_an_interruption_that_is_swallowed_comes_again_and_none_is_another_error():
    with StopSignals() as stop:
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"), stop.raising():
            with contextlib.suppress(KeyboardInterrupt):
                send(signal.SIGTERM)
            time.sleep(30)
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    with StopSignals() as stop, pytest.raises(KeyboardInterrupt, match="SIGINT"), stop.raising():
        try:
            send()
        except KeyboardInterrupt:
            raise AttributeError("of a lock") from None
    with StopSignals() as stop, pytest.raises(AttributeError), stop.raising():
        raise AttributeError("a mistake")


SLOW_TO_BEGIN = """
import gc, os, signal, sys, time
from absl import app
import train

def send(phase, info):
    gc.callbacks.remove(send)
    os.kill(os.getpid(), signal.Signals[sys.argv.pop()])

def begin(*given):
    gc.callbacks.append(send)
    gc.collect()  # what is raised in there is dropped
    time.sleep(30)

train.make_model = begin
app.run(train.main, argv=sys.argv[:-1], flags_parser=train.parse_flags)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_before_the_first_step_ends_a_run_if_dropped_too(name, tmp_path, cache_home):
    workdir = f"--workdir={tmp_path / 'run'}"
    command = [sys.executable, "-c", SLOW_TO_BEGIN, *SMALL, workdir, name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 128 + signal.Signals[name], done.stderr
    assert "\nto go on: " in done.stderr


def test_want_of_memory_says_what_needs_less():
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes\nmore")
    why = processes.out_of_memory(error)
    assert why.startswith("out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes).")
    assert "config.accumulate_steps" in why and "\n" not in why
    assert processes.out_of_memory(jax.errors.JaxRuntimeError("INTERNAL: gloo")) == ""
