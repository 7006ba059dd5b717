"""How far a job is: a bar on a terminal, a line now and then in a log."""

from collections.abc import Callable
import dataclasses
import threading
import time

from gptoss_jax.bars import Bar
from gptoss_jax.batch.journal import Totals

_REDRAW = 0.5  # seconds


class Progress:
    """Shows totals as they grow, from a thread of its own while it is entered.

    Args:
        totals: of the results so far; looked at, not changed.
        requests: how many there will be.
        generated: how many tokens the model has written in this run, those of answers on their way too.
        log: takes a sentence every `seconds`; None for a bar on standard error.
    """

    def __init__(
        self, totals: Totals, requests: int, *, generated: Callable[[], int], log: Callable[[str], None] | None, seconds: float = 30
    ):
        self._totals, self._requests, self._generated, self._log = totals, requests, generated, log
        self._before, self._tokens_before = dataclasses.replace(totals), generated()
        self._began, self._seconds, self._ended = time.monotonic(), None, threading.Event()
        self._pause = _REDRAW if log is None else seconds
        self._bar = Bar(requests, initial=totals.done, unit="request", dynamic_ncols=True) if log is None else None
        self._thread = threading.Thread(target=self._work, name="progress", daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._seconds = self.seconds
        self._ended.set()
        self._thread.join()
        if self._bar is not None:
            self._show()
            self._bar.close()

    @property
    def seconds(self) -> float:
        """Since this began, until it was left."""
        return time.monotonic() - self._began if self._seconds is None else self._seconds

    def line(self) -> str:
        """The state in one sentence."""
        done, share = self._totals.done, self._totals.done / max(1, self._requests)
        new = done - self._before.done
        left = f"{_duration(self.seconds * (self._requests - done) / new)} left" if new else "nothing new yet"
        errors = f"{self._totals.errors:,} errors, {self._tokens_per_second():,.0f} output tokens/s"
        return f"{done:,} of {self._requests:,} requests ({share:.0%}), {errors}, {left}"

    def summary(self, occupancy: float | None = None) -> str:
        """All of the job, and this run of it."""
        t, new = self._totals, self._totals.done - self._before.done
        tokens = f"{t.tokens_in:,} tokens in, {t.tokens_out:,} out"
        run = f"this run: {new:,} requests in {self.seconds:,.1f} s, {self._tokens_per_second():,.0f} output tokens/s"
        full = "" if occupancy is None else f", {occupancy:.0%} of the slots in use"
        return f"{t.done:,} of {self._requests:,} requests, {t.errors:,} errors, {tokens}; {run}{full}"

    def _tokens_per_second(self) -> float:
        return (self._generated() - self._tokens_before) / max(self.seconds, 1e-9)

    def _work(self) -> None:
        while not self._ended.wait(self._pause):
            self._show()

    def _show(self) -> None:
        if self._bar is None:
            self._log(self.line())
            return
        self._bar.show(self._totals.done, f"{self._tokens_per_second():,.0f} tokens/s, {self._totals.errors:,} errors")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
