"""The rounds of an engine, one thread's: requests taken up, prompts read, steps asked for, and what they have drawn looked at.

A round takes up requests, has pieces of prompts read, gives free slots to those that are ready, asks for the next decode steps, and only
then looks at what the steps before have drawn: while the host works, the device does. Every request that is added gets a last piece.
"""

from collections import deque
from collections.abc import Callable, Iterable
import logging

import numpy as np

from gptoss_jax.engine import exchange, fence
from gptoss_jax.engine.exchange import Asked, Routes
from gptoss_jax.engine.live import Live
from gptoss_jax.engine.programs import Programs
from gptoss_jax.engine.readers import Job, Outlet
from gptoss_jax.engine.requests import FinishReason, Piece, Stats
from gptoss_jax.engine.scheduler import Scheduler
from gptoss_jax.engine.sizes import STEPS, Sizes
from gptoss_jax.parallel import processes
from gptoss_jax.quoting import said

BUSY_STEPS = 8  # most decode steps a dispatch while somebody waits for a slot
LEAST_STEPS = 4
READS = 8  # most dispatches of prompts between two of decode steps, while all slots want for requests
LOOKS = 16  # rounds after which those that wait are looked through for cancelled ones

_log = logging.getLogger(__name__)


class Rounds:
    """The requests of an engine, and its programs.

    Args:
      programs: prepared before the first round.
      sizes: of the engine.
      window: of sliding layers.
      reuse: whether prefixes are kept for later requests.
    """

    def __init__(self, programs: Programs, sizes: Sizes, *, window: int, reuse: bool):
        self.programs, self.sizes = programs, sizes
        self._window, self._reuse = window, reuse
        self._several = programs.partition is not None and programs.partition.processes > 1
        self.stats = Stats()
        self._open: dict[Live, None] = {}
        self._limited: dict[Live, None] = {}  # those of them with a time limit
        self._out: dict[Outlet, list[Piece]] = {}
        self._jobs: deque[Job] = deque()
        self._waiters: list[Callable[[], None]] = []
        self._step_seconds, self._count, self._told = 0.0, 0, False
        self._begin_anew()

    def _begin_anew(self) -> None:
        vocab_size = self.programs.config.vocab_size
        self.scheduler = Scheduler(self.sizes, window=self._window, reuse=self._reuse)
        self._asked: deque[Asked] = deque()
        self._reads: list[Routes] = []  # of prompts, since decode steps were last asked for
        self._allowed = np.zeros((self.sizes.slots, -(-vocab_size // 32)), np.uint32)  # tokens of guided slots
        self._dropped: set[int] = set()  # slots that the device still believes to be at work
        self._stale = False  # the state that the device holds is of before a failure

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._open and not self._jobs

    def add(self, lives: Iterable[Live]) -> None:
        """Takes requests in; their pieces go to their outlets."""
        lives = list(lives)
        limited = [live for live in lives if live.request.time_limit is not None]
        now = self._now() if limited else 0.0
        for live in limited:
            live.deadline = now + live.request.time_limit
            self._limited[live] = None
        for live in lives:
            self._open[live] = None
            live.outlet.lives.add(live)
            self.scheduler.add(live)

    def add_job(self, job: Job) -> None:
        """Takes in what is done one dispatch a round, beside the requests; one job after another."""
        self._jobs.append(job)

    def close(self, outlet: Outlet) -> None:
        """Nobody reads there any more: its requests end, without a last piece."""
        for live in list(outlet.lives):
            self._drop(live)
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
        out, self._out = self._out, {}
        return out

    def nothing_for(self, outlet: Outlet) -> None:
        """Wakes a reader, if only with an empty list."""
        self._out.setdefault(outlet, [])

    def step(self) -> None:
        """One round."""
        self._do_job()
        if self._open:
            self.fenced(Rounds._round)

    def fenced(self, what: "Callable[[Rounds], None]") -> None:
        """Does something to these rounds; where that fails, all requests end with what they have, and the next round begins anew."""
        try:
            what(self)
        except BaseException as error:  # whatever it is: a thread that ended would leave everybody waiting
            _log.exception("a round failed")
            self.fail(f"the engine failed and begins anew: {said(error)}; what came so far is here, ask again.")

    def fail(self, why: str) -> None:
        """Ends all requests with an error; nothing of the state is used again."""
        for live in list(self._open):
            self._say(live, Piece(live.request, [], [], [], "error", error=why))
            live.outlet.lives.discard(live)
            live.ended = True
            self._leave_queue(live)
        self._open.clear()
        self._limited.clear()
        self._begin_anew()
        self._stale = True

    def _do_job(self) -> None:
        if self._jobs and self._jobs[0].advance():
            self._jobs.popleft()

    def _round(self) -> None:
        """Afterwards something has come, or more has been asked for."""
        if self._stale:
            self.programs.renew()
            self._stale = False
        self._count += 1
        self._end_cancelled_and_late()
        for live in self.scheduler.take_up():
            self._leave_queue(live)
        progress = self._read()
        for live in self.scheduler.settle():
            self._dropped.discard(live.slot)
            pauses = None if live.request.constraint is None else live.request.constraint.pauses
            self.programs.place(live.slot, live.request.sampling, live.seed, live.prompt, pauses, live.budget)
        progress |= self._decode()
        if not progress and not self._asked and self.scheduler.reading:
            self._preempt(self.scheduler.last())  # readers hold each other up
        while self._asked and (len(self._asked) > 1 or not progress or self._asked[-1].single):
            self._collect()

    def _read(self) -> bool:
        """Has pieces of prompts read: one dispatch, more while slots stand empty."""
        most = 1 + int((READS - 1) * self.scheduler.hunger())
        for i in range(most):
            if not self.scheduler.must_read():
                return i > 0
            reading = self.scheduler.pieces()
            self.stats.computed += reading.computed
            self.stats.reused += reading.reused
            if reading.blocks is None:
                return i > 0 or reading.reused > 0
            experts = self.programs.read(*reading.blocks)
            if experts is not None:
                self._reads.append(Routes(experts, reading.rows))
        return True

    def _decode(self) -> bool:
        """Asks for the next decode steps of all slots, if any has something to do."""
        limit = self._limit()
        while not self._reserve(limit):
            pass
        for slot, live in list(self.scheduler.running.items()):
            if live.waits and not live.replaying and (why := fence.mask(live, self._allowed[slot])):
                self._end(live, "error", why)
        running = {slot: live for slot, live in self.scheduler.running.items() if live.left > 0 or live.request.constraint is not None}
        if not running:
            return False
        wants = exchange.orders(running, limit, self.sizes.slots, dropped=list(self._dropped), allowed=self._allowed)
        began = self.programs.now()
        chunk = self.programs.draw(limit, *self.scheduler.tables(), **wants)
        self._dropped.clear()
        for live in running.values():
            live.in_flight += limit
        single, reads, self._reads = bool(wants["single"].any()), self._reads, []
        self._asked.append(Asked(chunk, running, limit, began, self.scheduler.busy, single, reads))
        return True

    def _limit(self) -> int:
        """How many steps to ask for: few where somebody waits for a slot that may fall free, or for the next piece."""
        running = self.scheduler.running.values()
        if any(live.waits and not live.replaying for live in running):
            return 1
        limit = STEPS
        if self.scheduler.busy:
            ends = [live.left for live in running if live.left > 0]
            limit = max(LEAST_STEPS, min([BUSY_STEPS, *ends]))
        patience = _patience(running)
        if patience is not None:
            limit = min(limit, max(1, int(patience / self._step_seconds)) if self._step_seconds else LEAST_STEPS)
        return limit

    def _reserve(self, limit: int) -> bool:
        """Sees to pages for the next steps of all slots, if need be by taking them from those that come last."""
        for live in sorted(self.scheduler.running.values(), key=lambda live: live.rank):
            while live.slot is not None and live.left > 0 and not live.reserve(limit):
                if self._asked:  # what has been drawn may free pages, and must be known before a request starts again
                    while self._asked:
                        self._collect()
                    return False
                self._preempt(self.scheduler.last(live.shard))
        return True

    def _collect(self) -> None:
        """Takes in what the oldest steps that were asked for have drawn."""
        asked = self._asked.popleft()
        chunk, experts = self.programs.fetch((asked.chunk, [read.experts for read in asked.reads]))
        exchange.note(asked.reads, experts)
        count = chunk.count.tolist()
        steps = max(count)
        self._measure(asked, steps)
        if asked.crowded and steps:
            self.stats.rows += steps * self.sizes.slots
            self.stats.busy_rows += sum(count)
        for slot, live in asked.owners.items():
            live.in_flight -= asked.limit
            if not live.ended:
                self._take_in(live, chunk, slot, count[slot])

    def _take_in(self, live: Live, chunk, slot: int, n: int) -> None:
        """What `n` steps have brought one request."""
        known = min(n, max(0, len(live.tokens) - live.seen))
        live.seen += n
        error, last = None, n
        if live.request.constraint is not None:
            taken, error = fence.advance(live, chunk.sampled.tokens[slot, known:n].tolist())
            last, live.waits = known + taken, bool(chunk.paused[slot])
        if error is None and chunk.broken[slot]:
            error = self._not_finite(live, last - known)
        reason: FinishReason | None = "error" if error else ("stop" if chunk.stopped[slot] else "length") if chunk.done[slot] else None
        piece = exchange.piece(live, chunk, slot, known, last, reason, error)
        live.tokens += piece.tokens
        self.stats.generated += len(piece.tokens)
        if piece.tokens or reason:
            self._say(live, piece)
        if reason:
            self.stats.requests += 1
            self._drop(live, known_to_device=bool(chunk.done[slot]))

    def _not_finite(self, live: Live, new: int) -> str:
        """What to say of a row whose numbers are none; the first of an engine is logged too."""
        begins = f"prompt of {len(live.prompt):,} tokens that begins with {live.prompt[:8].tolist()}"
        why = f"logits must be finite; those after {len(live.tokens) + new:,} tokens of the answer were not, nor can be what follows."
        if not self._told:
            _log.warning("request %d (%s): %s Others are not touched; later ones are not logged.", live.order, begins, why)
        self._told = True
        return why

    def _measure(self, asked: Asked, steps: int) -> None:
        """Keeps the time that a step takes, which all processes must take to be the same."""
        if not steps or (self._several and _patience(asked.owners.values()) is None):
            return
        seconds = np.array((self.programs.now() - asked.began) / steps)
        self._step_seconds = float(processes.broadcast(seconds) if self._several else seconds)

    def _now(self) -> float:
        """The time, of one clock for all processes."""
        now = self.programs.now()
        return float(processes.broadcast(np.array(now))) if self._several else now

    def _end_cancelled_and_late(self) -> None:
        look = self._open if self._count % LOOKS == 0 else self.scheduler.lives
        for live in [live for live in look if live.request.cancelled]:
            self._end(live, "cancelled")
        if self._limited:
            now = self._now()
            for live in [live for live in self._limited if now > live.deadline]:
                self._end(live, "timeout")

    def _leave_queue(self, live: Live) -> None:
        """A request waits no more, for the first time; its reader may have another one."""
        outlet = live.outlet
        if live.queued:
            live.queued = False
            outlet.left += 1
            if outlet.waiting < outlet.hungry:
                outlet.hungry = 0
                self._out.setdefault(outlet, [])

    def _end(self, live: Live, reason: FinishReason, error: str | None = None) -> None:
        self._say(live, Piece(live.request, [], [], [], reason, error=error))
        self.stats.requests += 1
        self._drop(live)

    def _say(self, live: Live, piece: Piece) -> None:
        self._out.setdefault(live.outlet, []).append(piece)

    def _preempt(self, live: Live) -> None:
        self.stats.preemptions += 1
        if live.slot is not None:
            self._dropped.add(live.slot)
        self.scheduler.preempt(live)

    def _drop(self, live: Live, *, known_to_device: bool = False) -> None:
        if live.ended:
            return
        if live.slot is not None and not known_to_device:
            self._dropped.add(live.slot)
        self.scheduler.remove(live)
        self._leave_queue(live)
        live.outlet.lives.discard(live)
        self._open.pop(live)
        self._limited.pop(live, None)


def _patience(lives: Iterable[Live]) -> float | None:
    """Seconds until the next piece that the least patient one grants."""
    return min((s for live in lives if (s := live.request.seconds_per_piece) is not None), default=None)
