"""ordered_map: order, errors, and no process left behind."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lra_tasks import parallel

HERE = str(Path(__file__).parent)


def square(n):
    time.sleep(0.01 * (n % 3))
    print("noise that must not reach the replies")
    return n * n, os.getpid()


def fail(n):
    raise ValueError(f"bad item {n}")


def die(n):
    os._exit(7)


def die_within_a_reply(flag):
    """Killed while it waits for the reader, as the system would: half the reply is written."""
    Path(flag).touch()
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    return bytes(1 << 22)


def loaded(_):
    return [
        m for m in ("jax", "tensorflow_datasets", "ml_collections", "pytest") if m in sys.modules
    ]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", HERE)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("num_workers", "processes"), [(0, 1), (1, 1), (None, 3)])
def test_results_come_in_order(num_workers, processes, monkeypatch):
    monkeypatch.setattr(parallel, "available_cores", lambda: 3)
    results = list(parallel.ordered_map(square, range(20), num_workers))
    assert [value for value, _ in results] == [n * n for n in range(20)]
    pids = {pid for _, pid in results}
    assert len(pids) == processes and (os.getpid() in pids) == (num_workers == 0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no process")
def test_cores_are_those_that_the_process_may_run_on(monkeypatch):
    cores = os.sched_getaffinity(0)
    monkeypatch.setattr(os, "cpu_count", lambda: len(cores) + 1)
    assert parallel.available_cores() == len(cores)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert parallel.available_cores() == 1
    finally:
        os.sched_setaffinity(0, cores)


def test_no_items_and_fewer_items_than_workers():
    assert list(parallel.ordered_map(square, [], 2)) == []
    assert [value for value, _ in parallel.ordered_map(square, [3], 3)] == [9]


def test_endless_items_are_drawn_as_needed_and_workers_end_with_the_map():
    counter = itertools.count()
    results = parallel.ordered_map(square, counter, 2)
    pids = {next(results)[1] for _ in range(6)}
    assert len(pids) == 2 and all(map(is_running, pids))
    groups = {os.getpgid(pid) for pid in pids}  # each its own: out of the terminal's reach
    assert len(groups) == 2 and os.getpgid(0) not in groups
    results.close()
    assert next(counter) <= 6 + 2 * parallel.IN_FLIGHT
    assert not any(map(is_running, pids))


def test_an_exception_in_a_worker_is_told_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)test_parallel.py.*ValueError: bad item 0"):
        list(parallel.ordered_map(fail, range(5), 2))


@pytest.mark.parametrize("seconds", [0, 2])
def test_a_worker_that_dies_is_told(seconds):
    """While results are awaited, and before the next item is sent."""

    def items():
        yield 0
        time.sleep(seconds)
        yield from range(1, 5)

    with pytest.raises(ChildProcessError, match=r"died \(exit status 7\)"):
        list(parallel.ordered_map(die, items(), 1))


def test_a_worker_that_is_killed_within_a_reply_is_told(tmp_path):
    flag = tmp_path / "begun"

    def items():
        yield str(flag)
        while not flag.exists():
            time.sleep(0.05)
        time.sleep(1)
        yield str(flag)

    with pytest.raises(ChildProcessError, match=r"died \(exit status -14\); if the system killed"):
        list(parallel.ordered_map(die_within_a_reply, items(), 1))


def test_workers_import_nothing_from_the_folder_they_are_started_in(tmp_path, monkeypatch):
    (tmp_path / "pickle.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    assert [value for value, _ in parallel.ordered_map(square, [3], 1)] == [9]


def test_workers_import_only_the_function():
    # This module imports pytest; a worker imports this module, and nothing of the caller's.
    [modules] = parallel.ordered_map(loaded, [0], 1)
    assert modules == ["pytest"]


def test_works_from_a_script_without_main_guard_and_workers_end_with_a_killed_parent():
    code = (
        "import itertools, sys, time\n"
        "import test_parallel\n"
        "from lra_tasks import parallel\n"
        "for value, pid in parallel.ordered_map(test_parallel.square, itertools.count(), 1):\n"
        "    print(value, pid, flush=True)\n"
        "    time.sleep(1)\n"
    )
    path = os.pathsep.join([HERE, str(Path(parallel.__file__).parent.parent)])
    process = subprocess.Popen(
        [sys.executable, "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
    )
    process.stdin.write(code)
    process.stdin.close()
    value, pid = map(int, process.stdout.readline().split())
    assert value == 0 and is_running(pid)
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)
