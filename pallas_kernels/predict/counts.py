"""What the blocks of a launch do, counted while a few of them are emulated: instructions, bytes, wavefronts, products."""

import collections
import dataclasses
import math
import re

import numpy as np

from pallas_kernels.emulator import launch
from pallas_kernels.emulator.chip import access, tma
from pallas_kernels.emulator.observed import wavefronts
from pallas_kernels.emulator.ptx.program import Program
from pallas_kernels.predict import chip

SAMPLES = 5  # clusters of a grid that are emulated and stand for all
_SHAPE = re.compile(r"m64n(\d+)k16")
_SPECIAL = {"ex2", "lg2", "rcp", "rsqrt", "sin", "cos", "tanh", "sqrt"}


@dataclasses.dataclass
class Block:
    """What one block did, its share of a cluster's.

    Attributes:
      instructions: of its warps, as PTX has them but for those that SASS has not (moves, parameters).
      special, convert: of them special functions and conversions.
      tensor: cycles of the tensor cores.
      wavefronts: of shared memory, with bank conflicts; what TMA writes and wgmma reads there is in `tma_bytes`, and in `tensor`.
      ideal: wavefronts if no two lanes met in a bank.
      tma_bytes: that bulk copies brought into shared memory.
      read, wrote: bytes of global memory, by array: TMA's and whole sectors of 32 bytes of loads and stores.
      flying: most bytes that bulk copies had under way at a time.
      loads: of global memory, of its warps.
    """

    instructions: float = 0
    special: float = 0
    convert: float = 0
    tensor: float = 0
    wavefronts: float = 0
    ideal: float = 0
    tma_bytes: float = 0
    read: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    wrote: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    flying: float = 0
    loads: float = 0


@dataclasses.dataclass(frozen=True)
class Counts:
    """A launch: `blocks` emulated ones of `grid`, each standing for as many as the others.

    Attributes:
      name: of the kernel.
      key: hash of its code.
      sizes: bytes of each array, by name.
      static: PTX instructions of the code that SASS has too, as `Block.instructions` counts.
      firsts: where the emulated clusters begin.
    """

    name: str
    key: str
    grid: tuple[int, int, int]
    cluster: tuple[int, int, int]
    threads: int
    registers: int
    shared_memory: int
    blocks: tuple[Block, ...]
    sizes: dict
    static: int
    firsts: tuple


class Sampled(Program):
    """A program whose blocks believe to be elsewhere in a larger grid."""

    def __init__(self, kernel, grid, first, block: Block):
        self.grid, self.first = grid, first
        super().__init__(kernel)
        for i, instruction in enumerate(self.instructions):
            self.code[i] = _counting(self, instruction, self.code[i], block)

    def _special(self, name: str, warp):
        base, _, axis = name[1:].partition(".")
        a = {"x": 0, "y": 1, "z": 2}.get(axis, 0)
        full = lambda value: np.full(32, value, np.uint32)
        if base == "ctaid":
            return full(warp.block.ids[a] + self.first[a])
        if base == "nctaid":
            return full(self.grid[a])
        if base == "clusterid":
            return full((warp.block.ids[a] + self.first[a]) // warp.block.machine.launch.cluster[a])
        if base == "nclusterid":
            return full(self.grid[a] // warp.block.machine.launch.cluster[a])
        return super()._special(name, warp)


def has_sass(i) -> bool:
    """Whether an instruction of PTX is one of the machine's too, mostly: no move, no parameter."""
    return i.op[0] not in ("mov", "cvta", "ret") and i.op[:2] != ("ld", "param")


def _counting(program, i, run, block: Block):
    """The instruction, and its count."""
    op = i.op
    if op[0] in ("ld", "st", "atom", "red"):
        return _counting_access(program, i, run, block)
    if op[0] == "cp" and "bulk" in op and ("tensor" in op or op[2] == "bulk"):
        return _counting_copy(i, run, block)
    if op[0] == "wgmma" and (found := next(filter(None, map(_SHAPE.match, op)), None)):
        cycles = chip.wgmma_cycles(int(found[1]), from_registers=isinstance(i.operands[1], tuple)) / 4  # of four warps
        return _adding(run, block, "tensor", cycles)
    if op[0] in ("stmatrix", "ldmatrix"):
        return _adding(run, block, "wavefronts", len(i.operands[1]) if isinstance(i.operands[1], tuple) else 1)
    if op[0] in _SPECIAL:
        return _adding(run, block, "special", 1)
    if op[0] == "cvt":
        return _adding(run, block, "convert", 1)
    return run


def _adding(run, block: Block, name: str, amount: float):
    def count(w, m):
        answer = run(w, m)
        setattr(block, name, getattr(block, name) + amount)
        return answer

    return count


def _counting_copy(i, run, block: Block):
    def copy(w, m):
        flight = w.block.machine.in_flight
        before = len(flight)
        answer = run(w, m)
        for one in flight[before:]:
            size = one.there.sum() * one.size
            if isinstance(one, tma.Load):
                block.tma_bytes += len(one.source) * one.size * len(one.targets)
                if one.region is not None:
                    block.read[one.region.name] += int(size)
            elif one.region is not None:
                block.wrote[one.region.name] += int(size)
        flying = sum(len(c.source) * c.size * len(c.targets) for c in flight if isinstance(c, tma.Load))
        block.flying = max(block.flying, flying)
        return answer

    return copy


def _counting_access(program, i, run, block: Block):
    space, kind, _, size = access._access(program, i)
    if space == "param":
        return run
    writes = i.op[0] != "ld"
    where = i.operands[0] if i.op[0] in ("st", "red") else i.operands[1]
    address = program.address(where, np.uint32 if space == "shared" else np.uint64)

    def count(w, m):
        at = address(w.R)
        at = at if m is None else at[m]
        region, offsets = access.locate(w, space, at, size)
        if region.name.startswith("shared"):
            block.wavefronts += wavefronts(offsets, size)
            block.ideal += max(1, -(-len(offsets) * size // chip.WAVEFRONT))
        else:
            sectors = len(np.unique(np.concatenate([offsets // 32, (offsets + size - 1) // 32])))
            (block.wrote if writes else block.read)[region.name] += 32 * sectors
            block.loads += not writes
        return run(w, m)

    return count


def samples(grid, cluster, most: int = SAMPLES) -> list[tuple[int, int, int]]:
    """First blocks of the clusters that stand for all: those in the middle of as many equal parts of the grid."""
    n = [g // c for g, c in zip(grid, cluster, strict=True)]
    total = math.prod(n)
    chosen = sorted({int((k + 0.5) * total / most) for k in range(most)})
    return [tuple(int(x) * c for x, c in zip(np.unravel_index(k, n[::-1])[::-1], cluster, strict=True)) for k in chosen]


def of_launch(compiled, operands, shapes, aliases, most: int = SAMPLES) -> Counts:
    """Counts of one launch of a `capture.Compiled` kernel; `most` clusters of its grid are emulated."""
    program, its_host, registers = launch.load(compiled)
    per = math.prod(its_host.cluster)
    blocks, firsts, sizes = [], samples(its_host.grid, its_host.cluster, most), {f"operand {i}": a.nbytes for i, a in enumerate(operands)}
    sizes |= {f"result {i}": math.prod(s.shape) * np.dtype(s.dtype).itemsize for i, s in enumerate(shapes)}
    for first in firsts:
        block = Block()

        def change(_, __, first=first, block=block):
            moved = Sampled(program.kernel, its_host.grid, first, block)
            return moved, dataclasses.replace(its_host, grid=its_host.cluster)

        done = launch.launch(compiled, operands, shapes, aliases, seed=1, policy="late", change=change)
        names = {i.name: has_sass(i) for i in program.instructions}
        block.instructions = sum(n for name, n in done.executed.items() if names[name])
        blocks.append(_share(block, per))
    static = sum(map(has_sass, program.instructions))
    geometry = (its_host.grid, its_host.cluster, its_host.threads, registers, its_host.shared_bytes)
    return Counts(compiled.name, compiled.key, *geometry, tuple(blocks), sizes, static, tuple(firsts))


def _share(block: Block, parts: int) -> Block:
    """A block's of a cluster's counts."""
    divided = {f.name: getattr(block, f.name) for f in dataclasses.fields(block)}
    for name, value in divided.items():
        divided[name] = collections.Counter({k: v / parts for k, v in value.items()}) if isinstance(value, dict) else value / parts
    return Block(**divided)


def mean(blocks: tuple[Block, ...]) -> Block:
    """What a block does on average."""
    total = Block()
    for block in blocks:
        for field in dataclasses.fields(Block):
            value = getattr(block, field.name)
            if isinstance(value, dict):
                getattr(total, field.name).update(value)
            elif field.name == "flying":
                total.flying = max(total.flying, value)
            else:
                setattr(total, field.name, getattr(total, field.name) + value / len(blocks))
    for sums in (total.read, total.wrote):
        for name in sums:
            sums[name] /= len(blocks)
    return total
