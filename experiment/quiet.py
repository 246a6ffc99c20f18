"""Reads of files that may be damaged, with what is wrong in the exception alone."""

import asyncio
import contextlib
import warnings

from absl import logging


class _PatientLoop(asyncio.SelectorEventLoop):
    """An event loop that ends the tasks begun in it, whose errors would else be printed later."""

    def close(self):
        pending = asyncio.all_tasks(self)
        if pending and not self.is_closed():
            self.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        super().close()


@contextlib.contextmanager
def orbax_quiet():
    """orbax neither logs nor leaves reads under way behind the first that fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # policies, from Python 3.14 on
        verbosity, policy = logging.get_verbosity(), asyncio.get_event_loop_policy()
        patient = asyncio.DefaultEventLoopPolicy()
        patient._loop_factory = _PatientLoop
        asyncio.set_event_loop_policy(patient)
        logging.set_verbosity(logging.FATAL)
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            asyncio.set_event_loop_policy(policy)
