"""Bulk copies: boxes of tensors by maps, plain bytes, multicast, groups of those that leave shared memory.

PTX ISA: "Data Movement and Conversion Instructions: Asynchronous Copy" (cp.async.bulk, cp.async.bulk.tensor, their commit_group and
wait_group). A copy may read and write at any time between its start and the wait for it: it is checked against the shadow when it starts,
is under way until the machine has it arrive, and counts the bytes that it brought at an mbarrier. Not modelled: im2col, gather and scatter,
reductions, prefetches to L2, cache hints, copies between the shared memories of a cluster.
"""

import numpy as np

from pallas_kernels.emulator.chip.access import shared_region
from pallas_kernels.emulator.chip.barriers import mbarrier_at
from pallas_kernels.emulator.chip.checks import readers
from pallas_kernels.emulator.chip.memory import GRAIN, NEVER, shared_offsets
from pallas_kernels.emulator.chip.tensor_map import TensorMap
from pallas_kernels.emulator.ptx.handlers import LANES, Fault, handles
from pallas_kernels.emulator.ptx.parse import Address


def _range(offsets: np.ndarray, size: int) -> slice:
    """The cells of a box in shared memory: consecutive, in whatever order its elements lie there."""
    first = int(offsets.min())
    return slice(first // GRAIN, -(-(first + offsets.size * size) // GRAIN))


class Load:
    """Global to shared memory, of one or, by multicast, several blocks. Its bytes are counted by an mbarrier in each."""

    def __init__(self, w, i, source, there, targets, barriers, size):
        machine = w.block.machine
        self.machine, self.source, self.there, self.targets, self.barriers, self.size = machine, source, there, targets, barriers, size
        self.number = len(machine.copies) + 1
        machine.copies[self.number] = f"{i.loc}"
        self.region, offsets = machine.memory.at(source[there], size) if there.any() else (None, None)
        self.offsets = offsets
        if self.region is not None and self.region.shadow:
            cells = self.region.cells(offsets, size)
            if not self.region.seen_by(w, cells, w.A).all():
                machine.report("race: TMA reads global memory not written before (or without a proxy fence)", i, self.region.name)
            self.region.read[w.agent, cells] = np.maximum(self.region.read[w.agent, cells], w.V[w.agent])
        for region, at in targets:
            cells = _range(at, size)
            if not region.seen_by(w, cells, w.V).all():
                machine.report("race: TMA writes over what was not written before", i, f"{region.name}+{int(at.min())}")
            elif not region.seen_by(w, cells, w.A).all():
                machine.report("TMA writes over generic writes without fence.proxy.async", i, f"{region.name}+{int(at.min())}")
            if not region.unread(w, cells):
                machine.report("race: TMA writes over what is read", i, readers(machine, region, cells, w))
            if not region.unmultiplied(w, cells):
                machine.report("race: TMA writes over an operand of wgmma", i, f"{region.name}+{int(at.min())}")
            region.initialised[cells], region.copy[cells], region.clock[cells] = True, self.number, 0
            region.version[cells] = machine.stamp()
        if w.block.observed is not None:
            w.block.observed.copy(i.index, int(there.sum()) * size, stores=False)
        machine.in_flight.append(self)

    def finish(self) -> None:
        values = np.zeros(len(self.source), f"u{self.size}")
        if self.region is not None:
            values[self.there] = self.region.view[self.size][self.offsets // self.size]
        for (region, at), barrier in zip(self.targets, self.barriers, strict=True):
            region.view[self.size][at // self.size] = values
            region.version[_range(at, self.size)] = self.machine.stamp()
            region.changes += 1
            barrier.seen |= 1 << self.number
            barrier.expect(-len(values) * self.size)
            barrier.settle(self.machine)


class Store:
    """Shared to global memory. `read` when shared memory has been read, `done` when all is written."""

    def __init__(self, w, i, source, target, there, size):
        machine = w.block.machine
        self.w, self.machine, self.size, self.read, self.done = w, machine, size, False, False
        self.shared, self.source = w.block.shared, source
        cells = self.cells = _range(source, size)
        if not self.shared.initialised[cells].all():
            machine.note("copy to global memory of what was never written", i)
        if not self.shared.seen_by(w, cells, w.V).all():
            machine.report("race: copy to global memory of what was not written before", i, f"+{int(source.min())}")
        elif not self.shared.seen_by(w, cells, w.A).all():
            machine.report("copy to global memory without fence.proxy.async", i, f"+{int(source.min())}")
        self.shared.read[w.agent, cells] = NEVER
        self.there = there
        self.region = None
        if there.any():
            self.region, self.target = machine.memory.at(target[there], size)
            if not self.region.shadow:
                raise Fault(f"copy to {self.region.name}, which is an input")
            self.global_cells = self.region.cells(self.target, size)
            if not self.region.seen_by(w, self.global_cells, w.V).all() or not self.region.unread(w, self.global_cells):
                machine.report("race: copy over global memory that others write or read", i, self.region.name)
            self.region.wrote(w, self.global_cells, machine.stamp())
            self.region.clock[self.global_cells] = NEVER
        if w.block.observed is not None:
            w.block.observed.copy(i.index, int(there.sum()) * size, stores=True)
        machine.in_flight.append(self)

    def take(self) -> None:
        if not self.read:
            self.values, self.read = self.shared.view[self.size][self.source // self.size].copy(), True

    def finish(self) -> None:
        if not self.done:
            self.take()
            self.done = True
            if self.region is not None:
                self.region.view[self.size][self.target // self.size] = self.values[self.there]

    def waited(self, *, read_only: bool) -> None:
        """The warp that started it knows."""
        clock = self.w.V[self.w.agent]
        mine = self.shared.read[self.w.agent]
        mine[self.cells] = np.where(mine[self.cells] == NEVER, clock, mine[self.cells])
        if not read_only and self.region is not None:
            at = self.global_cells
            own = self.region.agent[at] == self.w.agent
            self.region.clock[at[own]] = clock


class Group:
    """Copies that were committed together."""

    def __init__(self, copies):
        self.copies, self.read_done = copies, not copies


def _lanes(m):
    return range(LANES) if m is None else np.flatnonzero(m)


@handles("cp")
def _copy(program, i):
    op = i.op
    if "commit_group" in op:
        return _commit
    if "wait_group" in op:
        return _wait_group(i)
    if op[1:3] != ("async", "bulk"):
        raise NotImplementedError
    if "tensor" in op:
        return _tensor(program, i)
    return _plain(program, i)


def _coordinates(program, where: Address):
    values = where.coordinates if isinstance(where.coordinates, tuple) else (where.coordinates,)
    numbers = [program.source(c, np.uint32) for c in values]
    return lambda R, lane: [int(R[n].view(np.int32)[lane]) for n in numbers]


def _map(w, address: int) -> TensorMap:
    found = w.block.machine.launch.tensor_maps.get(address)
    if found is None:
        raise Fault(f"no tensor map at {address:#x}")
    return found


def _tensor(program, i):
    if i.op[5].startswith("shared"):
        return _tensor_load(program, i)
    where, source = i.operands
    map_at, coordinates = program.address(Address(where.base, where.offset)), _coordinates(program, where)
    shared_at = program.address(source, np.uint32)

    def store(w, m):
        for lane in _lanes(m):
            tensor = _map(w, int(map_at(w.R)[lane]))
            point = coordinates(w.R, lane)
            unit = tensor.unit(point[0])
            places, there = tensor.places(point, unit)
            offsets = shared_offsets(w.block.shared, tensor.shared(int(shared_at(w.R)[lane]), unit), unit)
            w.bulk_open.append(Store(w, i, offsets, places, there, unit))

    return store


def _tensor_load(program, i):
    target, where, barrier, *rest = i.operands
    target_at, barrier_at = program.address(target, np.uint32), program.address(barrier, np.uint32)
    map_at, coordinates = program.address(Address(where.base, where.offset)), _coordinates(program, where)
    mask = program.source(rest[0], np.uint16) if "multicast::cluster" in i.op else None

    def load(w, m):
        for lane in _lanes(m):
            tensor = _map(w, int(map_at(w.R)[lane]))
            point = coordinates(w.R, lane)
            unit = tensor.unit(point[0])
            places, there = tensor.places(point, unit)
            start, bar = int(target_at(w.R)[lane]), int(barrier_at(w.R)[lane])
            region, plain = shared_region(w, np.array([start]))
            at = shared_offsets(region, tensor.shared(int(plain[0]), unit), unit)
            if mask is None:
                targets, barriers = [(region, at)], [mbarrier_at(w, bar)]
            else:
                chosen = [b for b in w.block.machine.blocks if int(w.R[mask][lane]) >> b.rank & 1]
                plain_bar = bar & 0xFFFFFF
                targets = [(b.shared, at) for b in chosen]
                barriers = [b.mbarriers[plain_bar] for b in chosen]
            Load(w, i, places, there, targets, barriers, unit)

    return load


def _plain(program, i):
    """Consecutive bytes."""
    loads = i.op[3].startswith("shared")
    target, source, count, *rest = i.operands
    t, s = program.address(target, np.uint64), program.address(source, np.uint64)
    if isinstance(count, str):
        n = program.source(count, np.uint32)
    else:
        n = program.source(int(count), np.uint32)
    bar = program.address(rest[0], np.uint32) if loads else None

    def run(w, m):
        for lane in _lanes(m):
            to, start, size = int(t(w.R)[lane]), int(s(w.R)[lane]), int(w.R[n][lane])
            if size % 16 or to % 16 or start % 16:
                raise Fault(f"bulk copy of {size} bytes from {start:#x} to {to:#x}: no multiples of 16")
            each = np.arange(0, size, 8, dtype=np.int64)
            there = np.ones(len(each), bool)
            if loads:
                region, plain = shared_region(w, np.array([to]))
                at = shared_offsets(region, plain[0] + each, 8)
                Load(w, i, start + each, there, [(region, at)], [mbarrier_at(w, int(bar(w.R)[lane]))], 8)
            else:
                at = shared_offsets(w.block.shared, start + each, 8)
                w.bulk_open.append(Store(w, i, at, to + each, there, 8))

    return run


def _commit(w, m):
    w.bulk_groups.append(Group(w.bulk_open))
    w.bulk_open = []


def _wait_group(i):
    (left,), read_only = i.operands, "read" in i.op

    def wait(w, m):
        while len(w.bulk_groups) > left and not read_only:
            group = w.bulk_groups.popleft()
            for copy in group.copies:
                copy.finish()
                copy.waited(read_only=False)
        if read_only:
            for group in list(w.bulk_groups)[: max(0, len(w.bulk_groups) - left)]:
                if not group.read_done:
                    for copy in group.copies:
                        copy.take()
                        copy.waited(read_only=True)
                    group.read_done = True

    return wait
