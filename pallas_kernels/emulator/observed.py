"""What a block did while it ran, for a model of time. Counts only: no clock, no caches, and nothing that depends on the schedule."""

import collections
import dataclasses

import numpy as np

SECTOR = 32  # bytes of global memory that are fetched at least
BANKS, WORD = 32, 4  # of shared memory


@dataclasses.dataclass
class Observed:
    """What a block, or a whole launch, did. Arrays are by number of the kernel's instruction, and count warps' work.

    Attributes:
      executed: how often an instruction ran, in warps.
      bytes: that lanes loaded and stored, in global or shared memory, or that bulk copies moved to or from global memory.
      sectors: of 32 bytes of global memory that a warp's load, store or atomic touched, each once an instruction.
      wavefronts: of shared memory: 1 where a warp's load or store meets no bank twice (2 and 4 where lanes access 8 and 16 bytes),
        more where it does. Of ldmatrix and stmatrix too; not of wgmma's operands and bulk copies.
      wgmma: warpgroups' products, by their instruction's name.
      copied_in, copied_out: bytes of bulk copies from and to global memory, without what lies outside of a tensor.
      loaded, stored: bytes of global memory that lanes accessed otherwise (an atomic counts as a store).
      copies: bulk copies.
    """

    executed: np.ndarray
    bytes: np.ndarray
    sectors: np.ndarray
    wavefronts: np.ndarray
    wgmma: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    copied_in: int = 0
    copied_out: int = 0
    loaded: int = 0
    stored: int = 0
    copies: int = 0

    @classmethod
    def of(cls, instructions: int) -> "Observed":
        """Nothing yet, of a kernel of so many instructions."""
        return cls(*(np.zeros(instructions, np.int64) for _ in range(4)))

    def __add__(self, other: "Observed") -> "Observed":
        return Observed(*(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)))

    def access(self, index: int, space: str, addresses: np.ndarray, size: int, *, stores: bool) -> None:
        """Lanes access `size` bytes each."""
        moved = size * addresses.size
        self.bytes[index] += moved
        if space == "shared":
            self.wavefronts[index] += wavefronts(addresses, size)
            return
        self.sectors[index] += np.unique(addresses // SECTOR).size
        if stores:
            self.stored += moved
        else:
            self.loaded += moved

    def copy(self, index: int, moved: int, *, stores: bool) -> None:
        """A bulk copy begins."""
        self.copies += 1
        self.bytes[index] += moved
        if stores:
            self.copied_out += moved
        else:
            self.copied_in += moved


def wavefronts(addresses: np.ndarray, size: int) -> int:
    """Turns that shared memory takes to serve lanes that access `size` bytes each at these addresses.

    8 bytes are served by half warps, 16 by quarters; within one, lanes may share a word, and a bank gives one word a turn.
    """
    words, together = max(1, size // WORD), max(1, 32 * WORD // max(size, WORD))
    turns = 0
    for first in range(0, addresses.size, together):
        some = addresses[first : first + together] // WORD
        distinct = np.unique(some[:, None] + np.arange(words) if words > 1 else some)
        turns += int(np.bincount(distinct % BANKS).max())
    return turns
