"""One GPU kernel as the compiler left it, and how many of its blocks a Hopper multiprocessor holds. Knows no jax."""

import collections
from collections.abc import Mapping
import dataclasses
import math

# One multiprocessor of a Hopper (compute capability 9.0).
_REGISTERS, _WARPS, _BLOCKS = 65_536, 64, 32
_QUARTERS = 4  # each schedules its own warps, out of its own quarter of the registers
_REGISTERS_A_WARP = 256  # are given out in units of this many
_SHARED_MEMORY, _RESERVED, _GRAIN = 233_472, 1_024, 128  # bytes: of the multiprocessor, of them kept for each block, and their unit


@dataclasses.dataclass(frozen=True)
class Assembly:
    """What ptxas made of a Pallas kernel's PTX, beside what it costs.

    Attributes:
      names: how often each machine instruction occurs in the code, with its modifiers ("LDS.128").
      products: wgmma instructions of the PTX.
      remarks: numbers of what ptxas remarked, such as "C7510" (it serialised the products), "C7519" (it put a warpgroup.arrive in).
      moved_registers: a thread's, that `setmaxnreg` asks for, in the PTX' order.
      most_registers: highest general register that occurs in the code, and one.
    """

    names: Mapping[str, int]
    products: int
    remarks: tuple[str, ...]
    moved_registers: tuple[int, ...]
    most_registers: int


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A compiled kernel.

    Attributes:
      name: of the Pallas kernel, or of XLA's fusion.
      registers: a thread's, as allocated at launch; `setmaxnreg` moves them between warpgroups later.
      spill_bytes: stores and loads together.
      stack_bytes: a thread's.
      shared_memory: bytes of a block, static and dynamic.
      threads: of a block.
      grid: blocks along x, y, z.
      sass: how often each machine instruction occurs in the code (not: is executed), without its modifiers.
      pallas: whether it is a Pallas kernel; otherwise XLA made it.
      assembly: of a Pallas kernel, what ptxas made of it.
    """

    name: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_memory: int
    threads: int
    grid: tuple[int, int, int]
    sass: Mapping[str, int] = dataclasses.field(hash=False, repr=False)
    pallas: bool = False
    assembly: Assembly | None = dataclasses.field(default=None, hash=False, compare=False, repr=False)

    @property
    def instructions(self) -> int:
        """Machine instructions of the code."""
        return sum(self.sass.values())

    @property
    def wgmma(self) -> int:
        """Warpgroup matrix multiplications in the code."""
        return self.sass.get("HGMMA", 0) + self.sass.get("QGMMA", 0) + self.sass.get("IGMMA", 0)

    @property
    def ctas_per_sm(self) -> int:
        """Blocks that fit into one multiprocessor at a time, by registers, shared memory and threads."""
        return ctas_per_sm(self.registers, self.threads, self.shared_memory)


def ctas_per_sm(registers: int, threads: int, shared_memory: int) -> int:
    """Blocks that fit into one Hopper multiprocessor at a time; 0: the kernel cannot run.

    Args:
      registers: a thread's.
      threads: of a block.
      shared_memory: bytes of a block.
    """
    warps = _up(math.ceil(threads / 32), _QUARTERS)
    a_warp = _up(max(registers, 1) * 32, _REGISTERS_A_WARP)
    by_registers = _QUARTERS * (_REGISTERS // _QUARTERS // a_warp) // warps
    by_memory = _SHARED_MEMORY // _up(shared_memory + _RESERVED, _GRAIN)
    return min(by_registers, by_memory, _WARPS // warps, _BLOCKS)


def mix(names) -> collections.Counter:
    """Instruction names, without their modifiers, counted."""
    return collections.Counter(name.partition(".")[0] for name in names)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
