"""Loads, stores, matrices of 8 by 8, atomics, addresses.

PTX ISA: "Data Movement and Conversion Instructions" (ld, st, ldmatrix, stmatrix, cvta, mapa), "Parallel Synchronization and Communication
Instructions" (atom, red), at addresses of "State Spaces". Atomics are all of the machine's scope and ordered; volatile, relaxed and cached
loads are loads. Not modelled: local memory (no kernel may spill), constant memory, st.async and its kin, vectors of atomics, atomics of
16-bit floats.
"""

import numpy as np

from pallas_kernels.emulator.chip.checks import checked_read, checked_write
from pallas_kernels.emulator.chip.memory import GLOBAL_BASE, PARAM_BASE, RANK_SHIFT, SHARED_WINDOW, shared_offsets
from pallas_kernels.emulator.ptx.handlers import LANES, Fault, handles, merge, whole_warp
from pallas_kernels.emulator.ptx.parse import NUMBER, WIDTH

ALL = np.arange(LANES)


def shared_region(w, addresses):
    """The block's region that shared::cluster addresses lie in, and the addresses without its rank."""
    if addresses.max() < 1 << RANK_SHIFT:
        return w.block.shared, addresses
    ranks = addresses >> RANK_SHIFT
    if (ranks != ranks[0]).any():
        raise Fault("lanes access shared memory of several blocks at once")
    rank = int(ranks[0])
    if rank > len(w.block.machine.blocks):
        raise Fault(f"out of bounds: shared memory of block {rank - 1} of a cluster of {len(w.block.machine.blocks)}")
    return w.block.machine.blocks[rank - 1].shared, addresses & ((1 << RANK_SHIFT) - 1)


def locate(w, space: str, addresses, size: int):
    """(region, offsets) of a load or store."""
    if space == "generic":
        low = int(addresses.min())
        space = "global" if low >= GLOBAL_BASE else "shared"
        if low >= SHARED_WINDOW:
            addresses = addresses - (SHARED_WINDOW if space == "shared" else 0)
    if space == "global":
        return w.block.machine.memory.at(addresses, size)
    region, addresses = shared_region(w, addresses)
    return region, shared_offsets(region, addresses, size)


def _space(op) -> str:
    for word in op:
        base = word.partition("::")[0]
        if base in ("global", "shared", "param", "const", "local"):
            return base
    return "generic"


def _observe(w, i, region, offsets, size: int, *, stores: bool) -> None:
    space = "shared" if region.base == 0 else "global"
    w.block.observed.access(i.index, space, offsets, size, stores=stores)


def _access(program, i):
    """Of a load or store: space, lanes' dtype, number of elements, bytes."""
    if {"async", "bulk"} & set(i.op) or _space(i.op) in ("local", "const"):
        raise NotImplementedError
    kind = WIDTH[i.op[-1]]
    count = next((int(word[1:]) for word in i.op if word in ("v2", "v4", "v8")), 1)
    return _space(i.op), kind, count, count * kind().itemsize


@handles("ld", "ldu")
def _load(program, i):
    space, kind, count, size = _access(program, i)
    target, where = i.operands[:2]
    ds = [program.dest(t) for t in (target if isinstance(target, tuple) else (target,))]
    if space == "param":
        base = program.symbol(where.base) - PARAM_BASE + where.offset

        def load_param(w, m):
            value = w.block.machine.launch.params[base : base + size].view(kind)
            for d, v in zip(ds, value, strict=True):
                w.R[d] = np.full(LANES, v, kind)

        return load_param
    address = program.address(where, np.uint32 if space == "shared" else np.uint64)
    each = kind().itemsize
    registers = [program.kernel.registers[t] for t in (target if isinstance(target, tuple) else (target,)) if t != "_"]
    wider = registers and registers[0]().itemsize != each
    signed = i.op[-1][0] == "s"

    def load(w, m):
        at = address(w.R)
        if m is not None:
            at = at[m]
        region, offsets = locate(w, space, at, size)
        checked_read(w.block.machine, w, region, offsets, size, i)
        if w.block.observed is not None:
            _observe(w, i, region, offsets, size, stores=False)
        index = offsets // each
        for k, d in enumerate(ds):
            if d is None:
                continue
            value = region.view[each][index + k]
            if wider:
                letter = "i" if signed else "u"
                value = value.view(f"{letter}{each}").astype(f"{letter}{registers[0]().itemsize}").view(registers[0])
            if m is not None:
                full = np.zeros(LANES, value.dtype)
                full[m] = value
                value = merge(m, full, w.R[d])
            w.R[d] = value

    return load


@handles("st")
def _store(program, i):
    space, kind, count, size = _access(program, i)
    where, source = i.operands
    ss = [program.source(s, kind) for s in (source if isinstance(source, tuple) else (source,))]
    address = program.address(where, np.uint32 if space == "shared" else np.uint64)
    each = kind().itemsize

    def store(w, m):
        at = address(w.R)
        if m is not None:
            at = at[m]
        region, offsets = locate(w, space, at, size)
        index, view = offsets // each, region.view[each]
        values = [w.R[s].astype(kind) if w.R[s].dtype != kind else w.R[s] for s in ss]
        values = values if m is None else [value[m] for value in values]
        same = all((view[index + k] == value).all() for k, value in enumerate(values))
        checked_write(w.block.machine, w, region, offsets, size, i, same=same)
        if w.block.observed is not None:
            _observe(w, i, region, offsets, size, stores=True)
        region.changes += 1
        for k, value in enumerate(values):
            view[index + k] = value

    return store


@handles("cvta")
def _to_generic(program, i):
    target, source = i.operands
    d, s = program.dest(target), program.source(source, np.uint64)
    window = np.uint64(SHARED_WINDOW if _space(i.op) == "shared" else 0)
    back = "to" in i.op

    def convert(w, m):
        value = w.R[s] - window if back else w.R[s] + window
        w.R[d] = value if m is None else merge(m, value, w.R[d])

    return convert


@handles("mapa")
def _map_rank(program, i):
    target, source, rank = i.operands
    kind = WIDTH[i.op[-1]]
    d, s, r = program.dest(target), program.source(source, kind), program.source(rank, np.uint32)
    if "shared::cluster" not in i.op and "shared" not in i.op:
        raise NotImplementedError

    def run(w, m):
        value = (w.R[s] & kind((1 << RANK_SHIFT) - 1)) | ((w.R[r].astype(kind) + kind(1)) << kind(RANK_SHIFT))
        w.R[d] = value if m is None else merge(m, value, w.R[d])

    return run


@handles("stmatrix", "ldmatrix")
def _matrix(program, i):
    """Lane 8k + r gives the address of row r of matrix k; a lane holds columns 2q, 2q + 1 of row g (lane = 4g + q), or of column g."""
    stores = i.op[0] == "stmatrix"
    where, values = i.operands if stores else i.operands[::-1]
    values = values if isinstance(values, tuple) else (values,)
    turned = "trans" in i.op
    address = program.address(where, np.uint32)
    numbers = [program.source(v, np.uint32) if stores else program.dest(v) for v in values]
    g, q = ALL // 4, ALL % 4

    def run(w, m):
        whole_warp(m, w)
        at = address(w.R)
        for k, n in enumerate(numbers):
            rows = at[8 * k : 8 * k + 8]
            region, plain = shared_region(w, rows)
            offsets = shared_offsets(region, plain, 16)
            (checked_write if stores else checked_read)(w.block.machine, w, region, offsets, 16, i)
            if w.block.observed is not None:
                _observe(w, i, region, offsets, 16, stores=stores)
            low, high = (offsets[2 * q] + 2 * g, offsets[2 * q + 1] + 2 * g) if turned else (offsets[g] + 4 * q, offsets[g] + 4 * q + 2)
            halves = region.view[2]
            if stores:
                region.changes += 1
                halves[low // 2], halves[high // 2] = w.R[n].astype(np.uint16), (w.R[n] >> np.uint32(16)).astype(np.uint16)
            else:
                w.R[n] = halves[low // 2].astype(np.uint32) | (halves[high // 2].astype(np.uint32) << np.uint32(16))

    return run


_ATOMIC = {
    "add": lambda old, x, *_: old + x,
    "and": lambda old, x, *_: old & x,
    "or": lambda old, x, *_: old | x,
    "xor": lambda old, x, *_: old ^ x,
    "exch": lambda old, x, *_: x,
    "cas": lambda old, x, y: y if old == x else old,
    "min": lambda old, x, *_: min(old, x),
    "max": lambda old, x, *_: max(old, x),
}


@handles("atom", "red")
def _atomic(program, i):
    space, kind, number = _space(i.op), WIDTH[i.op[-1]], np.dtype(NUMBER.get(i.op[-1], WIDTH[i.op[-1]]))
    what = next((word for word in i.op if word in _ATOMIC), None)
    if what is None or "async" in i.op or i.op[-1][0] == "f" and i.op[-1] != "f32" or i.op[-1].startswith("bf"):
        raise NotImplementedError
    operands = i.operands if i.op[0] == "atom" else [None, *i.operands]
    d = program.dest(operands[0]) if i.op[0] == "atom" else None
    address = program.address(operands[1], np.uint64)
    numbers = [program.source(o, kind) for o in operands[2:]]
    change = _ATOMIC[what]

    def run(w, m):
        at, size = address(w.R), kind().itemsize
        lanes = ALL if m is None else ALL[m]
        region, offsets = locate(w, space, at[lanes], size)
        if not region.shadow:
            raise Fault(f"write to {region.name}, which is an input")
        region.wrote(w, region.cells(offsets, size), w.block.machine.stamp())
        region.changes += 1
        if w.block.observed is not None:
            _observe(w, i, region, offsets, size, stores=True)
        cells, before = region.view[size].view(number), np.zeros(LANES, number)
        values = [w.R[n].view(number) for n in numbers]
        for lane, place in zip(lanes, offsets // size, strict=True):
            before[lane] = cells[place]
            cells[place] = change(cells[place], *(x[lane] for x in values))
        if d is not None:
            w.R[d] = before.view(kind) if m is None else merge(m, before.view(kind), w.R[d])
        w.block.machine.happened()

    return run
