"""An ordered map over worker processes that import nothing but what they run.

Workers are plain `python -c` processes, not `multiprocessing` ones: those import the caller's main
module again (and with it JAX), and fail where that module is a notebook or has no main guard.
"""

import contextlib
import importlib
import itertools
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

IN_FLIGHT = 2  # items a worker has been given and not yet answered: one in work, one waiting


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[Any], Any], items: Iterable, num_workers: int | None = None
) -> Iterator:
    """Yields `function(item)` for every item, in order, computed in worker processes.

    Args:
      function: a module-level function. Its module is imported by each worker, so that module must
        be cheap to import.
      items: picklable, may be endless; only a few are drawn ahead of what was consumed.
      num_workers: processes; None: one a core; 0: computes in this process.

    Raises:
      RuntimeError: a worker raised; its traceback is in the message.
      ChildProcessError: a worker died.
    """
    num_workers = available_cores() if num_workers is None else num_workers
    if num_workers == 0:
        yield from map(function, items)
        return
    workers = [_start(function) for _ in range(num_workers)]
    try:
        items = iter(items)
        sent = received = 0
        while True:
            for item in itertools.islice(items, received + IN_FLIGHT * num_workers - sent):
                with contextlib.suppress(BrokenPipeError):  # a worker died: see _receive
                    _send(workers[sent % num_workers].stdin, item)
                sent += 1
            if received == sent:
                return
            yield _receive(workers[received % num_workers])
            received += 1
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.wait()
            worker.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()


def _start(function: Callable) -> subprocess.Popen:
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    name = f"{function.__module__!r}, {function.__qualname__!r}"
    code = f"from lra_tasks.parallel import serve; serve({name})"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code],  # -P: imports nothing from the user's folder
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends its workers
    )


def _send(stream: BinaryIO, item: Any) -> None:
    pickle.dump(item, stream)
    stream.flush()


def _receive(worker: subprocess.Popen) -> Any:
    try:
        ok, result = pickle.load(worker.stdout)
    except (EOFError, pickle.UnpicklingError):  # at its end, or within a reply
        status = worker.wait()
        why = "; if the system killed it for memory, free some or use fewer workers"
        raise ChildProcessError(
            f"a worker process died (exit status {status}){why if status < 0 else ''}"
        ) from None
    if not ok:
        raise RuntimeError(f"a worker process failed:\n{result}")
    return result


def serve(module: str, name: str) -> None:
    """The worker's loop: answers items from stdin on stdout until stdin ends."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints goes to stderr, not into the replies
    function = getattr(importlib.import_module(module), name)
    while True:
        try:
            item = pickle.load(requests)
        except EOFError:
            return
        try:
            reply = (True, function(item))
        except Exception:  # of any kind: the parent raises it
            reply = (False, traceback.format_exc())
        try:
            _send(replies, reply)
        except BrokenPipeError:  # the parent is gone
            os._exit(1)
