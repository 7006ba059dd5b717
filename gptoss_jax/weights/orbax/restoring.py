"""From an Orbax directory to parameters on one device or any mesh: each device's part straight from the files, piece by piece.

Chunks are read into memory that a CPU device takes over as it is (`chunks`). Zeros that a mesh adds to experts are added, or cut, on the
way.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from gptoss_jax.bars import Bar
from gptoss_jax.model.params import Experts, ExpertsForm, Params, Spec, abstract_params, is_spec
from gptoss_jax.parallel.sharding import Axes, Partition
from gptoss_jax.weights import forms
from gptoss_jax.weights.orbax import store, sums
from gptoss_jax.weights.orbax.chunks import Box, Chunks, Target
from gptoss_jax.weights.orbax.store import Store
from gptoss_jax.weights.watching import Watch
from pallas_kernels.mxfp4 import BLOCK, GROUP, Mxfp4
from pallas_kernels.mxfp4.tiles import LARGEST_SCALE, Tiles

_ALIGNMENT = 64  # an array so aligned becomes a CPU device's buffer without a copy

Pending = Callable[[], Any]
"""What waits for reads that have been started, and returns their array or tree of arrays."""


def restore(
    source: Store, dtype: str, form: ExpertsForm, partition: Partition | None, progress: bool = False, watch: Watch | None = None
) -> Params:
    """The parameters that an Orbax directory holds.

    Memory of the host, beside parameters that lie in it, stays near that of one piece: a layer, or an embedding.

    Args:
        source: what `store.examine` has found.
        dtype: of everything but packed experts and what is always float32.
        form: of the experts; "packed" and "tiled" only if they are stored packed.
        partition: how all of it shall lie; None for JAX's default device.
        progress: show a bar of bytes on stderr.
        watch: what is looked at; None: checksums.

    Raises:
        ValueError: a file has become unreadable or holds what `watch` refuses, or scales are too large for tiles.
    """
    watch, table = watch or Watch(verify=True), abstract_params(source.config, dtype, form, partition)
    reader, total = Reader(source, partition, watch), sum(stored.nbytes for stored in source.arrays.values())
    pieces = {}
    with Bar(total, shown=progress, unit="B", unit_scale=True, desc=f"loading {source.directory.name}") as bar:
        for piece, entries in store.split(table).items():
            begun = [reader.begin(store.name_of(piece, key), entry) for key, entry in store.named_leaves(entries, _is_entry)]
            tree = jax.tree.structure(entries, is_leaf=_is_entry)
            pieces[piece] = jax.block_until_ready(jax.tree.unflatten(tree, [end() for end in begun]))
            bar.update(sum(stored.nbytes for stored in source.arrays.values() if stored.piece.name == piece))
    sums.check_files(source.directory / "params", source.index, watch)
    layers = tuple(pieces[f"layers.{i}"] for i in range(len(table.layers)))
    return Params(layers=layers, partition=partition, **pieces["embedding"], **pieces["final"])


def _is_entry(x: Any) -> bool:
    """Of a table's piece: an array, or an expert matrix in whatever form."""
    return is_spec(x) or isinstance(x, Mxfp4 | Tiles | tuple)


class Reader:
    """Reads arrays of an Orbax directory, many at once.

    Args:
        source: the directory.
        partition: how arrays shall lie; None for JAX's default device.
        watch: what is looked at; None: checksums.
    """

    def __init__(self, source: Store, partition: Partition | None, watch: Watch | None = None) -> None:
        self.source, self.partition = source, partition
        self._wide = abstract_params(source.config, experts="packed", partition=partition).layers[0].moe
        self._chunks = Chunks(source.index.checksums, watch or Watch(verify=True))

    def begin(self, name: str, entry: Spec | Mxfp4 | Tiles | tuple[Spec, ...]) -> Pending:
        """Begins to read an array, or the arrays of an expert matrix, cut or widened with zeros to the entry's shape.

        Args:
            name: in `Params`.
            entry: of a table for the reader's partition; packed or tiled experts only where they are stored packed.

        Raises:
            ValueError: scales are too large for tiles, or what is read is refused; the function that is returned raises it.
        """
        if name in self.source.arrays:
            return self._begin(name, entry)
        wide = getattr(self._wide, name.rpartition(".")[2])  # as packed experts must be for this mesh to share them
        if isinstance(entry, Tiles):
            E, rows, columns = entry.shape
            scales = dataclasses.replace(wide.scales, shape=(E, rows, columns // GROUP))
            wide = Mxfp4(dataclasses.replace(wide.blocks, shape=(*scales.shape, BLOCK)), scales)
        begun = self._begin(f"{name}.blocks", wide.blocks), self._begin(f"{name}.scales", wide.scales)
        return lambda: self._held(name, Mxfp4(*(end() for end in begun)), entry, wide.scales.axes)

    def _held(self, name: str, packed: Mxfp4, entry: Spec | Mxfp4 | Tiles | tuple[Spec, ...], axes: Axes) -> Experts:
        """Packed experts in the entry's form."""
        if isinstance(entry, Mxfp4):
            return packed
        if isinstance(entry, Tiles):
            if not forms.fits(packed):
                raise ValueError(
                    f"{name}.scales has scales above 2^{LARGEST_SCALE - 127}, which the kernels do not take; pass experts='packed'."
                )
            return forms.tile(packed, entry.interleaved, axes, self.partition)
        if isinstance(entry, tuple):
            split = enumerate(entry)
            return tuple(forms.expand_one(packed, i, one.shape, one.dtype.name, one.axes, self.partition) for i, one in split)
        return forms.expand(packed, entry.shape, entry.dtype.name, axes, self.partition)

    def _begin(self, name: str, spec: Spec | Sequence[Spec]) -> Pending:
        """Begins to read a stored array, or the entries of its first axis as arrays of their own."""
        stored, each = self.source.arrays[name], [spec] if isinstance(spec, Spec) else spec
        held: list[dict[tuple, np.ndarray]] = []  # of every array the memory of its parts
        targets = []
        for number, one in enumerate(each):
            held.append({part: _empty(tuple(stop - start for start, stop in part), one.dtype) for part in self._parts(one)})
            for part, out in held[-1].items():
                targets.append(Target(part, out) if spec is one else Target(((number, number + 1), *part), out[None]))
        begun = self._chunks.begin(stored, targets)
        targets.clear()

        def end() -> jax.Array | tuple[jax.Array, ...]:
            for future in begun:
                future.result()
            arrays = tuple(self._placed(one, parts) for one, parts in zip(each, held, strict=True))
            held.clear()
            return arrays[0] if isinstance(spec, Spec) else arrays

        return end

    def _parts(self, spec: Spec) -> dict[Box, list[jax.Device | None]]:
        """The different parts of an array that this process holds, and on which devices."""
        if self.partition is None:
            return {tuple((0, size) for size in spec.shape): [None]}
        where: dict[Box, list[jax.Device | None]] = {}
        for device, index in self.partition.sharding(spec.axes).addressable_devices_indices_map(spec.shape).items():
            part = tuple(one.indices(size)[:2] for one, size in zip(index, spec.shape, strict=True))
            where.setdefault(part, []).append(device)
        return where

    def _placed(self, spec: Spec, parts: dict[Box, np.ndarray]) -> jax.Array:
        placed = [jax.device_put(parts[part], device) for part, devices in self._parts(spec).items() for device in devices]
        if self.partition is None:
            return placed[0]
        return jax.make_array_from_single_device_arrays(spec.shape, self.partition.sharding(spec.axes), placed)


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)
