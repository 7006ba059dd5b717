"""Sequences as blocks of a page, of which those that several begin with are there once.

Sorted, sequences that begin alike are neighbours, so that the blocks between two branches are a stack: a block's page is needed until the
last sequence that goes through it, and a whole context of pages, with those of one dispatch, is enough for any number of sequences.

    a b c | d e f | g        abc def g
    a b c | d e f | h i      ... ... hi      two blocks are shared
    a b c | x                ... x           one is

On the host; knows no device.
"""

from collections.abc import Iterator
import dataclasses
import itertools

import numpy as np

from gptoss_jax.engine.sizes import Sizes
from gptoss_jax.sampling.reported import Sampled


@dataclasses.dataclass(eq=False)
class Block:
    """Tokens that are computed once, for all sequences that begin so.

    Attributes:
      ids: [count + 1] int32: its tokens, and the one behind them, which is the last one's target.
      start: position of the first.
      page: that holds its keys and values.
      scores: of its targets, once they are known.
    """

    ids: np.ndarray
    start: int
    page: int
    scores: Sampled | None = None


class Walk:
    """Goes through the sequences of one replica: iterate for the blocks to be computed, each as the path that ends with it.

    Args:
      sequences: int32 arrays by number, sorted.
      first_page, pages: the replica's pages: a whole context, and a dispatch.
      page: tokens a page.

    Attributes:
      paths: the blocks of each sequence by its number.
    """

    def __init__(self, sequences: list[tuple[int, np.ndarray]], first_page: int, pages: int, page: int):
        self._sequences, self._page = sequences, page
        self._free = list(range(first_page, first_page + pages))
        self._leaving: list[int] = []  # pages that nothing to come needs, but that the dispatch in the making may
        self.paths: dict[int, list[Block]] = {}

    def __iter__(self) -> Iterator[list[Block]]:
        path: list[Block] = []
        for (number, ids), shared in zip(self._sequences, shared_blocks([ids for _, ids in self._sequences], self._page), strict=True):
            self._leaving += [block.page for block in path[shared:]]
            del path[shared:]
            for start in range(shared * self._page, len(ids) - 1, self._page):
                path.append(Block(ids[start : start + self._page + 1], start, self._free.pop()))
                yield path
            self.paths[number] = list(path)

    def dispatched(self) -> None:
        """The blocks so far are on their way: pages that no other needs may be written over by what comes behind them."""
        self._free += self._leaving
        self._leaving.clear()


def shared_blocks(sequences: list[np.ndarray], page: int) -> Iterator[int]:
    """How many blocks each of sorted sequences begins with that the one before it has too, with the same last target."""
    before = np.zeros(0, np.int32)
    for ids in sequences:
        n = min(len(ids), len(before))
        differ = np.flatnonzero(ids[:n] != before[:n])
        common = int(differ[0]) if len(differ) else n
        same = common == len(ids) == len(before)
        yield _blocks(ids, page) if same else max(0, common - 1) // page
        before = ids


def _blocks(ids: np.ndarray, page: int) -> int:
    """Blocks of a sequence, whose last token needs none."""
    return -(-(len(ids) - 1) // page)


def dealt(arrays: list[np.ndarray], sizes: Sizes) -> list[list[tuple[int, np.ndarray]]]:
    """The sequences with their numbers, sorted, in runs for the replicas, each with about as many blocks to be computed."""
    order = sorted(range(len(arrays)), key=lambda i: arrays[i].astype(">u4").tobytes())  # bytes compare as the ids do
    shared = shared_blocks([arrays[i] for i in order], sizes.page)
    new = np.array([_blocks(arrays[i], sizes.page) - known for i, known in zip(order, shared, strict=True)], np.int64)
    replica = np.minimum((np.cumsum(new) - new) * sizes.replicas // max(1, new.sum()), sizes.replicas - 1)
    return [[(order[k], arrays[order[k]]) for k in np.flatnonzero(replica == r)] for r in range(sizes.replicas)]


def next_rows(paths: list[Iterator[list[Block]]], rows: int) -> list[tuple[int, list[Block]]]:
    """The paths of the blocks of the next dispatch, each with its row."""
    return [(r * rows + i, list(path)) for r, walk in enumerate(paths) for i, path in enumerate(itertools.islice(walk, rows))]
