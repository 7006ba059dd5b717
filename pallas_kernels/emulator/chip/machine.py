"""A cluster of blocks at work: warps take turns at random, asynchronous copies arrive at random, until all warps have ended."""

import collections
import dataclasses
import random

import numpy as np

from pallas_kernels.emulator.chip.memory import Fault, Global, Region

LANES = 32
BLOCK = object()  # an instruction's answer: not yet
ENDED = object()


class _Pending:
    """What a register holds that wgmma will write."""

    def __repr__(self):
        return "PENDING"


PENDING = _Pending()


class Knowledge:
    """What is known to have happened; see `memory`. W: of each warp, how many of its wgmma have read their operands."""

    def __init__(self, agents: int):
        self.V, self.A, self.W, self.seen = np.zeros(agents, np.int32), np.zeros(agents, np.int32), np.zeros(agents, np.int32), 0

    def join(self, other: "Knowledge") -> None:
        np.maximum(self.V, other.V, out=self.V)
        np.maximum(self.A, other.A, out=self.A)
        np.maximum(self.W, other.W, out=self.W)
        self.seen |= other.seen


class Warp(Knowledge):
    """State of a warp.

    Attributes:
      R: registers; each an array of 32 lanes, None (never written), or PENDING.
      live: lanes that have not ended. pcs: per lane while they diverge, else None.
      wgmmas: all that it has issued; `accumulators` their sums, by register numbers.
      groups: bulk copies out of shared memory and wgmma, as lists of those that were committed together; `open` of those not yet.
    """

    def __init__(self, block, index: int, registers: int, agents: int):
        super().__init__(agents)
        self.block, self.index = block, index
        self.agent = block.rank * block.warps_each + index
        self.R = [None] * registers
        self.pc, self.pcs, self.live, self.ended = 0, None, np.ones(LANES, bool), False
        self.V[self.agent] = 1
        self.ticket = None  # of a barrier that it has arrived at
        self.cluster_phase = 0
        self.wgmma_open, self.wgmma_groups, self.wgmmas, self.accumulators = [], collections.deque(), [], {}
        self.bulk_open, self.bulk_groups = [], collections.deque()
        self.fenced: dict = {}  # values of registers at the last wgmma.fence, by identity
        self.max_registers = block.machine.launch.registers
        self.blocked_at = -1

    def tick(self) -> None:
        """What follows is not what was released before."""
        self.V[self.agent] += 1


class Block:
    """A block of threads: its shared memory and barriers."""

    def __init__(self, machine: "Machine", rank: int, ids: tuple[int, int, int], agents: int):
        launch = machine.launch
        self.machine, self.rank, self.ids = machine, rank, ids
        self.warps_each = launch.threads // LANES
        size = -(-launch.shared_bytes // 128) * 128
        self.shared = Region(f"shared memory of block {ids}", 0, machine.garbage(size), agents, shadow=True, initialised=False)
        self.mbarriers: dict[int, object] = {}
        self.named: dict[int, object] = {}
        self.free_registers = 0
        self.warps = [Warp(self, i, machine.registers, agents) for i in range(self.warps_each)]


@dataclasses.dataclass
class Launch:
    """A launch: geometry, bytes of parameters, tensor maps by their offset in these; `registers` a thread's, as assembled."""

    grid: tuple[int, int, int]
    threads: int
    cluster: tuple[int, int, int]
    shared_bytes: int
    params: np.ndarray
    tensor_maps: dict
    registers: int


class Machine:
    """Runs one launch, cluster after cluster.

    Attributes:
      reports: what went wrong but let the run go on: kind, place, detail; each (kind, instruction) once, counted.
      notes: what is allowed but worth knowing, likewise.
      executed: how often each instruction ran, in warps.
    """

    def __init__(self, program, launch: Launch, memory: Global, seed: int, policy: str = "fair", limit: int = 50_000_000):
        self.program, self.launch, self.memory = program, launch, memory
        self.random, self.rng = random.Random(seed), np.random.default_rng(seed)
        self.policy, self.limit, self.fill = policy, limit, seed % 3
        self.registers = program.registers
        self.reports, self.notes = {}, {}
        self.executed = np.zeros(len(program.code), np.int64)
        self.copies: dict[int, str] = {}
        self.events, self._stamp, self.steps = 0, 0, 0

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

    def run(self) -> None:
        clusters = [(x, y, z) for z in range(self.launch.grid[2]) for y in range(self.launch.grid[1]) for x in range(self.launch.grid[0])]
        c = self.launch.cluster
        firsts = [ids for ids in clusters if all(i % n == 0 for i, n in zip(ids, c))]
        self.random.shuffle(firsts)
        for number, first in enumerate(firsts):
            self.cluster_number = number
            self._cluster(first)

    def _cluster(self, first) -> None:
        c = self.launch.cluster
        inside = [(x, y, z) for z in range(c[2]) for y in range(c[1]) for x in range(c[0])]
        agents = len(inside) * self.launch.threads // LANES
        self.agents, self.in_flight = agents, []
        self.cluster_barrier = _ClusterBarrier(agents)
        self.blocks = [Block(self, i, tuple(f + o for f, o in zip(first, offset)), agents) for i, offset in enumerate(inside)]
        self.warps = [w for b in self.blocks for w in b.warps]
        for w in self.warps:
            self.program.prepare(w)
        for region in self.memory.regions:
            if region.shadow:  # launches of clusters are not ordered; what one wrote, no other may touch
                region.begin_cluster(self.cluster_number, agents)
        self._schedule()
        for w in self.warps:
            if w.bulk_open:
                self.report("ended with bulk copies that were not committed", self.program.instructions[-1], f"warp {w.agent}")
            if any(not group.read_done for group in w.bulk_groups):
                self.report("ended before bulk copies had read shared memory", self.program.instructions[-1], f"warp {w.agent}")
            for copy in [c for group in w.bulk_groups for c in group.copies]:
                copy.finish()

    def _schedule(self) -> None:
        running = list(self.warps)
        code, burst = self.program.code, self._burst
        weights = None
        if self.policy == "uneven":
            weights = [self.random.choice((1, 1, 8, 40)) for _ in running]
        while running:
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
        executed = self.executed
        self.steps += count
        if self.steps > self.limit:
            raise Fault("too many instructions")
        pc = w.pc
        try:
            for _ in range(count):
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
        except (TypeError, AttributeError) as error:
            raise self._bad_register(w, pc, error) from error

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
        self.executed[pc] += 1
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
