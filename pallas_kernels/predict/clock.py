"""One multiprocessor's blocks, emulated with a clock: when each warp issues what, and waits for what. An estimate, no hardware's pipeline.

The emulator decides what happens, this decides when. Each of four schedulers issues an instruction of the machine's code a cycle. PTX is
not in the order in which ptxas lets a warp issue: arithmetic and loads wait for their operands, but keep nothing else waiting; products,
copies, branches and barriers are in order. Tensor cores, special functions and shared memory serve one request after the other; bulk copies
share the memory's bandwidth with those of the other blocks of the chip, evenly, and arrive a latency after they were served.
"""

import collections
import dataclasses

import numpy as np

from pallas_kernels.emulator.chip import tma
from pallas_kernels.emulator.chip.machine import Machine
from pallas_kernels.emulator.ptx.handlers import BLOCK, Fault
from pallas_kernels.predict import chip as chips

ALU = 4.5  # cycles from an instruction to one that needs its result [Jia et al., arXiv 1804.06826, of Volta: 4 to 5]
UNIFORM = 2.0  # cycles an instruction, where one thread prepares a bulk copy: each needs the one before [ASSUMED]
WAKE = 20.0  # cycles from a barrier's end to a waiting warp's next instruction [ASSUMED]
DRAIN = 32.0  # cycles from the end of a wgmma to what needs its result [ASSUMED]
FREE = {"alu", "special", "shared", "global"}  # kinds that ptxas moves about, so that they wait for operands and keep nobody else waiting
SLACK = 12.0  # cycles that one warp may run ahead of another in the emulation


@dataclasses.dataclass(frozen=True)
class Step:
    """What is known of a PTX instruction before it runs.

    Attributes:
      kind: which server it needs: "alu", "special", "shared", "global", "copy", "product", "commit products", "wait products",
        "commit copies", "wait copies"; "barrier" for what waits or lets go, "branch"; "turn" for griddepcontrol.wait.
      slots: instructions of the machine's code.
      reads, writes: numbers of registers.
      amount: cycles of its server, per warp.
    """

    kind: str
    slots: float
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    amount: float = 0.0


@dataclasses.dataclass(frozen=True)
class Shares:
    """What one multiprocessor has of the chip, bytes a cycle: of memory, and of the L2 cache; `resident`: arrays that are in that."""

    memory: float
    l2: float
    resident: frozenset[str]
    unique: dict  # by array: which part of what blocks read no other block read before


class Core:
    """One multiprocessor's servers: when each is free again, and how long it has worked."""

    def __init__(self):
        self.free, self.busy = collections.defaultdict(float), collections.defaultdict(float)

    def serve(self, name, start: float, cycles: float) -> float:
        """When a request that comes at `start` is done."""
        end = max(self.free[name], start) + cycles
        self.free[name] = end
        self.busy[name[0] if isinstance(name, tuple) else name] += cycles
        return end


class Clocked(Machine):
    """A machine whose warps run in the order of their clocks.

    Set before it runs: `steps` of the program, `chip`, `shares`, `held` (blocks that a multiprocessor holds at a time; others of the
    cluster wait until one has ended), `apart` (whether the blocks are a real cluster's, each on a multiprocessor of its own), `crowd`
    (blocks of other clusters beside each of those), `early` (cycles that blocks are there before their turn).
    """

    def clock(self, steps, chip: chips.Chip, shares: Shares, held: int, apart: bool, crowd: float, early: float) -> None:
        self.steps_of, self.chip, self.shares, self.held, self.apart, self.crowd = steps, chip, shares, held, apart, crowd
        self.early = early
        self.now, self.event_time, self.cores, self.ends = 0.0, 0.0, collections.defaultdict(Core), []

    def happened(self) -> None:
        self.events += 1
        self.event_time = self.now

    def _schedule(self) -> None:
        for w in self.warps:
            w.t, w.ready, w.products, w.product_groups, w.stores, w.store_groups = 0.0, [0.0] * len(self.program.number), 0.0, [], 0.0, []
            w.loaded = 0.0
            w.core = self.cores[w.block.rank if self.apart else 0]
        waiting = collections.deque([] if self.apart else self.blocks[self.held :])
        running = [w for b in (self.blocks if self.apart else self.blocks[: self.held]) for w in b.warps]
        while running or waiting:
            ready = [w for w in running if w.blocked_at != self.events]
            first = min(ready, key=lambda w: w.t) if ready else None
            if self.in_flight:
                copy = min(self.in_flight, key=lambda c: getattr(c, "time", 0.0))
                if first is None or copy.time <= first.t:
                    self.in_flight.remove(copy)
                    self.now = copy.time
                    copy.finish()
                    self.happened()
                    continue
            if first is None:
                raise Fault("deadlock:\n" + "\n".join(self._where(w) for w in running))
            others = [w.t for w in ready if w is not first]
            self._run(first, (min(others) if others else first.t + 200.0) + SLACK)
            if first.ended:
                running.remove(first)
                self.happened()
                if not any(w in running for w in first.block.warps):
                    self.ends.append(max(w.t for w in first.block.warps))
                    self._begin(waiting, running, self.ends[-1])

    def _begin(self, waiting, running: list, at: float) -> None:
        """The next block takes an ended one's place."""
        if waiting:
            block = waiting.popleft()
            for w in block.warps:
                w.t = at + self.chip.start
            running += block.warps

    def _run(self, w, until: float) -> None:
        """A warp's instructions until its clock shows that, or it waits."""
        code = self.program.code
        while w.t <= until and not w.ended:
            if self.in_flight and w.t >= self.in_flight[0].time:
                return
            pc = w.pc if w.pcs is None else int(w.pcs[w.live].min())
            step = self.steps_of[pc]
            issued = self._issue(w, step)
            self.now = issued
            in_flight, open_stores = len(self.in_flight), len(w.bulk_open)
            if w.pcs is not None:
                before = w.pcs
                if not self._step_diverged(w, code):
                    w.blocked_at = self.events
                    return
                if w.pcs is None and before is not None and w.pc == pc:
                    continue  # lanes met again; nothing ran
            elif not self._one(w, code, pc):
                w.blocked_at = self.events
                return
            if w.blocked_at >= 0:
                issued = max(issued, self.event_time + WAKE)
                w.blocked_at = -1
            self._advance(w, step, issued, in_flight, open_stores)

    def _one(self, w, code, pc: int) -> bool:
        answer = code[pc](w, None)
        if answer is BLOCK:
            return False
        w.block.executed[pc] += 1
        if answer is None:
            w.pc = pc + 1
        elif type(answer) is int:
            w.pc = answer
        elif isinstance(answer, tuple):
            w.pcs = np.where(answer[0], answer[1], pc + 1)
        else:
            w.ended = True
            w.live[:] = False
        return True

    def _issue(self, w, step: Step) -> float:
        """When the warp comes to it; what must be in order waits for its operands, and barriers for what was loaded before."""
        if step.kind in FREE:
            return w.t
        start = max(w.t, w.loaded) if step.kind == "barrier" else w.t
        return max(start, self._operands(w, step))

    def _operands(self, w, step: Step) -> float:
        return max((w.ready[n] for n in step.reads), default=0.0)

    def _advance(self, w, step: Step, start: float, in_flight: int, open_stores: int) -> None:
        """Sets the warp's clock, and when its results will be there."""
        core, lane = w.core, w.index % chips.SCHEDULERS
        end = core.serve(("issue slots", lane), start, step.slots * self.crowd) if step.slots else start
        kind = step.kind
        able = max(end, self._operands(w, step) + step.slots) if kind in FREE else end
        done = able + ALU
        if kind == "special":
            done = max(core.serve(("special functions", lane), end, step.amount * self.crowd), able) + 18
        elif kind == "shared":
            done = max(core.serve("shared memory", end, step.amount * self.crowd), able) + self.chip.shared_latency
            w.loaded = max(w.loaded, done)
        elif kind == "global":
            done = able + self.chip.l2_latency
            w.loaded = max(w.loaded, done)
        elif kind == "product":
            w.products = core.serve(("tensor cores", lane), end, step.amount * self.crowd)
        elif kind == "turn":
            end = max(end, self.early)
        elif kind == "commit products":
            w.product_groups.append(w.products)
        elif kind == "wait products":
            left = int(step.amount)
            past = w.product_groups[: len(w.product_groups) - left] if left else w.product_groups
            if past:
                end = max(end, past[-1] + DRAIN)
                w.product_groups = w.product_groups[len(past) :]
        elif kind == "copy":
            end += step.slots * (UNIFORM - 1)
            for copy in self.in_flight[in_flight:]:
                copy.time = self._copied(w, copy, end)
            if len(w.bulk_open) > open_stores:
                w.stores = max([w.stores, *(c.time for c in w.bulk_open[open_stores:])])
            self.in_flight.sort(key=lambda c: c.time)
        elif kind == "commit copies":
            w.store_groups.append(w.stores)
        elif kind == "wait copies":
            left = int(step.amount)
            past = w.store_groups[: len(w.store_groups) - left] if left else w.store_groups
            if past:
                end = max(end, past[-1])
                w.store_groups = w.store_groups[len(past) :]
        for n in step.writes:
            w.ready[n] = done
        w.t = end

    def _copied(self, w, copy, start: float) -> float:
        """When a bulk copy is there."""
        core, chip, shares = w.core, self.chip, self.shares
        size = len(copy.source) * copy.size
        there = int(copy.there.sum()) * copy.size
        port = core.serve("multiprocessor's port", start, size / chip.port)
        if not isinstance(copy, tma.Load):
            return core.serve("L2 cache", start, there / shares.l2) + chip.l2_latency + chip.tma
        name = copy.region.name if copy.region is not None else ""
        served = core.serve("L2 cache", start, there / shares.l2)
        if name in shares.resident or not there:
            return max(port, served) + chip.l2_latency + chip.tma
        served = max(served, core.serve("memory", start, there * shares.unique.get(name, 1.0) / shares.memory))
        return max(port, served) + chip.memory_latency + chip.tma
