"""The state of a cluster: warps and what they know, blocks and their shared memory, the launch that they belong to."""

import collections
import dataclasses

import numpy as np

from pallas_kernels.emulator.chip.memory import Region
from pallas_kernels.emulator.observed import Observed
from pallas_kernels.emulator.ptx.handlers import LANES


class Knowledge:
    """What is known to have happened; see `memory`. W: of each warp, how many of its wgmma have read their operands."""

    def __init__(self, agents: int):
        self._all = np.zeros((3, agents), np.int32)
        self.V, self.A, self.W = self._all
        self.seen = 0

    def join(self, other: "Knowledge") -> None:
        np.maximum(self._all, other._all, out=self._all)
        self.seen |= other.seen


class Warp(Knowledge):
    """State of a warp.

    Attributes:
      R: registers; each an array of 32 lanes, None (never written), or PENDING.
      live: lanes that have not ended. pcs: per lane while they diverge, else None.
      wgmmas: all that it has issued; `accumulators` their sums, by register numbers.
      groups: bulk copies out of shared memory and wgmma, as lists of those that were committed together; `open` of those not yet.
      fenced: values of registers at the last wgmma.fence, and of those that wgmma wrote since.
    """

    def __init__(self, block: "Block", index: int, registers: int, agents: int):
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
        self.fenced: list = [None] * registers
        self.max_registers = block.machine.launch.registers
        self.blocked_at = -1

    def tick(self) -> None:
        """What follows is not what was released before."""
        self.V[self.agent] += 1


class Block:
    """A block of threads: its shared memory and barriers; what it did, where that is observed."""

    def __init__(self, machine, rank: int, ids: tuple[int, int, int], agents: int):
        launch = machine.launch
        self.machine, self.rank, self.ids = machine, rank, ids
        self.warps_each = launch.threads // LANES
        size = -(-launch.shared_bytes // 128) * 128
        self.shared = Region(f"shared memory of block {ids}", 0, machine.garbage(size), agents, shadow=True, initialised=False)
        self.mbarriers: dict[int, object] = {}
        self.named: dict[int, object] = {}
        self.free_registers = 0
        self.operands: dict = {}  # of wgmma, as they were when last read
        self.observed = Observed.of(len(machine.executed)) if launch.observe else None
        self.executed = machine.executed if self.observed is None else self.observed.executed
        self.warps = [Warp(self, i, machine.registers, agents) for i in range(self.warps_each)]


@dataclasses.dataclass
class Launch:
    """A launch.

    Attributes:
      grid, threads, cluster, shared_bytes: its geometry.
      params, tensor_maps: bytes of parameters, and tensor maps by their address.
      registers: a thread's, as assembled.
      observe: whether blocks say what they did.
    """

    grid: tuple[int, int, int]
    threads: int
    cluster: tuple[int, int, int]
    shared_bytes: int
    params: np.ndarray
    tensor_maps: dict
    registers: int
    observe: bool = False
