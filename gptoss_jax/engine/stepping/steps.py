"""A round's work on the device and what comes of it: prompts read, slots given, steps asked for, and what they drew looked at.

Steps are asked for before those before are looked at: while the host works, the device does.
"""

from collections import deque
import logging
from typing import Any

import numpy as np

from gptoss_jax.engine.device.programs import Programs
from gptoss_jax.engine.device.state import Chunk
from gptoss_jax.engine.hooks import looking
from gptoss_jax.engine.requests import FinishReason, Piece, Stats
from gptoss_jax.engine.scheduling.adapters import Adapters
from gptoss_jax.engine.scheduling.live import Live
from gptoss_jax.engine.scheduling.scheduler import Scheduler
from gptoss_jax.engine.scheduling.turns import Turns
from gptoss_jax.engine.sizes import Sizes
from gptoss_jax.engine.stepping import exchange, fence
from gptoss_jax.engine.stepping.exchange import Asked, Routes
from gptoss_jax.engine.stepping.hooked_prompts import HookedPrompts
from gptoss_jax.engine.stepping.stride import Stride

GRACE = 2.0  # seconds that it may stand still in its slot while others wait: on a busy machine a good reader is late too
READS = 8  # most dispatches of prompts between two of decode steps, while all slots want for requests

_log = logging.getLogger(__name__)


class Steps:
    """The slots of an engine and the state that its programs hold; anew after a failure.

    Args:
      programs: prepared.
      sizes: of the engine.
      window: of sliding layers.
      reuse: whether prefixes are kept for later requests.
      stats: what is counted.
      adapters: that requests may ask for.

    Attributes:
      told: pieces of requests since this was last emptied; who ends with one has given back what it had.
      taken: requests that have been taken up since then.
      rest: seconds until another round does anything, if nobody asks or reads before; None for no end.
      hurried: somebody waits until what was begun has ended: nobody stands still, whether read or not.
    """

    def __init__(self, programs: Programs, sizes: Sizes, *, window: int, reuse: bool, stats: Stats, adapters: Adapters):
        self.programs, self._slots, self._stats, self._adapters = programs, sizes.slots, stats, adapters
        self.told: list[tuple[Live, Piece]] = []
        self.taken: list[Live] = []
        self._several = programs.partition is not None and programs.partition.processes > 1
        self.scheduler = Scheduler(sizes, window=window, reuse=reuse)
        self._asked: deque[Asked] = deque()
        self._reads: list[Routes] = []  # of prompts, since decode steps were last asked for
        self._allowed = np.zeros((sizes.slots, -(-programs.config.vocab_size // 32)), np.uint32)  # tokens of guided slots
        self._dropped: set[int] = set()  # slots that the device still believes to be at work
        self._stride, self._told_of_numbers = Stride(programs, several=self._several), False
        self._held: dict[Live, float] = {}  # those that stand still in this round, and since when
        self._turns, self._turn = Turns(), None  # of the programs that draw; those that draw in this round
        self._prompts = HookedPrompts(programs)
        self.rest: float | None = 0.0
        self.hurried = False

    def round(self) -> None:
        """Afterwards something has come, or more has been asked for."""
        self._pace()
        taken = self.scheduler.take_up()
        self.taken += taken
        for live in taken:
            live.request.weights_version = self.programs.version
            if why := self._adapters.lend(live):
                self.end(live, Piece(live.request, [], [], [], "error", error=why))
        progress = self._read()
        for live in self.scheduler.settle():
            self._dropped.discard(live.slot)
            pauses = None if live.request.constraint is None else live.request.constraint.pauses
            self.programs.place(live.slot, live.request.sampling, live.seed, live.prompt, pauses, live.budget, live.terms)
        progress |= self._decode()
        if not progress and not self._asked and self.scheduler.reading:
            self._make_room()
            progress = True
        self.rest = 0.0 if progress or self._asked else self._resting()
        if not progress:
            self.told += self._prompts.tell()
        while self._asked and (len(self._asked) > 1 or not progress or self._asked[-1].single):
            self._collect()

    @property
    def quiet(self) -> bool:
        """Whether nothing that was begun is on its way; steps that are in flight are nobody's then."""
        return not self.scheduler.begun and all(live.ended for asked in self._asked for live in asked.owners.values())

    def restart(self) -> None:
        """Has those begin anew of whom nobody has seen anything."""
        while self._asked:
            self._collect()
        self.told += self._prompts.tell()
        for live in [live for live in self.scheduler.begun if live.may_restart]:
            if live.slot is not None:
                self._dropped.add(live.slot)
            if live.tokens or live.looking is not None:
                self.told.append((live, Piece(live.request, [], [], [], None, anew=True)))
            self._held.pop(live, None)
            self.scheduler.restart(live)

    def end(self, live: Live, piece: Piece, *, known_to_device: bool = False) -> None:
        """A request's last piece."""
        self.told.append((live, piece))
        self._stats.requests += 1
        self.drop(live, known_to_device=known_to_device)

    def drop(self, live: Live, *, known_to_device: bool = False) -> None:
        """Gives back what a request has."""
        if live.slot is not None and not known_to_device:
            self._dropped.add(live.slot)
        self.scheduler.remove(live)
        self._held.pop(live, None)

    def _pace(self) -> None:
        """Finds out who stands still in this round, and has those give way who have done so for long while others wait."""
        running, parked = self.scheduler.running.values(), self.scheduler.parked
        paced = [] if self._several or self.hurried else [live for live in running if live.request.paced]
        for live in (*paced, *parked):
            live.outlet.held = True  # before it is looked at how much was read: who reads more meanwhile says so
        before, now = self._held, self.programs.now() if paced else 0.0
        self._held = {live: before.get(live, now) for live in paced if live.outlet.unread + max(0, live.new) > 2 * self._stride.share(live)}
        for live in paced:
            live.outlet.held = live in self._held
        for live in [live for live in parked if self.hurried or not live.outlet.unread]:
            live.outlet.held = False
            self.scheduler.unpark(live)
        for live, since in list(self._held.items()):
            if now - since >= GRACE and not live.in_flight and self.scheduler.crowded(live.shard):
                self._preempt(live)

    def _resting(self) -> float | None:
        """How long to rest where nothing can be done."""
        if self._held and self.scheduler.busy:
            return max(0.001, min(self._held.values()) + GRACE - self.programs.now())
        return None if (self._held or self.scheduler.parked) and not self.scheduler.busy else 0.0

    def _held_in(self, shard: int | None = None) -> Live | None:
        """One that stands still, of a shard or of all, and of which nothing is in flight."""
        return next((live for live in self._held if not live.in_flight and shard in (None, live.shard)), None)

    def _read(self) -> bool:
        """Has pieces of prompts read: one dispatch, more while slots stand empty."""
        most = 1 + int((READS - 1) * self.scheduler.hunger())
        for i in range(most):
            if not self.scheduler.must_read():
                return i > 0
            reading = self.scheduler.pieces()
            self._stats.computed += reading.computed
            self._stats.reused += reading.reused
            if reading.blocks is None:
                return i > 0  # what was only found in kept prefixes may be taken away again, and found again, for ever
            if reading.hook is None:
                experts = self.programs.read(*reading.blocks)
            else:
                experts, told = self._prompts.read(reading)
                self.told += told
            if experts is not None:
                self._reads.append(Routes(experts, reading.rows))
        return True

    def _next_turn(self) -> Any:
        """Whose programs draw next: those of a hook, or None for the plain ones."""
        able = [live for live in self.scheduler.running.values() if self._works(live) and live not in self._held]
        return next((live.draws_in for live in self._turns.sorted(able, lambda live: live.draws_in)), None)

    def _stands(self, live: Live) -> bool:
        """Whether it stands still in this round's steps."""
        return live in self._held or self._other_turn(live)

    def _other_turn(self, live: Live) -> bool:
        return live.draws_in is not self._turn

    def _works(self, live: Live) -> bool:
        return live.left > 0 or live.request.constraint is not None

    def _decode(self) -> bool:
        """Asks for the next decode steps of all slots, if any has something to do."""
        self._turn = self._next_turn()
        running = self.scheduler.running.values()
        here, others = [one for one in running if not self._stands(one)], [one for one in running if self._other_turn(one)]
        limit = self._stride.limit(here, others, busy=self.scheduler.busy, pacing=not self.hurried)
        limit = limit if self._turn is None else min(limit, self._turn.steps)
        while not self._reserve(limit):
            pass
        for slot, live in list(self.scheduler.running.items()):
            if self._stands(live):
                continue
            if live.waits and not live.replaying and (why := fence.mask(live, self._allowed[slot])):
                self.end(live, Piece(live.request, [], [], [], "error", error=why))
        at_work = {slot: live for slot, live in self.scheduler.running.items() if self._works(live)}
        running = {slot: live for slot, live in at_work.items() if not self._stands(live)}
        if not running:
            return False
        still = [slot for slot in at_work if slot not in running]
        wants = exchange.orders(running, limit, self._slots, dropped=list(self._dropped), held=still, allowed=self._allowed)
        began = self.programs.now()
        rows = {slot: live.looking for slot, live in running.items()}
        hooked = {} if self._turn is None else {"hook": self._turn, "given": looking.given(rows, self._slots)}
        chunk = self.programs.draw(limit, *self.scheduler.tables(), **wants, **hooked)
        self._turns.had(self._turn)
        self._dropped.clear()
        for live in running.values():
            live.in_flight += limit
        single, reads, self._reads = bool(wants["single"].any()), self._reads, []
        self._asked.append(Asked(chunk, running, limit, began, self.scheduler.busy, single, wants["resumed"], reads))
        return True

    def _make_room(self) -> None:
        """Has those give way who hold each other up while they are read: as many as it takes, for what they hold may be others' too."""
        while self.scheduler.reading:
            live = self._held_in() or self.scheduler.last()
            pages = self.scheduler.pages[live.shard]
            before = pages.room
            self._preempt(live)
            if pages.room > before:
                return

    def _reserve(self, limit: int) -> bool:
        """Sees to pages for the next steps of all slots, if need be by taking them from those that come last."""
        for live in sorted(self.scheduler.running.values(), key=lambda live: live.rank):
            while live.slot is not None and live.left > 0 and not self._stands(live) and not live.reserve(limit):
                if self._asked:  # what has been drawn may free pages, and must be known before a request starts again
                    while self._asked:
                        self._collect()
                    return False
                self._preempt(self._held_in(live.shard) or self.scheduler.last(live.shard))
        return True

    def _collect(self) -> None:
        """Takes in what the oldest steps that were asked for have drawn."""
        self.told += self._prompts.tell()  # they were read before
        asked = self._asked.popleft()
        wanted = exchange.needed(asked.chunk, asked.owners.values())
        chunk, experts = self.programs.fetch((wanted, [read.experts for read in asked.reads]))
        exchange.note(asked.reads, experts)
        count = chunk.count.tolist()
        steps = max(count)
        self._stride.measure(asked, steps)
        if asked.crowded and steps:
            self._stats.rows += steps * self._slots
            self._stats.busy_rows += sum(count)
        for slot, live in asked.owners.items():
            live.in_flight -= asked.limit
            if not live.ended:
                self._take_in(live, chunk, slot, count[slot])

    def _take_in(self, live: Live, chunk: Chunk, slot: int, n: int) -> None:
        """What `n` steps have brought one request."""
        known = min(n, max(0, len(live.tokens) - live.seen))
        live.seen += n
        error, last = None, n
        if live.request.constraint is not None:
            taken, error = fence.advance(live, chunk.sampled.tokens[slot, known:n].tolist())
            resumed = any(asked.owners.get(slot) is live and asked.resumed[slot] for asked in self._asked)
            last, live.waits = known + taken, bool(chunk.paused[slot]) and not resumed
        if error is None and chunk.broken[slot]:
            error = self._not_finite(live, last - known)
        reason: FinishReason | None = "error" if error else ("stop" if chunk.stopped[slot] else "length") if chunk.done[slot] else None
        piece = exchange.piece(live, chunk, slot, known, last, reason, error)
        live.tokens += piece.tokens
        live.outlet.given += len(piece.tokens)
        self._stats.generated += len(piece.tokens)
        if reason:
            self.end(live, piece, known_to_device=bool(chunk.done[slot]))
        elif piece.tokens:
            self.told.append((live, piece))

    def _not_finite(self, live: Live, new: int) -> str:
        """What to say of a request whose numbers are none; the first one is logged too."""
        why = f"logits must be finite; those after {len(live.tokens) + new:,} tokens of the answer were not, nor can be what follows."
        if not self._told_of_numbers:
            begins = f"its prompt has {len(live.prompt):,} tokens and begins with {live.prompt[:8].tolist()}"
            _log.warning("request %d (%s): %s Others are not touched; more like it are not logged.", live.order, begins, why)
        self._told_of_numbers = True
        return why

    def _preempt(self, live: Live) -> None:
        """Takes away what a request has: one that stands still comes back once it is read, another as soon as there is room."""
        self._stats.preemptions += 1
        if live.slot is not None:
            self._dropped.add(live.slot)
        if self._held.pop(live, None) is None:
            self.scheduler.preempt(live)
        else:
            self.scheduler.park(live)
