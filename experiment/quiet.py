"""orbax on files that can't be read or written: what is wrong is in the exception alone."""

import asyncio
import contextlib
import logging
import threading
import time
import traceback
import warnings

END_SECONDS = 10  # for orbax's threads to end after one of them failed


@contextlib.contextmanager
def orbax_quiet():
    """While entered, orbax logs nothing and its threads print no tracebacks; it still raises.

    Where one of many reads or writes fails, orbax goes on at once, and the errors of the others are
    printed later, from wherever they happen to be; so they are waited for.
    """
    logger, hook, policy = logging.getLogger("absl"), threading.excepthook, _policy()

    def not_of_orbax(record):
        return not _in_orbax(record.pathname)

    def print_others(args):
        frames = traceback.walk_tb(args.exc_traceback)
        if not any(_in_orbax(frame.f_code.co_filename) for frame, _ in frames):
            hook(args)

    logger.addFilter(not_of_orbax)
    threading.excepthook = print_others
    patient = asyncio.DefaultEventLoopPolicy()
    patient._loop_factory = _PatientLoop
    _policy(patient)
    try:
        yield
    finally:
        end = time.monotonic() + END_SECONDS
        for thread in threading.enumerate():
            is_own = thread is threading.current_thread()  # where garbage is collected in one
            if type(thread).__module__.startswith("orbax.") and not is_own:
                threading.Thread.join(thread, max(end - time.monotonic(), 0))  # orbax's raises
        _policy(policy)
        threading.excepthook = hook
        logger.removeFilter(not_of_orbax)


class _PatientLoop(asyncio.SelectorEventLoop):
    """Ends the tasks begun in it before it closes."""

    def close(self):
        pending = asyncio.all_tasks(self)
        if pending and not self.is_closed():
            self.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        super().close()


def _policy(new=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.14 on
        if new:
            asyncio.set_event_loop_policy(new)
        return asyncio.get_event_loop_policy()


def _in_orbax(path):
    return "orbax" in path.replace("\\", "/").split("/")
