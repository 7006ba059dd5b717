"""wgmma: operands in shared memory by descriptors, fragments in registers, and results that are there only after a wait.

PTX ISA: "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions": m64nNk16 of bf16 and f16 with sums in float32, the layouts
of its figures ("Register Fragments and Shared Memory Matrix Layouts"), wgmma.fence, commit_group and wait_group.

A warp multiplies its own 16 rows of the warpgroup's 64. It does so when it waits: by then nobody may have touched what it reads. What was
touched, or was not there when the product began, counts as not a number; rows of a product are independent, and a kernel may let rows that
nobody looks at hold anything. Sums are rounded as float32 products of NumPy are, not as tensor cores round: bits differ from a GPU's. Not
modelled: other types (fp8, tf32, int8), sparse operands, scales other than 1, descriptors with a base offset.
"""

import functools
import re

import numpy as np

from pallas_kernels.emulator.chip.memory import GRAIN, SHARED_BASE
from pallas_kernels.emulator.chip.tensor_map import swizzled
from pallas_kernels.emulator.ptx.floats import bf16_to_f32, f16_to_f32
from pallas_kernels.emulator.ptx.handlers import BLOCK, LANES, PENDING, Fault, handles, whole_warp

_SHAPE = re.compile(r"m64n(\d+)k(\d+)")
SWIZZLE = {0: 0, 1: 3, 2: 2, 3: 1}  # a descriptor's mode -> bits of 16-byte pieces that are exchanged


@functools.lru_cache(maxsize=4096)
def layout(descriptor: int, rows: int, columns: int, turned: bool, size: int):
    """Addresses [rows, columns] of an operand's elements of `size` bytes; rows are M or N, columns K.

    `turned`: M or N lies innermost.
    """
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    if descriptor >> 49 & 7:
        raise Fault("descriptor with a base offset")
    bits = SWIZZLE[descriptor >> 62]
    pieces = 1 << bits  # of 16 bytes, in a row of the swizzle's width
    per = 16 // size
    if start >> 7 & (pieces - 1):
        raise Fault(f"operand at {start:#x}: its swizzle's pattern begins at multiples of {128 * pieces}, or it has a base offset")
    r, k = np.arange(rows)[:, None], np.arange(columns)[None, :]
    if not turned:
        if bits:
            if columns * size > 16 * pieces:
                raise Fault("operand wider than its swizzle")
            linear = (r // 8) * stride + (r % 8) * (16 * pieces) + k * size
        else:
            linear = (r // 8) * stride + (r % 8) * 16 + (k // per) * leading + (k % per) * size
    else:
        wide = per * pieces
        if bits:
            linear = (r // wide) * leading + (r % wide) * size + (k // 8) * stride + (k % 8) * (16 * pieces)
        else:
            linear = (r // per) * stride + (r % per) * size + (k // 8) * leading + (k % 8) * 16
    return swizzled(start + linear, bits)


class Product:
    """One wgmma of one warp, under way.

    Attributes:
      d, shape, scale: numbers of the accumulator's registers, its columns, whether it is added to.
      a, b: operands; `a` a list of (number, value) where it is in registers.
      before: what the accumulator's registers held, where this product is the first of a chain.
    """

    def __init__(self, w, i, shape, d, scale, convert):
        self.i, self.shape, self.d, self.scale, self.convert, self.before = i, shape, d, scale, convert, None
        w.wgmmas.append(self)
        self.number = len(w.wgmmas)
        self.a = self.b = None


@functools.lru_cache(maxsize=4096)
def _cells(descriptor: int, rows: int, columns: int, turned: bool, first: int, count: int) -> np.ndarray:
    """Places in the shadow of rows of an operand's elements, which are as large as a cell."""
    return (layout(descriptor, rows, columns, turned, GRAIN)[first : first + count].ravel() - SHARED_BASE) // GRAIN


class _Operand:
    """An operand in shared memory: values when they are wanted, NaN for what was not in order."""

    def __init__(self, w, i, descriptor: int, rows: int, columns: int, turned: bool, first: int, convert, is_a=False):
        self.w, self.i, self.convert, self.shape, self.value = w, i, convert, (rows, columns), None
        self.cells = cells = _cells(descriptor, 64 if is_a else rows, columns, turned, first, rows)
        region = w.block.shared
        if cells.view(np.uint64).max() * GRAIN + GRAIN > region.size:
            raise Fault(f"out of bounds: wgmma reads shared offsets up to {int(cells.max()) * GRAIN} of {region.size}")
        good = region.seen_by(w, cells, w.A) & region.initialised[cells]
        whole = good.all()
        self.good = None if whole else good
        self.version = region.version[cells]
        if not is_a:
            region.multiplied(w, cells if whole else cells[good], len(w.wgmmas))
        if not whole:
            self._tell(region, good)

    def _tell(self, region, good) -> None:
        bad = self.cells[~good]
        unfenced = region.initialised[bad] & (region.copy[bad] == 0) & (region.clock[bad] <= self.w.V[region.agent[bad]])
        machine = self.w.block.machine
        if unfenced.any():
            machine.report("wgmma reads what was written without fence.proxy.async", self.i, f"+{int(bad[unfenced][0]) * GRAIN}")
        machine.note("wgmma reads what is not there (counts as NaN)", self.i, f"{len(bad)} elements of {good.size}")

    def fetch(self):
        if self.value is None:
            self.value = self._values()
        return self.value

    def _values(self):
        region, good = self.w.block.shared, self.good
        same = region.version[self.cells] == self.version
        if not (same if good is None else same | ~good).all():
            self.w.block.machine.note("wgmma's operand was written while it was read (counts as NaN)", self.i)
        value = self._convert(region)
        good = same if good is None else good & same
        return value if good.all() else np.where(good.reshape(self.shape), value, np.float32(np.nan))

    def _convert(self, region):
        """What lies there; once for the four warps of a warpgroup, unless it changes meanwhile."""
        kept = self.w.block.operands
        key = id(self.cells), self.convert
        if key in kept and kept[key][0] == region.changes and kept[key][1] is self.cells:
            return kept[key][2]
        if len(kept) > 64:
            kept.clear()
        value = self.convert(region.view[GRAIN][self.cells]).reshape(self.shape)
        kept[key] = region.changes, self.cells, value
        return value


def _fragment(values, convert):
    """A's [16, 16] of registers of two values each: rows g, g + 8 by columns 2q, 2q + 8 of lane 4g + q."""
    halves = np.array(values).view(np.uint16).reshape(2, 2, 8, 4, 2)  # columns by 8, rows by 8, g, q, column
    return convert(np.ascontiguousarray(halves.transpose(1, 2, 0, 3, 4))).reshape(16, 16)


def _accumulator(values):
    """A warp's [16, columns] of registers."""
    return np.array(values).view(np.float32).reshape(-1, 2, 2, 8, 4).transpose(1, 3, 0, 4, 2).reshape(16, -1)


def _registers(accumulator):
    """A warp's registers of [16, columns], as rows."""
    parts = accumulator.reshape(2, 8, -1, 4, 2).transpose(2, 0, 4, 1, 3)  # of columns by 8, rows by 8, g, q, column
    return np.ascontiguousarray(parts).view(np.uint32).reshape(-1, LANES)


@handles("wgmma")
def _wgmma(program, i):
    kind = i.op[1]
    if kind == "fence":

        def fence(w, m):
            whole_warp(m, w)
            w.fenced = w.R[:]

        return fence
    if kind == "commit_group":

        def commit(w, m):
            whole_warp(m, w)
            w.wgmma_groups.append(w.wgmma_open)
            w.wgmma_open = []

        return commit
    if kind == "wait_group":
        (left,) = i.operands

        def wait(w, m):
            whole_warp(m, w)
            return _finish(w, left)

        return wait
    return _multiply(program, i)


def _multiply(program, i):
    columns, depth = map(int, _SHAPE.match(next(word for word in i.op if _SHAPE.match(word))).groups())
    kinds = i.op[-3:]
    if kinds[0] != "f32" or kinds[1] not in ("bf16", "f16") or depth != 16:
        raise NotImplementedError
    convert = bf16_to_f32 if kinds[1] == "bf16" else f16_to_f32
    d_names, a, b, predicate, scale_a, scale_b, *turned = i.operands
    names = [d for d in d_names]
    d = tuple(program.number[n] for n in names)
    in_registers = isinstance(a, tuple)
    a_numbers = [program.source(x, np.uint32) for x in a] if in_registers else [program.source(a, np.uint64)]
    b_number = program.source(b, np.uint64)
    p = program.source(predicate, bool)
    turned_a, turned_b = (False, bool(turned[0])) if in_registers else (bool(turned[0]), bool(turned[1]))
    if (scale_a, scale_b) not in ((1, 1),):
        raise NotImplementedError
    if len(d) != columns // 2:
        raise Fault(f"{len(d)} accumulator registers for {columns} columns")

    def multiply(w, m):
        whole_warp(m, w)
        R = w.R
        first = 16 * (w.index % 4)
        scale = bool(R[p][0])
        product = Product(w, i, columns, d, scale, convert)
        pending = [R[n] is PENDING for n in d]
        if all(pending):
            last = _newest(w, d)
            if last is None or last.d != d:
                raise Fault("accumulator is in use by another wgmma")
        elif any(pending):
            raise Fault("part of the accumulator is in use by another wgmma")
        else:
            if scale and any(R[n] is None for n in d):
                raise Fault("accumulator was never written")
            if scale and not _fenced(w, d):
                w.block.machine.report("accumulator written after the last wgmma.fence", i)
            product.before = [R[n] for n in d]
        if in_registers:
            if not _fenced(w, a_numbers):
                w.block.machine.report("operand in registers written after the last wgmma.fence", i)
            product.a = [(n, R[n]) for n in a_numbers]
            if any(x is None or x is PENDING for _, x in product.a):
                raise Fault("operand in registers is not there")
        else:
            product.a = _Operand(w, i, int(R[a_numbers[0]][0]), 16, depth, turned_a, first, convert, is_a=True)
        product.b = _Operand(w, i, int(R[b_number][0]), columns, depth, turned_b, 0, convert)
        for n in d:
            R[n] = PENDING
        w.wgmma_open.append(product)
        if w.block.observed is not None and w.index % 4 == 0:
            w.block.observed.wgmma[i.name] += 1
        w.block.machine.happened()

    return multiply


def _fenced(w, numbers) -> bool:
    """Whether registers hold what some register held at the last fence: ptxas drops moves."""
    R, fenced = w.R, w.fenced
    moved = [R[n] for n in numbers if R[n] is not fenced[n]]
    return not moved or {id(x) for x in moved} <= {id(x) for x in fenced}


def _newest(w, d):
    for product in reversed([x for group in w.wgmma_groups for x in group] + w.wgmma_open):
        if set(product.d) & set(d):
            return product
    return None


def _finish(w, left: int):
    """All groups but the newest `left` are done.

    A product is the whole warpgroup's: it ends for all four warps, once all have begun it.
    """
    peers = w.block.warps[w.index // 4 * 4 :][:4]
    ending = [product for group in list(w.wgmma_groups)[: max(0, len(w.wgmma_groups) - left)] for product in group]
    if ending and any(len(peer.wgmmas) < ending[-1].number for peer in peers):
        return BLOCK
    for product in ending:
        for peer in peers:
            its = peer.wgmmas[product.number - 1]
            if its.i is not product.i:
                raise Fault(f"warps of a warpgroup multiply differently: {its.i.loc}")
            for operand in (its.a, its.b):
                if isinstance(operand, _Operand):
                    operand.fetch()
            w.W[peer.agent] = max(w.W[peer.agent], product.number)
    while len(w.wgmma_groups) > left:
        group = w.wgmma_groups.popleft()
        for k, product in enumerate(group):
            w.finishing = group[k + 1 :]
            _compute(w, product)
    return None


def _compute(w, product: Product) -> None:
    R, d = w.R, product.d
    if any(R[n] is not PENDING for n in d):
        w.block.machine.report("accumulator written while wgmma was under way", product.i)
    if isinstance(product.a, list):
        if any(R[n] is not x for n, x in product.a):
            w.block.machine.report("operand in registers written while wgmma was under way", product.i)
        a = _fragment([x for _, x in product.a], product.convert)
    else:
        a = product.a.fetch()
    b = product.b.fetch()
    product.a = product.b = None
    with np.errstate(invalid="ignore", over="ignore"):
        value = a @ b.T
    if product.before is not None:
        w.accumulators[d] = _accumulator(product.before) if product.scale else None
    elif not product.scale:
        w.accumulators[d] = None
    sum_ = w.accumulators[d]
    sum_ = value if sum_ is None else sum_ + value
    w.accumulators[d] = sum_
    later = [*w.finishing, *(x for group in w.wgmma_groups for x in group), *w.wgmma_open]
    if not any(x.d == d for x in later):  # else the registers are still not to be read
        for n, row in zip(d, _registers(sum_), strict=True):
            R[n] = w.fenced[n] = row  # another wgmma may add to it at once
