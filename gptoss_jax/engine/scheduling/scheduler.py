"""Who is read, who gets a slot and who has to give way: the engine's decisions, from what the host knows. No arrays of the device.

    waiting -> reading -> ready -> running (has a slot) -> ended
       ^---------- preempted ----------'
       ^---- parked, until it is read -'

Prompts are read ahead of the slots, so that a slot that falls free is taken at once. Decisions follow from the requests and their
order alone: all processes of a mesh make the same ones.
"""

import dataclasses
import heapq
from typing import Any

import numpy as np

from gptoss_jax.engine.scheduling.live import Live, Rows
from gptoss_jax.engine.scheduling.pages import Pages
from gptoss_jax.engine.scheduling.turns import Turns
from gptoss_jax.engine.sizes import Sizes, ahead


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is to be read next.

    Attributes:
      blocks: what `Programs.read` takes; None if nothing.
      rows: whose they are.
      reused: tokens of prompts that were found in kept prefixes.
      hook: the programs of the hook that all rows have; None for none.
    """

    blocks: tuple[np.ndarray, ...] | None
    rows: Rows
    reused: int
    hook: Any = None

    @property
    def computed(self) -> int:
        """Tokens of prompts that are read."""
        return sum(piece.count for _, _, piece in self.rows)


class Scheduler:
    """Queues and pages of an engine.

    Args:
      sizes: of the engine.
      window: of sliding layers.
      reuse: whether prefixes are kept for later requests.

    Attributes:
      holding: only those are taken up that have been before; the others wait, however many slots are free.
    """

    def __init__(self, sizes: Sizes, *, window: int, reuse: bool):
        self._sizes = sizes
        per = lambda total: total // sizes.replicas
        shard = lambda i, total: (i * per(total), per(total))
        blocks = -(-(window - 1) // sizes.page)
        self.pages = [
            Pages(shard(i, sizes.full_pages), shard(i, sizes.ring_pages), window_blocks=blocks, reuse=reuse) for i in range(sizes.replicas)
        ]
        self.holding = False
        self._new: list[tuple[tuple[int, int], Live]] = []  # a heap of those that wait for the first time
        self._again: list[tuple[tuple[int, int], Live]] = []  # and one of those that gave way
        self._gone = 0  # of those, the ones that have ended meanwhile
        self._reading: list[Live] = []
        self.turns = Turns()  # of the programs that read
        self._ready: list[Live] = []
        self.running: dict[int, Live] = {}
        self.parked: dict[Live, None] = {}  # they gave way, and wait for their readers

    @property
    def waiting(self) -> int:
        return len(self._new) + len(self._again) - self._gone

    @property
    def without_slot(self) -> int:
        """Requests that are open and have none."""
        return self.waiting + len(self._reading) + len(self._ready) + len(self.parked)

    @property
    def busy(self) -> bool:
        """Whether somebody would take a slot that falls free."""
        return bool((self._again if self.holding else self.waiting) or self._reading or self._ready)

    @property
    def lives(self) -> list[Live]:
        """All that hold, or may hold, pages."""
        return [*self._reading, *self._ready, *self.running.values()]

    @property
    def begun(self) -> list[Live]:
        """All that have been taken up, those too that gave way since."""
        return [*self.lives, *self.parked, *(live for _, live in self._again if not live.ended)]

    def add(self, live: Live) -> None:
        heapq.heappush(self._again if live.preempted else self._new, (live.rank, live))  # ranks differ

    def remove(self, live: Live) -> None:
        """Ends a request and gives back what it has."""
        live.ended = True
        if live in self.parked:
            del self.parked[live]
        else:
            self._gone += not live.begun
        self._take_out(live)
        live.release()

    def preempt(self, live: Live) -> None:
        """Takes a request's pages away; it will be computed again."""
        self._take_out(live)
        live.release()
        self.add(live)

    def park(self, live: Live) -> None:
        """Takes a request's pages away; it will be computed again once that is asked for."""
        self._take_out(live)
        live.release()
        self.parked[live] = None

    def unpark(self, live: Live) -> None:
        """Has a request wait for pages and a slot again."""
        del self.parked[live]
        self.add(live)

    def restart(self, live: Live) -> None:
        """Has a request that was taken up wait as if it had never been."""
        self.parked.pop(live, None)
        self._again = [pair for pair in self._again if pair[1] is not live]
        heapq.heapify(self._again)
        self._take_out(live)
        live.restart()
        self.add(live)

    def take_up(self) -> list[Live]:
        """Moves requests that wait to where their prompts are read: as many as there are slots for, and some ahead."""
        most = len(self._free_slots()) + ahead(self._sizes.slots, self._sizes.replicas) * self._sizes.replicas
        taken = []
        while len(self._reading) + len(self._ready) < most and (live := self._next()) is not None:
            if live.ended:
                self._gone -= 1
                continue
            load = [0] * self._sizes.replicas
            for other in self.lives:
                load[other.shard] += 1
            shard = load.index(min(load))
            live.begin(self.pages[shard], shard)
            (self._reading if live.unread else self._ready).append(live)
            taken.append(live)
        return taken

    def pieces(self) -> Reading:
        """Blocks of prompts for the next dispatch, as many as there are rows and pages for: of those that are read by the same programs."""
        sizes, rows, found = self._sizes, [], 0
        hook, n, per_shard, room = None, 0, 0, None
        for live in self._reading:
            live.drop_old(live.read)
        for live in self.turns.sorted(self._reading, lambda live: live.reads_in):
            spare = sum(other.shard == live.shard for other in self.running.values())
            found += live.reuse()
            while (room is None or (live.reads_in is hook and room[live.shard])) and (piece := live.next_piece(spare)):
                if room is None:
                    hook = live.reads_in
                    n = sizes.read_rows if hook is None else hook.rows
                    per_shard = n // sizes.replicas
                    room = [per_shard] * sizes.replicas
                rows.append(((live.shard + 1) * per_shard - room[live.shard], live, piece))
                room[live.shard] -= 1
            if live.unread == 0:
                self._reading.remove(live)
                self._ready.append(live)
        self._ready.sort(key=lambda live: live.rank)
        if not rows:
            return Reading(None, rows, found)
        self.turns.had(hook)
        tokens, count, start = np.zeros((n, sizes.page), np.int32), np.zeros(n, np.int32), np.zeros(n, np.int32)
        adapter = np.full(n, -1, np.int32)
        full, ring = self._tables(n, sizes.read_ring)
        for row, live, piece in rows:
            tokens[row], count[row], start[row], adapter[row] = piece.tokens, piece.count, piece.start, live.terms
            live.fill(full[row], ring[row])
        return Reading((tokens, count, start, full, ring, adapter), rows, found, hook)

    def must_read(self) -> bool:
        """Whether to read now: slots want for requests, or there is enough for a whole dispatch."""
        pending = sum(-(-live.unread // self._sizes.page) for live in self._reading)
        return pending > 0 and (len(self._free_slots()) > len(self._ready) or pending >= self._sizes.read_rows)

    def crowded(self, shard: int) -> bool:
        """Whether somebody waits, and no slot of a shard is free."""
        return self.busy and not any(self._shard(slot) == shard for slot in self._free_slots())

    def hunger(self) -> float:
        """Share of the slots that want for a request that is read."""
        return max(0, len(self._free_slots()) - len(self._ready)) / self._sizes.slots

    def settle(self) -> list[Live]:
        """Gives free slots to those that are ready."""
        placed, free = [], self._free_slots()
        for live in list(self._ready):
            slot = next((slot for slot in free if self._shard(slot) == live.shard), None)
            if slot is None:
                continue
            free.remove(slot)
            self._ready.remove(live)
            if slot in self.running:
                self.running[slot].slot = None  # it ends with what is in flight
            self.running[slot] = live
            live.place(slot)
            placed.append(live)
        return placed

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Page tables of the slots."""
        full, ring = self._tables(self._sizes.slots, self._sizes.decode_ring)
        for slot, live in self.running.items():
            live.fill(full[slot], ring[slot])
        return full, ring

    def last(self, shard: int | None = None) -> Live:
        """The one that gives way, of a shard or of those that are being read."""
        lives = self._reading if shard is None else [live for live in self.lives if live.shard == shard]
        return max(lives, key=lambda live: live.rank)

    @property
    def reading(self) -> int:
        return len(self._reading)

    def _next(self) -> Live | None:
        """The next to be taken up, which waits no more."""
        heaps = [heap for heap in ([self._again] if self.holding else [self._again, self._new]) if heap]
        return heapq.heappop(min(heaps))[1] if heaps else None

    def _free_slots(self) -> list[int]:
        """Slots without an owner, or whose owner ends for certain with what is in flight."""
        running = self.running
        return [
            slot
            for slot in range(self._sizes.slots)
            if slot not in running or (running[slot].left <= 0 and running[slot].request.constraint is None)
        ]

    def _shard(self, slot: int) -> int:
        return slot * self._sizes.replicas // self._sizes.slots

    def _tables(self, rows: int, ring: int) -> tuple[np.ndarray, np.ndarray]:
        """Tables of pages that exist: each row's shard's first one, until it is filled."""
        first = np.arange(rows) * self._sizes.replicas // rows
        per = lambda total: (first * (total // self._sizes.replicas)).astype(np.int32)[:, None]
        full = np.repeat(per(self._sizes.full_pages), self._sizes.blocks, 1)
        return full, np.repeat(per(self._sizes.ring_pages), ring, 1)

    def _take_out(self, live: Live) -> None:
        for queue in (self._reading, self._ready):
            if live in queue:
                queue.remove(live)
        if live.slot is not None:
            del self.running[live.slot]
