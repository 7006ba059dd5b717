"""The chunks in which an Orbax directory holds its arrays: read whole, compared with their checksums, looked at, and copied where they go.

Orbax reads through TensorStore into memory that JAX copies once more. Here TensorStore reads into memory that a CPU device takes over as
it is. Whatever a mesh or a form wants of an array, what it takes has been compared, for a chunk is read and compared as a whole.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
import dataclasses
import itertools
import os
import zlib

import numpy as np
import tensorstore as ts

from gptoss_jax.weights import locate
from gptoss_jax.weights.orbax import store
from gptoss_jax.weights.orbax.store import Stored
from gptoss_jax.weights.watching import Watch

Box = tuple[tuple[int, int], ...]
"""First and last-but-one of every axis."""

_READERS = 16  # chunks in memory at once; each is of 8 MB at most


@dataclasses.dataclass(frozen=True)
class Target:
    """A part of a stored array that is wanted, and the memory for it: of the part's shape, in any dtype."""

    box: Box
    out: np.ndarray


def checksum(values: np.ndarray) -> int:
    """CRC-32 of a chunk's values, those beyond the array's end left out."""
    return zlib.crc32(np.ascontiguousarray(values).view(np.uint8).reshape(-1))


def touched(stored: Stored, box: Box) -> Iterator[tuple[int, ...]]:
    """The places in the grid of the chunks that hold a part of an array."""
    ends = [min(stop, size) for (_, stop), size in zip(box, stored.shape, strict=True)]
    axes = zip(box, ends, stored.chunks, strict=True)
    return itertools.product(*(range(start // chunk, max(start // chunk, -(-end // chunk))) for (start, _), end, chunk in axes))


def box_of(stored: Stored, place: Sequence[int]) -> Box:
    """What a chunk holds of its array."""
    axes = zip(place, stored.chunks, stored.shape, strict=True)
    return tuple((i * chunk, min((i + 1) * chunk, size)) for i, chunk, size in axes)


class Chunks:
    """Reads chunks, many at once.

    Args:
        checksums: of the chunks of every array that has some, in the order of the grid.
        watch: what is looked at.
    """

    def __init__(self, checksums: dict[str, list[int]], watch: Watch) -> None:
        self._checksums, self._watch = checksums, watch
        self._context = ts.Context(store.CONTEXT)
        self._pool = ThreadPoolExecutor(min(_READERS, 4 * (os.cpu_count() or 1)))

    def begin(self, stored: Stored, targets: Sequence[Target]) -> list[Future]:
        """Begins to fill targets; what lies beyond the array's end becomes zero. The futures raise ValueError where that cannot be."""
        wanted: dict[tuple[int, ...], list[Target]] = {}
        for target in targets:
            if any(stop > size for (_, stop), size in zip(target.box, stored.shape, strict=True)):
                target.out[...] = np.zeros((), target.out.dtype)
            for place in touched(stored, target.box):
                wanted.setdefault(place, []).append(target)
        source = self._open(stored)
        return [self._pool.submit(self._fill, stored, source, place, each) for place, each in wanted.items()]

    def _fill(self, stored: Stored, source: ts.Future, place: tuple[int, ...], targets: Sequence[Target]) -> None:
        """Reads a chunk into a target that wants all of it as it is, if there is one, and copies from there to the others."""
        box = box_of(stored, place)
        shape = tuple(stop - start for start, stop in box)
        parts = [_common(box, target) for target in targets]
        whole = next((into for _, into in parts if into.shape == shape and into.dtype == stored.dtype), None)
        values = np.empty(shape, stored.dtype) if whole is None else whole
        try:
            ts.array(values).write(source.result()[tuple(slice(start, stop) for start, stop in box)]).result()
        except Exception as error:  # TensorStore's have no type of their own
            reason = f"{stored.name} in {stored.piece} must be readable; got: {store.first_line(error)}; copy the directory again."
            self._watch.found(reason, error)
            return
        self._compare(stored, place, values)
        for cut, into in parts:
            if into is not whole:
                into[...] = values[cut]
            self._watch.look(stored.name, into, stored.piece)

    def _compare(self, stored: Stored, place: tuple[int, ...], values: np.ndarray) -> None:
        """A chunk's values with its checksum."""
        sums = self._checksums.get(stored.name) if self._watch.verify else None
        if sums is not None and sums[int(np.ravel_multi_index(place, stored.grid)) if place else 0] != checksum(values):
            self._watch.found(
                f"{stored.name} in {stored.piece} must be as it was saved; chunk {'.'.join(map(str, place))} has another checksum than "
                f"{locate.INDEX} says; copy the directory again, or pass verify=False to load it so."
            )

    def _open(self, stored: Stored) -> ts.Future:
        spec = {
            "driver": "zarr",
            "kvstore": store.kvstore(stored.piece, stored.key),
            "recheck_cached_data": False,
            "recheck_cached_metadata": False,
            "fill_missing_data_reads": False,  # or an absent chunk would read as zeros
        }
        return ts.open(spec, open=True, read=True, context=self._context)


def _common(box: Box, target: Target) -> tuple[tuple[slice, ...], np.ndarray]:
    """Where in a chunk lies what a target wants of it, and the memory for that."""
    both = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, target.box, strict=True)]
    here, there = (tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(both, of, strict=True)) for of in (box, target.box))
    return here, target.out[there]
