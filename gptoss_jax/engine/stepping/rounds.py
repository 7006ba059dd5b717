"""The rounds of an engine, one thread's: who is open, what each is told, and that every request gets a last piece, whatever happens."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
import functools
import logging
from typing import Any

import numpy as np

from gptoss_jax.engine.device import weights
from gptoss_jax.engine.device.programs import Programs
from gptoss_jax.engine.metrics import Metrics, Tally
from gptoss_jax.engine.readers import Change, Job, Outlet
from gptoss_jax.engine.requests import FinishReason, Piece, Stats
from gptoss_jax.engine.scheduling.adapters import Adapters
from gptoss_jax.engine.scheduling.live import Live
from gptoss_jax.engine.scheduling.scheduler import Scheduler
from gptoss_jax.engine.sizes import Sizes
from gptoss_jax.engine.stepping.steps import Steps
from gptoss_jax.parallel import processes
from gptoss_jax.quoting import said

ASLEEP = "an LLM must be awake to be asked anything; this one sleeps, or is about to; call its wake()."
LOOKS = 16  # rounds after which those that wait are looked through for cancelled ones

_log = logging.getLogger(__name__)


class Rounds:
    """The requests of an engine, and its programs.

    Args:
      programs: prepared before the first round.
      sizes: of the engine.
      window: of sliding layers.
      reuse: whether prefixes are kept for later requests.
      adapters: that requests may ask for.

    Attributes:
      metrics: as of the last `take_out`; any thread may look.
      asleep: all requests are refused, from when that was asked for.
    """

    def __init__(self, programs: Programs, sizes: Sizes, *, window: int, reuse: bool, adapters: Adapters | None = None):
        self.programs, self.stats = programs, Stats()
        self._several = programs.partition is not None and programs.partition.processes > 1
        self._open: dict[Live, None] = {}
        self._limited: dict[Live, None] = {}  # those of them with a time limit
        self._out: dict[Outlet, list[Piece]] = {}
        self._jobs: deque[Job] = deque()
        self._changes: deque[Change] = deque()
        self.asleep = self._slept = False
        self._waiters: list[Callable[[], None]] = []
        self._count = 0
        self.adapters = Adapters(0) if adapters is None else adapters
        self._make = functools.partial(Steps, programs, sizes, window=window, reuse=reuse, stats=self.stats, adapters=self.adapters)
        self._steps, self._stale = self._make(), False
        self._tally = Tally(slots=sizes.slots, reuse=reuse)
        self.metrics = self._look()

    @property
    def scheduler(self) -> Scheduler:
        """Queues and pages."""
        return self._steps.scheduler

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._open and not self._jobs and not self._changes

    @property
    def rest(self) -> float | None:
        """Seconds until there is something to do, if nobody asks or reads before; None for no end."""
        if self._jobs or self._changes:
            return 0.0
        rest = self._steps.rest if self._open else None
        if self._limited and rest != 0:
            until = max(0.001, min(live.deadline for live in self._limited) - self.programs.now())
            rest = until if rest is None else min(rest, until)
        return rest

    def add(self, lives: Iterable[Live]) -> None:
        """Takes requests in; their pieces go to their outlets."""
        lives = list(lives)
        limited = [live for live in lives if live.request.time_limit is not None]
        deadlines = self.programs.now() + np.array([live.request.time_limit for live in limited], np.float64)
        if limited and self._several:  # they began with different clocks, and took different times until now
            deadlines = processes.broadcast(deadlines)
        for live, deadline in zip(limited, deadlines.tolist(), strict=True):
            live.deadline = deadline
            self._limited[live] = None
        for live in lives:
            self._open[live] = None
            live.outlet.lives.add(live)
            if not self.asleep:
                self.scheduler.add(live)
        if self.asleep:  # they were on their way when that was said
            self._end(lives, ASLEEP)

    def add_job(self, job: Job) -> None:
        """Takes in what is done one dispatch a round, beside the requests; one job after another."""
        self._jobs.append(job)

    def add_change(self, change: Change) -> None:
        """Takes in what is to be done between requests; one change after another."""
        self._changes.append(change)
        self.asleep |= change.last

    def swap(self, weights: Mapping[str, Any], version: int | str | None) -> int | str:
        """Other weights from now on, see `Programs.swap`; prefixes that were kept are those of the ones before. For a `Change`."""
        version = self.programs.swap(weights, version)
        for pages in self.scheduler.pages:
            pages.forget()
        return version

    def sleep(self) -> None:
        """Gives back what programs and state take. For a `Change`."""
        self._slept = True
        self.programs.drop()
        self._steps, self._stale = self._make(), False

    def wake(self) -> None:
        """Takes requests again, if programs and state are there: a sleep may have come between. For a `Change`."""
        self.asleep = self._slept = not self.programs.ready

    def close(self, outlet: Outlet) -> None:
        """Nobody reads there any more: its requests end, without a last piece."""
        for live in list(outlet.lives):
            self._steps.drop(live)
            self._tally.ended(live, "cancelled")
            self._forget(live)
        self._out.pop(outlet, None)

    def when_idle(self, call: Callable[[], None]) -> None:
        """Calls once there is nothing to do."""
        self._waiters.append(call)

    def take_out(self) -> dict[Outlet, list[Piece]]:
        """The pieces since this was last asked, and an empty list for those who would ask for more."""
        if self.idle and self._waiters:
            waiters, self._waiters = self._waiters, []
            for call in waiters:
                call()
        self.metrics = self._look()
        out, self._out = self._out, {}
        return out

    def nothing_for(self, outlet: Outlet) -> None:
        """Wakes a reader, if only with an empty list."""
        self._out.setdefault(outlet, [])

    def step(self) -> None:
        """One round."""
        self._do_job()
        self._make_changes()
        if self._open:
            self.fenced(Rounds._round)

    def fenced(self, what: "Callable[[Rounds], None]") -> None:
        """Does something to these rounds; where that fails, all requests end with what they have, and the next round begins anew."""
        try:
            what(self)
        except BaseException as error:  # whatever it is: a thread that ended would leave everybody waiting
            _log.exception("a round failed")
            self.fail(f"the engine failed and begins anew: {self._said(error)}; what came so far is here, ask again.")

    def fail(self, why: str) -> None:
        """Ends all requests with an error; nothing of the state is used again."""
        self._end(list(self._open), why)
        self._tally.failed()
        self._steps, self._stale = self._make(), True

    def _end(self, lives: Iterable[Live], why: str) -> None:
        for live in lives:
            self._out.setdefault(live.outlet, []).append(_last(live, "error", why))
            live.ended = True
            self._tally.ended(live, "error")
            self._forget(live)

    def _said(self, error: BaseException) -> str:
        return weights.lost(self.programs.params) or said(error)

    def _do_job(self) -> None:
        if self._jobs and self._jobs[0].advance():
            self._jobs.popleft()

    def _make_changes(self) -> None:
        """Makes the changes that wait for nothing any more, and says to the steps what the next one waits for."""
        while self._changes:
            change = self._changes[0]
            if change.left and not self._several:  # the other processes go on with it
                self._changes.popleft()
                self.asleep = self._slept or any(other.last for other in self._changes)
                continue
            if change.restart:
                change.restart = False
                self.fenced(Rounds._restart)
            if self._open or self._jobs if change.last else not self._steps.quiet:
                break
            self._changes.popleft()
            change.make(self)
        self._steps.hurried = bool(self._changes)
        self.scheduler.holding = bool(self._changes) and not self._changes[0].last

    def _restart(self) -> None:
        try:
            self._steps.restart()
        finally:
            self._keep_books()

    def _round(self) -> None:
        if self._stale:
            self.programs.renew()
            self._stale = False
        self._count += 1
        try:
            self._end_cancelled_and_late()
            self._steps.round()
        finally:
            self._keep_books()

    def _keep_books(self) -> None:
        """Passes on what the steps have told."""
        steps = self._steps
        told, taken, steps.told, steps.taken = steps.told, steps.taken, [], []
        for live in taken:
            if live.queued:
                self._tally.taken(live)
            self._leave_queue(live)
        for live, piece in told:
            self._tally.told(live, piece)
            self._out.setdefault(live.outlet, []).append(piece)
            if piece.finish_reason:
                self._forget(live)

    def _look(self) -> Metrics:
        scheduler = self.scheduler
        waiting = scheduler.without_slot
        return self._tally.metrics(self.stats, asleep=self.asleep, running=len(scheduler.running), waiting=waiting, pages=scheduler.pages)

    def _now(self) -> float:
        """The time, of one clock for all processes."""
        now = self.programs.now()
        return float(processes.broadcast(np.array(now))) if self._several else now

    def _end_cancelled_and_late(self) -> None:
        look = self._open if self._count % LOOKS == 0 else self.scheduler.lives
        for live in [live for live in look if live.request.cancelled]:
            self._steps.end(live, _last(live, "cancelled"))
        if self._limited:
            now = self._now()
            for live in [live for live in self._limited if now > live.deadline and not live.ended]:
                self._steps.end(live, _last(live, "timeout"))

    def _leave_queue(self, live: Live) -> None:
        """A request waits no more, for the first time; its reader may ask for another one."""
        outlet = live.outlet
        if live.queued:
            live.queued = False
            outlet.left += 1
            if outlet.waiting < outlet.hungry:
                outlet.hungry = 0
                self._out.setdefault(outlet, [])

    def _forget(self, live: Live) -> None:
        """A request has ended, and has given back what it had."""
        self._leave_queue(live)
        live.outlet.lives.discard(live)
        self._open.pop(live)
        self.adapters.give_back(live)
        self._limited.pop(live, None)


def _last(live: Live, reason: FinishReason, error: str | None = None) -> Piece:
    return Piece(live.request, [], [], [], reason, error=error)
