"""A cluster of blocks at work: warps take turns at random, asynchronous copies arrive at random, until all warps have ended.

Clusters of a launch run one after the other, in an order drawn at random: nothing may depend on it, and what one wrote no other may read.
A warp's lanes go together while they can; where they diverge, those furthest behind go first, which is one of the orders that independent
thread scheduling allows. Forward progress is not modelled: a warp that waits in a loop of its own is stopped by `limit`.
"""

from collections.abc import Callable
import concurrent.futures
import random

import numpy as np

from pallas_kernels.emulator.chip.memory import Global
from pallas_kernels.emulator.chip.warp import Block, Knowledge, Launch, Warp
from pallas_kernels.emulator.ptx.handlers import BLOCK, ENDED, LANES, PENDING, Fault

LIMIT = 20_000_000  # instructions of a launch, in warps


class Machine:
    """Runs one launch, cluster after cluster.

    Attributes:
      limit: instructions that the launch may execute, in warps. stopped: whether it should end at once, asked between warps' turns.
      reports: what went wrong but let the run go on: kind, place, detail; each (kind, instruction) once, counted.
      notes: what is allowed but worth knowing, likewise.
      executed: how often each instruction ran, in warps.
      ran: numbers in the grid of the blocks that ran; observed: what each of them did, if that was asked for.
    """

    def __init__(self, program, launch: Launch, memory: Global, seed: int, policy: str = "fair", limit: int = LIMIT):
        self.program, self.launch, self.memory = program, launch, memory
        self.random, self.rng = random.Random(seed), np.random.default_rng(seed)
        self.seed, self.policy, self.limit, self.fill = seed, policy, limit, seed % 3
        self.registers = program.registers
        self.reports, self.notes = {}, {}
        self.executed = np.zeros(len(program.code), np.int64)
        self.copies: dict[int, str] = {}
        self.observed, self.ran = {}, []
        self.events, self._stamp, self.steps = 0, 0, 0
        self.stopped: Callable[[], bool] = lambda: False

    def stamp(self) -> int:
        self._stamp += 1
        return self._stamp

    def garbage(self, size: int) -> np.ndarray:
        """What memory holds that nobody has written: not numbers, or anything."""
        if self.fill == 0:
            return np.full(size, 0xFF, np.uint8)
        if self.fill == 1:
            return self.rng.integers(0, 256, size, np.uint8)
        return np.tile(np.frombuffer(np.float32(-3.3e38).tobytes(), np.uint8), size // 4 + 1)[:size].copy()

    def report(self, kind: str, instruction, detail: str = "") -> None:
        self._put(self.reports, kind, instruction, detail)

    def note(self, kind: str, instruction, detail: str = "") -> None:
        self._put(self.notes, kind, instruction, detail)

    def _put(self, where, kind, instruction, detail) -> None:
        key = kind, instruction.index
        if key in where:
            where[key][-1] += 1
        else:
            where[key] = [kind, instruction.loc, instruction.text, detail, 1]

    def happened(self) -> None:
        """Somebody who waits may go on."""
        self.events += 1

    def run(self, clusters=None) -> None:
        """Runs all clusters, or those whose first blocks these are.

        Raises:
          Fault: a warp did what it may not, all wait for each other, or there were more instructions than `limit`.
          CancelledError: it was stopped.
        """
        if clusters is None:
            ranges = [range(0, size, step) for size, step in zip(self.launch.grid, self.launch.cluster, strict=True)]
            clusters = [(x, y, z) for z in ranges[2] for y in ranges[1] for x in ranges[0]]
        self.random.shuffle(clusters)
        for number, first in enumerate(clusters):
            self._cluster(number, first)
        for observed in self.observed.values():
            self.executed += observed.executed

    def _cluster(self, number: int, first: tuple[int, int, int]) -> None:
        c = self.launch.cluster
        inside = [(x, y, z) for z in range(c[2]) for y in range(c[1]) for x in range(c[0])]
        agents = len(inside) * self.launch.threads // LANES
        self.agents, self.in_flight, self.copies = agents, [], {}
        self.cluster_barrier = _ClusterBarrier(agents)
        self.blocks = [Block(self, i, tuple(f + o for f, o in zip(first, offset, strict=True)), agents) for i, offset in enumerate(inside)]
        self.warps = [w for b in self.blocks for w in b.warps]
        for w in self.warps:
            self.program.prepare(w)
        for region in self.memory.regions:
            region.begin_cluster(number)
        self._schedule()
        for w in self.warps:
            if w.bulk_open:
                self.report("ended with bulk copies that were not committed", self.program.instructions[-1], f"warp {w.agent}")
            if any(not group.read_done for group in w.bulk_groups):
                self.report("ended before bulk copies had read shared memory", self.program.instructions[-1], f"warp {w.agent}")
            for copy in [c for group in w.bulk_groups for c in group.copies]:
                copy.finish()
        self.ran += [b.ids for b in self.blocks]
        self.observed.update({b.ids: b.observed for b in self.blocks if b.observed is not None})

    def _schedule(self) -> None:
        running = list(self.warps)
        code, burst = self.program.code, self._burst
        weights = None
        if self.policy == "uneven":
            weights = [self.random.choice((1, 1, 8, 40)) for _ in running]
        while running:
            if self.stopped():
                raise concurrent.futures.CancelledError("the launch was stopped")
            ready = [w for w in running if w.blocked_at != self.events]
            if not ready:
                if not self._arrive():
                    raise Fault("deadlock:\n" + "\n".join(self._where(w) for w in running))
                continue
            if self.in_flight and self.policy != "late" and self.random.random() < (0.5 if self.policy == "early" else 0.05):
                self._arrive()
                continue
            if self.policy == "order":
                w = ready[0]
            elif weights:
                w = self.random.choices(ready, [weights[self.warps.index(x)] for x in ready])[0]
            else:
                w = self.random.choice(ready)
            burst(w, code, self.random.choice((1, 3, 10, 30, 100)))
            if w.ended:
                running.remove(w)
                self.happened()

    def _arrive(self) -> bool:
        """One of the copies under way arrives."""
        if not self.in_flight:
            return False
        self.in_flight.pop(self.random.randrange(len(self.in_flight))).finish()
        self.happened()
        return True

    def _where(self, w: Warp) -> str:
        pc = w.pc if w.pcs is None else int(w.pcs[w.live].min())
        i = self.program.instructions[pc]
        return f"  block {w.block.ids} warp {w.index} at {i.loc}: {i.text[:150]}" + ("" if w.pcs is None else " (diverged)")

    def _burst(self, w: Warp, code, count: int) -> None:
        executed = w.block.executed
        if self.steps >= self.limit:
            raise Fault(f"more instructions than limit={self.limit:,} allows (does a loop wait for what never comes?):\n{self._where(w)}")
        pc, done = w.pc, 0
        try:
            for done in range(count):  # noqa: B007  counted below
                if w.pcs is not None:
                    w.pc = pc
                    if not self._step_diverged(w, code):
                        return
                    pc = w.pc
                    if w.ended:
                        return
                    continue
                answer = code[pc](w, None)
                if answer is None:
                    executed[pc] += 1
                    pc += 1
                elif answer is BLOCK:
                    w.blocked_at = self.events
                    break
                elif answer is ENDED:
                    executed[pc] += 1
                    w.ended = True
                    w.live[:] = False
                    break
                elif type(answer) is int:
                    executed[pc] += 1
                    pc = answer
                else:
                    executed[pc] += 1
                    w.pcs = np.where(answer[0], answer[1], pc + 1)
            w.pc = pc
        except Fault as fault:
            i = self.program.instructions[pc]
            raise Fault(f"{fault}\n  at {i.loc}: {i.text}\n  block {w.block.ids}, warp {w.index}") from None
        except (TypeError, AttributeError, ValueError) as error:
            raise self._bad_register(w, pc, error) from error
        finally:
            self.steps += done + 1

    def _bad_register(self, w: Warp, pc: int, error) -> Exception:
        i = self.program.instructions[pc]
        sources = self.program.sources[pc]
        for name, number in sources:
            if w.R[number] is None or w.R[number] is PENDING:
                what = "register that was never written" if w.R[number] is None else "wgmma result that was not waited for"
                return Fault(f"{what}: {name}\n  at {i.loc}: {i.text}\n  block {w.block.ids}, warp {w.index}")
        return error

    def _step_diverged(self, w: Warp, code) -> bool:
        """One instruction of the lanes that are furthest behind."""
        live = w.live
        pc = int(w.pcs[live].min())
        lanes = live & (w.pcs == pc)
        if lanes.all():
            w.pc, w.pcs = pc, None
            return True
        w.pc = pc
        answer = code[pc](w, lanes)
        if answer is BLOCK:
            w.blocked_at = self.events
            return False
        w.block.executed[pc] += 1
        if answer is None:
            w.pcs[lanes] = pc + 1
        elif answer is ENDED:
            w.live = live & ~lanes
            if not w.live.any():
                w.ended = True
        elif type(answer) is int:
            w.pcs[lanes] = answer
        else:
            w.pcs[lanes] = np.where(answer[0][lanes], answer[1], pc + 1)
        return True


class _ClusterBarrier(Knowledge):
    """barrier.cluster: waits for all threads of the cluster that have not ended."""

    def __init__(self, agents: int):
        super().__init__(agents)
        self.phase, self.arrived = 0, {}
