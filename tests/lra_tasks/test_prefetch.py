"""prefetch: batches in order, built ahead by threads that end with it."""

import threading
import time

import pytest

from lra_tasks.task import prefetch


class Counting:
    """Batches that are their step, and remember which were built."""

    def __init__(self, fail_at=None):
        self.built, self.fail_at = [], fail_at

    def __getitem__(self, step):
        if step == self.fail_at:
            raise OSError(f"no step {step}")
        time.sleep(0.002 * (step % 3))
        self.built.append(step)
        return step * 10


def worker_threads():
    return [t for t in threading.enumerate() if t.name.startswith("batches")]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_prefetch_keeps_the_order(num_workers):
    got = list(prefetch(Counting(), 5, 30, num_workers))
    assert got == [(step, step * 10) for step in range(5, 30)]
    assert not worker_threads()


def test_prefetch_of_nothing():
    assert list(prefetch(Counting(), 5, 5)) == []


def test_prefetch_builds_ahead_but_not_further():
    batches = Counting()
    iterator = prefetch(batches, 0, 100)
    assert next(iterator) == (0, 0)
    deadline = time.monotonic() + 5
    while len(batches.built) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert batches.built == [0, 1, 2, 3, 4]
    iterator.close()
    assert not worker_threads()


def test_as_many_threads_as_are_asked_for_have_work():
    """Each has a batch in its hands at once: none could go on if there were fewer."""
    together = threading.Barrier(8, timeout=10)

    class Slow:
        def __getitem__(self, step):
            together.wait()
            return step

    iterator = prefetch(Slow(), 0, 16, num_workers=8)
    assert [step for step, _ in iterator] == list(range(16))


def test_prefetch_raises_in_turn():
    iterator = prefetch(Counting(fail_at=3), 0, 10)
    assert [next(iterator)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="no step 3"):
        next(iterator)
    assert not worker_threads()
    with pytest.raises(StopIteration):
        next(iterator)


def test_prefetch_stops_when_dropped():
    iterator = prefetch(Counting(), 0, 10**6)
    next(iterator)
    assert worker_threads()
    del iterator
    deadline = time.monotonic() + 5
    while worker_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not worker_threads()
