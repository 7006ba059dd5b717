"""Which page of the cache belongs to whom, kept on the host: pools of pages, and prefixes whose pages are used again.

A block is a page's worth of tokens. A prompt's block is known by a digest of itself and all that is before it, so that equal digests
mean equal keys and values. Blocks that nobody uses any more stay until their pages are needed, the least recently used go first.
Full layers need the pages of all blocks, sliding layers those of the last window: each kind has a pool of its own, and a prefix can be
gone on from wherever all full pages before and the window's pages of sliding layers are still there. Knows no arrays of the device.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
import dataclasses
import hashlib

import numpy as np


@dataclasses.dataclass(eq=False, slots=True)
class Block:
    """A block of a prefix: its page in each pool, None where that has been given away.

    `routes` are the experts of its tokens, [page, L, A], where these are reported, and as soon as the host knows them: what the dispatch
    that computes it has found out is looked at with the first tokens that are drawn after it. They go with its page of full layers.
    """

    digest: bytes
    full: int | None
    ring: int | None
    routes: np.ndarray | None = None


class Pool:
    """Pages of one kind, numbered from `first`."""

    def __init__(self, first: int, count: int):
        self._free = list(range(first + count - 1, first - 1, -1))
        self._users: dict[int, int] = {}
        self._blocks: dict[int, Block] = {}  # blocks of prefixes by page
        self._idle: OrderedDict[int, None] = OrderedDict()  # pages of such blocks that nobody uses, least recently used first
        self.count = count

    @property
    def available(self) -> int:
        """Pages that `take` would give."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        return len(self._users)

    def take(self) -> tuple[int, Block | None] | None:
        """A page for one user, and the block that loses it for that; None where all are in use."""
        lost = None
        if self._free:
            page = self._free.pop()
        elif self._idle:
            page, _ = self._idle.popitem(last=False)
            lost = self._blocks.pop(page)
        else:
            return None
        self._users[page] = 1
        return page, lost

    def share(self, page: int) -> None:
        """One more user of a page that is in use or idle."""
        self._idle.pop(page, None)
        self._users[page] = self._users.get(page, 0) + 1

    def release(self, page: int) -> None:
        """One user less."""
        self._users[page] -= 1
        if self._users[page] == 0:
            del self._users[page]
            if page in self._blocks:
                self._idle[page] = None
            else:
                self._free.append(page)

    def forget(self) -> None:
        """No page holds a prefix's block any more."""
        self._blocks.clear()
        self._free += self._idle
        self._idle.clear()

    def belongs(self, page: int, block: Block) -> None:
        """A page holds a prefix's block: it is kept when nobody uses it."""
        self._blocks[page] = block


class Pages:
    """The pages of one shard of the cache.

    Args:
      full, ring: (first page, count) of full and of sliding layers.
      window_blocks: blocks before a block's first token that sliding layers need there.
      reuse: whether prefixes are kept at all.
    """

    def __init__(self, full: tuple[int, int], ring: tuple[int, int], *, window_blocks: int, reuse: bool):
        self.full, self.ring = Pool(*full), Pool(*ring)
        self._window_blocks, self._reuse = window_blocks, reuse
        self._blocks: dict[bytes, Block] = {}

    @property
    def room(self) -> int:
        """Blocks that there are pages for."""
        return min(self.full.available, self.ring.available)

    def take_full(self) -> int | None:
        return self._take(self.full, "full")

    def take_ring(self) -> int | None:
        return self._take(self.ring, "ring")

    def longest(self, digests: Sequence[bytes], first: int = 0) -> int:
        """The largest n, `first` at least, such that what follows the first n blocks of a prefix finds all that it needs.

        Args:
          digests: of the prefix's blocks.
          first: blocks that the caller holds already.
        """
        n = first
        while n < len(digests) and (block := self._blocks.get(digests[n])) and block.full is not None:
            n += 1
        while n > first and any(self._ring_of(digests[i]) is None for i in range(max(first, n - self._window_blocks), n)):
            n -= 1
        return n

    def share(self, digests: Sequence[bytes], first: int, last: int) -> tuple[list[Block], dict[int, int]]:
        """Blocks first ... last - 1, which `longest` found, for one user more of their full pages; the window's ring pages by block."""
        blocks = [self._blocks[digest] for digest in digests[first:last]]
        ring = {i: blocks[i - first].ring for i in range(max(first, last - self._window_blocks), last)}
        for block in reversed(blocks):  # a prefix's first block is the last to go
            self.full.share(block.full)
        for page in ring.values():
            self.ring.share(page)
        return blocks, ring

    def keep(self, digest: bytes, full: int, ring: int) -> Block | None:
        """A block that its user has had computed, or will have before anything that is dispatched from now on; None if none are kept."""
        if not self._reuse:
            return None
        block = self._blocks.get(digest)
        if block is None:
            block = self._blocks[digest] = Block(digest, None, None)
        if block.full is None:
            block.full = full
            self.full.belongs(full, block)
        if block.ring is None:
            block.ring = ring
            self.ring.belongs(ring, block)
        return block

    def forget(self) -> None:
        """Drops all kept prefixes. To be called where nobody has pages: whoever has some would keep blocks of before."""
        self._blocks.clear()
        self.full.forget()
        self.ring.forget()

    def _take(self, pool: Pool, kind: str) -> int | None:
        taken = pool.take()
        if taken is None:
            return None
        page, lost = taken
        if lost is not None:
            setattr(lost, kind, None)
            if lost.full is None:
                lost.routes = None
            if lost.full is None and lost.ring is None:
                del self._blocks[lost.digest]
        return page

    def _ring_of(self, digest: bytes) -> int | None:
        block = self._blocks.get(digest)
        return None if block is None else block.ring


def digests(tokens: np.ndarray, size: int, salt: bytes = b"") -> Iterator[bytes]:
    """A digest of each whole block of tokens [n] int32, of all before it and of a salt."""
    before = hashlib.blake2b(salt, digest_size=16).digest() if salt else b""
    for start in range(0, len(tokens) - size + 1, size):
        before = hashlib.blake2b(before + tokens[start : start + size].tobytes(), digest_size=16).digest()
        yield before
