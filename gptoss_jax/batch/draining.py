"""The end of a job that is asked to end: what runs gets a few seconds, then nothing more is waited for.

SIGTERM, SIGINT and SIGUSR1 (SLURM's --signal) ask; a second one ends the process at once.
"""

from collections.abc import Iterator
import contextlib
import os
import signal
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
UNFINISHED = 75  # exit status (EX_TEMPFAIL): start the same command again


class _TimeIsUp(BaseException):
    """Not an Exception: whoever answers tasks must not take it for a task's error."""


class Draining:
    """Listens to the signals, in the main thread, while it is entered.

    Args:
        seconds: what runs gets to end.

    Attributes:
        asked: whether the job is to end; no more tasks should be begun.
    """

    def __init__(self, seconds: float):
        self.seconds, self.asked = seconds, False
        self._serving = self._waiting = self._over = False

    def __enter__(self) -> "Draining":
        self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._end)
        return self

    def __exit__(self, *_) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def until_time_is_up(self, outcomes: Iterator) -> Iterator[Any]:
        """The outcomes until they end, or until what runs has had its seconds; then they are closed."""
        self._serving = True
        try:
            while not self._over:
                self._waiting = True
                outcome = next(outcomes, self)
                self._waiting = False
                if outcome is self:
                    break
                yield outcome
        except _TimeIsUp:
            pass
        finally:
            self._serving = self._waiting = False
            outcomes.close()

    @contextlib.contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """A block within the wait for an outcome in which the end of the time does not break in."""
        before, self._waiting = self._waiting, False
        yield
        self._waiting = before
        if before and self._over:
            raise _TimeIsUp

    def _ask(self, *_) -> None:
        if self.asked:
            os._exit(UNFINISHED)  # what is in the journal has been written
        self.asked = True
        if not self._serving:
            raise SystemExit(UNFINISHED)
        signal.setitimer(signal.ITIMER_REAL, max(self.seconds, 1e-3))

    def _end(self, *_) -> None:
        self._over = True
        if self._waiting:
            self._waiting = False
            raise _TimeIsUp
