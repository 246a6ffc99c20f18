"""What orbax would log and print is left out, what others do is not, and all is put back."""

import asyncio
import logging
import threading

import pytest

from experiment import quiet
from experiment.quiet import orbax_quiet

ORBAX, OTHER = "/packages/orbax/checkpoint/x.py", "/packages/not_orbax/x.py"


def test_threads_of_orbax_alone_print_no_tracebacks(monkeypatch):
    printed = []
    monkeypatch.setattr(threading, "excepthook", lambda args: printed.append(str(args.exc_value)))

    def fail(file):
        code = compile(f"raise OSError({file!r})", file, "exec")
        thread = threading.Thread(target=exec, args=(code, {}))
        thread.start()
        thread.join()

    with orbax_quiet():
        fail(ORBAX)
        fail(OTHER)
        assert printed == [OTHER]
    fail(ORBAX)
    assert printed == [OTHER, ORBAX]


def test_logs_of_orbax_alone_are_left_out():
    logger, seen = logging.getLogger("absl"), []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.pathname)
    logger.addHandler(handler)

    def log(file):
        logger.handle(logging.LogRecord("absl", logging.ERROR, file, 1, "full", (), None))

    try:
        with orbax_quiet():
            log(ORBAX)
            log(OTHER)
            assert seen == [OTHER]
        log(ORBAX)
    finally:
        logger.removeHandler(handler)
    assert seen == [OTHER, ORBAX]


def test_tasks_that_orbax_leaves_behind_end_before_their_loop_closes():
    ended = []

    async def slow():
        for _ in range(9):
            await asyncio.sleep(0)
        ended.append(True)

    async def begin():
        return asyncio.ensure_future(slow())

    policy = quiet._policy()
    with pytest.raises(OSError, match="full"), orbax_quiet():
        loop = asyncio.new_event_loop()
        loop.run_until_complete(begin())
        assert not ended
        loop.close()
        assert ended and loop.is_closed()
        raise OSError("full")
    assert quiet._policy() is policy
