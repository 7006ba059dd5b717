"""A request on its way through the engine: which pages of the cache it has, and how far it has come."""

from collections.abc import Iterator
import dataclasses
import math
import time
from typing import Any

import numpy as np

from gptoss_jax.engine.hooks.looking import Looking
from gptoss_jax.engine.scheduling.pages import Block, Pages, digests
from gptoss_jax.engine.scheduling.prompt_routes import PromptRoutes


@dataclasses.dataclass(frozen=True)
class Piece:
    """A block of a prompt that is to be read: tokens [page], of which `count` count, from position `start` on; as what it is kept."""

    tokens: np.ndarray
    count: int
    start: int
    kept: Block | None = None


Rows = list[tuple[int, "Live", Piece]]
"""Rows of a dispatch of prompts: whose each is, and which block of its prompt."""


@dataclasses.dataclass(frozen=True)
class Attached:
    """An adapter in an LLM.

    Attributes:
      name: by which requests ask for it.
      rank: the largest of its matrices'.
      targets: the matrices that it has terms for.
      place: where its terms lie among the others'.
      number: of times that anything was attached before: keys and values of one are never another's.
    """

    name: str
    rank: int
    targets: tuple[str, ...]
    place: int
    number: int

    @property
    def salt(self) -> bytes:
        """What prefixes that are computed with it are known by, beside their tokens."""
        return b"adapter" + self.number.to_bytes(8, "little")


class Times:
    """When what happened to a request, by `time.monotonic`; NaN where it has not."""

    __slots__ = ("came", "taken", "first", "last")

    def __init__(self):
        self.came, self.taken, self.first, self.last = time.monotonic(), math.nan, math.nan, math.nan


class Live:
    """One request between its coming and its end.

        prompt  p0 p1 p2 p3 p4      read: p0 ... p3 are in the cache, in blocks of a page
        tokens              t0 t1   placed with p4 as its newest token; each step caches the newest and draws the next

    Where it loses its pages it is read again, and `tokens`, which are known by then, are forced instead of drawn: in the program that
    drew them, so that keys and values come out the same to the bit. A request that has `forced` tokens takes these in the same way.

    Args:
      request: what was asked for.
      order: when it came.
      prompt: [n] int32.
      budget: most tokens to draw.
      seed: of its draws.
      outlet: where its pieces go.
      page: tokens a page.
      window: of sliding layers.
      looking: its hook; None for none.
    """

    def __init__(
        self,
        request: Any,
        order: int,
        prompt: np.ndarray,
        budget: int,
        seed: int,
        outlet: Any,
        *,
        page: int,
        window: int,
        looking: Looking | None = None,
    ):
        self.request, self.order, self.prompt, self.budget, self.seed = request, order, prompt, budget, seed
        self.outlet, self.looking = outlet, looking
        self.page, self._window = page, window
        self.tokens: list[int] = []  # drawn so far
        self.routes = PromptRoutes(request.routed_experts_from, len(prompt) - 1)
        self._forced = None if request.forced is None else [int(token) for token in request.forced]
        self.deadline: float | None = None
        self.queued = True  # until it is taken up for the first time
        self.ended = self.preempted = False
        self.adapter: Attached | None = None  # that it was taken up with, and holds on to
        self.times = Times()
        request.cached_tokens = 0
        self.shard: int | None = None
        self._digests: list[bytes] | None = None
        self._forget()

    def _forget(self) -> None:
        self._pages: Pages | None = None
        self._full: list[int] = []  # page of each block
        self._ring: dict[int, int] = {}  # page of each block that sliding layers still need
        self.routes.forget()
        self.read = 0  # tokens of the prompt that are in the cache
        self.slot: int | None = None
        self.seen = 0  # tokens whose drawing since it was placed the host knows of
        self.replayed = 0  # of the tokens that are known, those that have been forced since then
        self.replay = len(self._known_tokens)  # and how many are to be
        self.in_flight = 0  # steps asked for and not yet heard of
        self.waits = False  # a guided row that the device holds until the host has looked
        self.single = False  # its mask holds for one token only

    @property
    def rank(self) -> tuple[int, int]:
        """Who comes first."""
        return (self.request.priority, self.order)

    @property
    def unread(self) -> int:
        """Tokens of the prompt that are still to be read: the last one is the slot's first input."""
        return len(self.prompt) - 1 - self.read

    @property
    def left(self) -> int:
        """Least number of tokens that may still be drawn after what is in flight; a request with none has ended, or soon will."""
        return self.budget - self.seen - self.in_flight

    @property
    def new(self) -> int:
        """Tokens that are in flight and not known; negative where so many are known that are yet to be forced."""
        return self.seen + self.in_flight - len(self.tokens)

    @property
    def begun(self) -> bool:
        """Whether it has been taken up; not, again, after it has lost its pages."""
        return self._pages is not None

    def begin(self, pages: Pages, shard: int) -> None:
        """Takes its pages from a shard of the cache from now on."""
        self._pages, self.shard = pages, shard

    @property
    def draws_in(self) -> Any:
        """The programs of its hook that its steps run in; None for the plain ones."""
        return None if self.looking is None else self.looking.programs

    @property
    def reads_in(self) -> Any:
        """Likewise of its prompt."""
        return self.looking.programs if self.looking is not None and self.looking.reads else None

    @property
    def _shares(self) -> bool:
        return self.looking is None or self.looking.shares

    def next_piece(self, spare: int) -> Piece | None:
        """The next block to be read; None where nothing is left, or no page but the `spare` ones of each kind, which are for others."""
        if self.unread == 0 or self._pages.room <= spare:
            return None
        block, start = self.read // self.page, self.read
        full, ring = self._pages.take_full(), self._pages.take_ring()
        self._full.append(full)
        self._ring[block] = ring
        count = min(self.page, self.unread)
        self.read += count
        kept = self._pages.keep(self._known()[block], full, ring) if count == self.page and self._shares else None
        tokens = np.zeros(self.page, np.int32)
        tokens[:count] = self.prompt[start : start + count]
        return Piece(tokens, count, start, kept)

    def drop_old(self, position: int) -> None:
        """Gives back pages of sliding layers that no query from `position` on sees."""
        first = max(0, position - self._window + 1) // self.page
        for block in [block for block in self._ring if block < first]:
            self._pages.ring.release(self._ring.pop(block))

    def reserve(self, steps: int) -> bool:
        """Sees to pages for so many steps more; False where there are too few."""
        length = len(self.prompt) - 1 + self.seen
        end = min(length + self.in_flight + steps, len(self.prompt) - 1 + self.budget)
        self.drop_old(length)
        for block in range(length // self.page, -(-end // self.page)):
            if block >= len(self._full):
                page = self._pages.take_full()
                if page is None:
                    return False
                self._full.append(page)
            if block not in self._ring:
                page = self._pages.take_ring()
                if page is None:
                    return False
                self._ring[block] = page
        return True

    def fill(self, full_row: np.ndarray, ring_row: np.ndarray) -> None:
        """Writes its pages into rows of page tables."""
        full_row[: len(self._full)] = self._full
        for block, page in self._ring.items():
            ring_row[block % len(ring_row)] = page

    @property
    def replaying(self) -> bool:
        """Whether its next step takes a token that is known."""
        return self.replayed < self.replay

    def to_force(self, steps: int) -> list[int]:
        """Tokens, asked for or known from before it lost its pages, that the next steps take."""
        forced = self._known_tokens[self.replayed : min(self.replayed + steps, self.replay)]
        self.replayed += len(forced)
        return forced

    @property
    def _known_tokens(self) -> list[int]:
        return self.tokens if self._forced is None else self._forced

    def place(self, slot: int) -> None:
        self.slot, self.waits = slot, self.request.constraint is not None

    def release(self) -> None:
        """Gives back all pages; what was drawn stays known."""
        for page in reversed(self._full):
            self._pages.full.release(page)
        for page in self._ring.values():
            self._pages.ring.release(page)
        self.preempted = True
        self._forget()

    @property
    def may_restart(self) -> bool:
        """Whether it may begin anew: nobody has been shown a token, and no constraint has been told of one."""
        if self.looking is not None and self.looking.written:  # what was written somewhere stays there
            return False
        return not self.request.cancelled and (not self.tokens or not self.request.paced and self.request.constraint is None)

    def restart(self) -> None:
        """Gives back all pages and forgets what was drawn: it begins as if it had never been taken up."""
        self.release()
        self.tokens, self.preempted = [], False
        self.routes = PromptRoutes(self.request.routed_experts_from, len(self.prompt) - 1)
        if self.looking is not None:
            self.looking.forget()
        self.request.cached_tokens = 0
        self._forget()

    def reuse(self) -> int:
        """Goes on from the longest prefix that is kept; how many tokens that saves.

        Not between pieces of one dispatch: their rows share a page table, which has no room for blocks further on.
        """
        if self.read % self.page or self.unread < self.page or not self._shares:
            return 0
        block, known = self.read // self.page, self._known()
        end = self._pages.longest(known, block)
        if end == block:
            return 0
        blocks, ring = self._pages.share(known, block, end)
        for i, one in enumerate(blocks, block):
            self._full.append(one.full)
            self.routes.share(i * self.page, one)
        self._ring |= ring
        self.read = end * self.page
        self.drop_old(self.read)
        saved = (end - block) * self.page
        if not self.preempted:
            self.request.cached_tokens += saved
        return saved

    def _known(self) -> list[bytes]:
        """Digests of the blocks that end before the prompt's last token."""
        if self._digests is None:
            self._digests = list(self._iterate())
        return self._digests

    def _iterate(self) -> Iterator[bytes]:
        salt = b"" if self.adapter is None else self.adapter.salt
        salt += self.request.salt
        salt += b"" if self.looking is None else self.looking.salt
        return digests(self.prompt[:-1], self.page, salt)

    @property
    def terms(self) -> int:
        """The place of its adapter; -1 for none."""
        return -1 if self.adapter is None else self.adapter.place
