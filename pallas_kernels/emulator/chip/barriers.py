"""What warps wait for: mbarriers, named barriers, the cluster's barrier; fences; the registers that setmaxnreg moves.

PTX ISA: "Parallel Synchronization and Communication Instructions" (mbarrier, bar, barrier.cluster, fence), "Miscellaneous Instructions"
(setmaxnreg). An mbarrier is an object beside memory: its 64 bits are not to be read. Waits are by parity; whoever waits learns what those
knew who arrived. Not modelled: mbarrier.inval, arrive_drop's lesser counts, bar.red, waits with a time limit but that they may give up now
and then.
"""

import numpy as np

from pallas_kernels.emulator.chip.access import shared_region
from pallas_kernels.emulator.chip.memory import shared_offsets
from pallas_kernels.emulator.chip.warp import Knowledge
from pallas_kernels.emulator.ptx.handlers import BLOCK, LANES, Fault, handles, merge, whole_warp
from pallas_kernels.emulator.ptx.parse import Address

MOST_BYTES = 2**20 - 1


class Mbarrier(Knowledge):
    """An mbarrier object.

    Attributes:
      expected: arrivals of a phase; pending: those still to come.
      bytes: that copies are still to bring.
      phase: how many phases have ended. What released them is in `done`.
    """

    def __init__(self, count: int, agents: int):
        super().__init__(agents)
        self.expected = self.pending = count
        self.bytes, self.phase, self.done = 0, 0, Knowledge(agents)

    def arrive(self, count: int, where) -> None:
        if count > self.pending:
            raise Fault(f"mbarrier: {count} arrivals, {self.pending} pending of {self.expected}")
        self.pending -= count

    def expect(self, count: int) -> None:
        self.bytes += count
        if abs(self.bytes) > MOST_BYTES:
            raise Fault(f"mbarrier: {self.bytes} bytes expected, more than 2^20 - 1")

    def settle(self, machine) -> None:
        """Ends the phase if nothing is missing."""
        if self.pending == 0 and self.bytes == 0:
            self.phase, self.pending = self.phase + 1, self.expected
            self.done.join(self)
            machine.happened()


def mbarrier_at(w, address: int) -> Mbarrier:
    """The object at a shared::cluster address."""
    region, plain = shared_region(w, np.array([address]))
    shared_offsets(region, plain, 8)
    block = w.block if region is w.block.shared else next(b for b in w.block.machine.blocks if b.shared is region)
    found = block.mbarriers.get(int(plain[0]))
    if found is None:
        raise Fault(f"no mbarrier was initialised at {int(plain[0]):#x} of block {block.ids}")
    return found


@handles("mbarrier")
def _mbarrier(program, i):
    kind = i.op[1]
    if kind == "init":
        address, count = program.address(i.operands[0], np.uint32), program.source(i.operands[1], np.uint32)

        def init(w, m):
            lane = 0 if m is None else int(np.argmax(m))
            at = int(address(w.R)[lane])
            shared_offsets(w.block.shared, np.array([at]), 8)
            if at in w.block.mbarriers:
                w.block.machine.report("mbarrier initialised twice", i)
            n = int(w.R[count][lane])
            if not 1 <= n < 2**20:
                raise Fault(f"mbarrier of {n} arrivals")
            w.block.mbarriers[at] = Mbarrier(n, w.block.machine.agents)

        return init
    if kind == "arrive":
        return _arrive(program, i)
    if kind in ("expect_tx", "complete_tx"):
        address, count = program.address(i.operands[0], np.uint32), program.source(i.operands[1], np.uint32)
        sign = 1 if kind == "expect_tx" else -1

        def expect(w, m):
            for lane in range(LANES) if m is None else np.flatnonzero(m):
                barrier = mbarrier_at(w, int(address(w.R)[lane]))
                barrier.expect(sign * int(w.R[count][lane]))
                barrier.settle(w.block.machine)

        return expect
    if kind in ("try_wait", "test_wait"):
        return _wait(program, i)
    if kind == "inval":
        return lambda w, m: None
    raise NotImplementedError


def _arrive(program, i):
    operands, d = list(i.operands), None
    if not isinstance(operands[0], Address):
        target = operands.pop(0)
        d = program.dest(target)
    address = program.address(operands[0], np.uint32)
    extra = program.source(operands[1], np.uint32) if len(operands) > 1 else None
    expects = "expect_tx" in i.op

    def arrive(w, m):
        machine, at = w.block.machine, address(w.R)
        lanes = np.arange(LANES) if m is None else np.flatnonzero(m)
        for one in np.unique(at[lanes]):
            barrier, here = mbarrier_at(w, int(one)), lanes[at[lanes] == one]
            values = w.R[extra][here].astype(np.int64) if extra is not None else None
            if expects:
                barrier.expect(int(values.sum()))
            barrier.join(w)
            barrier.arrive(len(here) if expects or values is None else int(values.sum()), i)
            barrier.settle(machine)
        w.tick()
        if d is not None:
            value = np.zeros(LANES, np.uint64)
            w.R[d] = value if m is None else merge(m, value, w.R[d])

    return arrive


def _wait(program, i):
    target, where, parity = i.operands[:3]
    if "parity" not in i.op:
        raise NotImplementedError
    d, address, p = program.dest(target), program.address(where, np.uint32), program.source(parity, np.uint32)
    tries = i.op[1] == "try_wait"

    def wait(w, m):
        lane = 0 if m is None else int(np.argmax(m))
        at, which = address(w.R), w.R[p]
        barrier = mbarrier_at(w, int(at[lane]))
        lanes = slice(None) if m is None else m
        if (at[lanes] != at[lane]).any() or (which[lanes] != which[lane]).any():
            raise Fault("lanes wait for different barriers")
        ended = barrier.phase % 2 != int(which[lane]) % 2
        if not ended and tries and w.block.machine.random.random() > 0.05:  # or its time is up
            return BLOCK
        if ended:
            w.join(barrier.done)
        value = np.full(LANES, ended)
        w.R[d] = value if m is None else merge(m, value, w.R[d])

    return wait


class _Named(Knowledge):
    """A barrier of the block, by number."""

    def __init__(self, agents: int):
        super().__init__(agents)
        self.arrived, self.count, self.generation, self.done = 0, None, 0, Knowledge(agents)


@handles("bar", "barrier")
def _bar(program, i):
    if i.op[:2] == ("barrier", "cluster"):
        return _cluster(program, i)
    if i.op[1] == "warp":
        return lambda w, m: whole_warp(m, w)
    word = next((x for x in i.op if x in ("sync", "arrive")), None)
    if word is None:
        raise NotImplementedError
    number = program.source(i.operands[0], np.uint32)
    count = program.source(i.operands[1], np.uint32) if len(i.operands) > 1 else None
    aligned = i.op[0] == "bar" or "aligned" in i.op

    def run(w, m):
        if aligned:
            whole_warp(m, w)
        machine = w.block.machine
        n = int(w.R[number][0])
        wanted = machine.launch.threads if count is None else int(w.R[count][0])
        if not 0 <= n < 16 or wanted % LANES or wanted > machine.launch.threads:
            raise Fault(f"barrier {n} of {wanted} threads")
        barrier = w.block.named.get(n)
        if barrier is None:
            barrier = w.block.named[n] = _Named(machine.agents)
        if w.ticket is None:
            if barrier.count not in (None, wanted):
                raise Fault(f"barrier {n}: {wanted} threads, others said {barrier.count}")
            barrier.count = wanted
            barrier.arrived += LANES
            barrier.join(w)
            generation = barrier.generation
            if barrier.arrived >= wanted:
                barrier.generation, barrier.arrived, barrier.count = generation + 1, 0, None
                barrier.done.join(barrier)
                machine.happened()
            if word == "arrive":
                w.tick()
                return None
            w.ticket = generation
        if barrier.generation == w.ticket:
            return BLOCK
        w.ticket = None
        w.join(barrier.done)
        w.tick()
        return None

    return run


def _cluster(program, i):
    waits, relaxed = "wait" in i.op, "relaxed" in i.op

    def run(w, m):
        if "aligned" in i.op:
            whole_warp(m, w)
        machine = w.block.machine
        barrier = machine.cluster_barrier
        if not waits:
            if w.agent in barrier.arrived:
                raise Fault("barrier.cluster: arrives twice without a wait")
            barrier.arrived[w.agent] = True
            w.cluster_phase = barrier.phase
            if not relaxed:
                barrier.join(w)
                w.tick()
            machine.happened()
            return None
        if barrier.phase == w.cluster_phase:
            if not all(x.ended or x.agent in barrier.arrived for x in machine.warps):
                return BLOCK
            barrier.phase, barrier.arrived = barrier.phase + 1, {}
            machine.happened()
        w.join(barrier)
        return None

    return run


@handles("fence")
def _fence(program, i):
    proxy = "proxy" in i.op and "async" in " ".join(i.op)

    def run(w, m):
        if proxy:
            np.maximum(w.A, w.V, out=w.A)

    return run


@handles("setmaxnreg")
def _registers(program, i):
    wanted, grows = i.operands[0], "inc" in i.op
    if wanted % 8 or not 24 <= wanted <= 256:
        raise Fault(f"setmaxnreg {wanted}")

    def run(w, m):
        whole_warp(m, w)
        more = wanted - w.max_registers
        if grows != (more >= 0) and more:
            raise Fault(f"setmaxnreg.{'inc' if grows else 'dec'} {wanted}, the warp has {w.max_registers}")
        if more > w.block.free_registers:
            return BLOCK
        w.block.free_registers -= more
        w.max_registers = wanted
        if more < 0:
            w.block.machine.happened()

    return run
