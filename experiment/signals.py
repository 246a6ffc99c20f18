"""Ctrl-C and SIGTERM as a request to save and stop."""

import signal
import threading


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is noted in `received` (its name, else "").

    A second one ends the process in its usual way, at once. Python handles signals in the main
    thread alone, so in another one nothing is noted.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.received = ""

    def __enter__(self):
        main = threading.current_thread() is threading.main_thread()
        self._previous = {s: signal.signal(s, self._note) for s in self.SIGNALS if main}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self.received = signal.Signals(number).name
        for s in self.SIGNALS:
            signal.signal(s, self._previous[s])
