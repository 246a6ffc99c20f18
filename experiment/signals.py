"""Ctrl-C, SIGTERM and a closed terminal as a request to save and stop."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AGAIN_SECONDS = 3  # in less an interrupted program has mostly cleaned up
# Exit statuses of a program of ours that one of them ended: once it had saved, or at once.
STOPPED = tuple(s for number in SIGNALS for s in (128 + number, -number))


def exit_status(signal_name: str) -> int:
    """What a shell says of a program that a signal ended, 130 for SIGINT, say."""
    return 128 + signal.Signals[signal_name]


class StopSignals:
    """While entered, the first of `SIGNALS` is noted in `received` (its name, else "").

    A second one ends the process in its usual way, at once, but for SIGHUP: a shell and the system
    send it both; where it is ignored, as by nohup, it stays so. Python handles signals in the main
    thread alone, so in another one nothing is noted. What `before`, entered earlier, has noted or
    yet notes counts too. `notice` is what is said, on the standard error, of the first. With
    `interrupting` a second one of any kind raises KeyboardInterrupt instead. `ending`, called
    with the first one's name except within `raising`, is to end the program where it is: XLA may
    crash of an exception.
    """

    def __init__(
        self,
        before: "StopSignals | None" = None,
        notice: str = "",
        interrupting: bool = False,
        ending: Callable[[str], None] | None = None,
    ):
        self._noted, self._before, self._notice = "", before, notice
        self._interrupting, self._ending = interrupting, ending
        self._usual: dict = {}  # what each signal did before any of these was entered
        self._raises = False

    @property
    def received(self) -> str:
        """The signal's name, "" for none."""
        return self._noted or (self._before.received if self._before else "")

    @contextlib.contextmanager
    def raising(self):
        """Within it a signal, also one that came before, raises KeyboardInterrupt with its name.

        Again and again until it is left: Python drops what is raised while it collects garbage.
        """
        usual, before = signal.signal(signal.SIGALRM, self._raise), self._raises
        self._raises = True
        try:
            if self.received:
                self._raise()
            yield
        except Exception:
            if self.received:  # of what was interrupted half way
                raise KeyboardInterrupt(self.received) from None
            raise
        finally:
            self._raises = before
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, usual)

    def _raise(self, *_):
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        raise KeyboardInterrupt(self.received)

    def __enter__(self):
        main = threading.current_thread() is threading.main_thread()
        heeded = [s for s in SIGNALS if main and not _is_for_others(s)]
        self._previous = {s: signal.signal(s, self._note) for s in heeded}
        self._usual = (self._before and self._before._usual) or self._previous
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self._noted = signal.Signals(number).name
        for s, usual in self._usual.items():
            usual = signal.default_int_handler if self._interrupting else usual
            signal.signal(s, signal.SIG_IGN if s == signal.SIGHUP else usual)
        if self._raises:
            self._raise()
        if self._ending:
            self._ending(self._noted)
        if self._notice:
            write(f"\n{self._noted}: {self._notice}\n")


def write(text: str) -> None:
    """Writes to the standard error, in a signal's handler too: print may be what it interrupts."""
    with contextlib.suppress(OSError):  # nobody reads it: the same Ctrl-C has ended a tee, say
        os.write(2, text.encode())


def _is_for_others(number):
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
