"""From an Orbax directory to parameters on one device or any mesh: each device's part straight from the files, piece by piece.

Orbax reads through TensorStore into memory that JAX copies once more. This room lets TensorStore read into memory that a CPU device
takes over as it is. Zeros that a mesh adds to experts are added, or cut, on the way.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import math
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from tqdm import tqdm

from gptoss_jax.model.params import Experts, ExpertsForm, Params, Spec, abstract_params, is_spec
from gptoss_jax.parallel.sharding import Axes, Partition
from gptoss_jax.weights import forms
from gptoss_jax.weights.orbax import store
from gptoss_jax.weights.orbax.store import Store, Stored
from pallas_kernels.mxfp4 import BLOCK, GROUP, Mxfp4
from pallas_kernels.mxfp4.tiles import LARGEST_SCALE, Tiles

_ALIGNMENT = 64  # an array so aligned becomes a CPU device's buffer without a copy

Pending = Callable[[], Any]
"""What waits for reads that have been started, and returns their array or tree of arrays."""


def restore(source: Store, dtype: str, form: ExpertsForm, partition: Partition | None, progress: bool = False) -> Params:
    """The parameters that an Orbax directory holds.

    Memory of the host, beside parameters that lie in it, stays near that of one piece: a layer, or an embedding.

    Args:
        source: what `store.examine` has found.
        dtype: of everything but packed experts and what is always float32.
        form: of the experts; "packed" and "tiled" only if they are stored packed.
        partition: how all of it shall lie; None for JAX's default device.
        progress: show a bar of bytes on stderr.

    Raises:
        ValueError: a file has become unreadable, or scales are too large for tiles.
    """
    table = abstract_params(source.config, dtype, form, partition)
    reader, total = Reader(source, partition), sum(stored.nbytes for stored in source.arrays.values())
    pieces = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"loading {source.directory.name}", disable=not progress) as bar:
        for piece, entries in store.split(table).items():
            begun = [reader.begin(store.name_of(piece, key), entry) for key, entry in store.named_leaves(entries, _is_entry)]
            tree = jax.tree.structure(entries, is_leaf=_is_entry)
            pieces[piece] = jax.block_until_ready(jax.tree.unflatten(tree, [end() for end in begun]))
            bar.update(sum(stored.nbytes for stored in source.arrays.values() if stored.piece.name == piece))
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
    """

    def __init__(self, source: Store, partition: Partition | None) -> None:
        self.source, self.partition = source, partition
        self._wide = abstract_params(source.config, experts="packed", partition=partition).layers[0].moe
        self._context = ts.Context(store.CONTEXT)

    def begin(self, name: str, entry: Spec | Mxfp4 | Tiles | tuple[Spec, ...]) -> Pending:
        """Begins to read an array, or the arrays of an expert matrix, cut or widened with zeros to the entry's shape.

        Args:
            name: in `Params`.
            entry: of a table for the reader's partition; packed or tiled experts only where they are stored packed.

        Raises:
            ValueError: a file has become unreadable, or scales are too large for tiles; the function that is returned raises it too.
        """
        if name in self.source.arrays:
            if isinstance(entry, Spec):
                return self._begin(name, entry)
            each = [self._begin(name, one, expert) for expert, one in enumerate(entry)]
            return lambda: tuple(end() for end in each)
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

    def _begin(self, name: str, spec: Spec, expert: int | None = None) -> Pending:
        """Begins to read a stored array, or one entry of its first axis."""
        stored = self.source.arrays[name]
        where: dict[tuple, list[jax.Device | None]] = {}  # part -> the devices that shall have it
        if self.partition is None:
            where[tuple((0, size) for size in spec.shape)] = [None]
        else:
            sharding = self.partition.sharding(spec.axes)
            for device, index in sharding.addressable_devices_indices_map(spec.shape).items():
                part = tuple(one.indices(size)[:2] for one, size in zip(index, spec.shape, strict=True))
                where.setdefault(part, []).append(device)
        with _readable(stored):
            source = ts.cast(self._open(stored), spec.dtype.name)
            source = source if expert is None else source[expert]
            reads = {part: _read(source, part, spec.dtype) for part in where}

        def end() -> jax.Array:
            placed = []
            for part, devices in where.items():
                out, copied = reads.pop(part)
                with _readable(stored):
                    copied.result()
                placed += [jax.device_put(out, device) for device in devices]
            return placed[0] if self.partition is None else jax.make_array_from_single_device_arrays(spec.shape, sharding, placed)

        return end

    def _open(self, stored: Stored) -> ts.TensorStore:
        spec = {
            "driver": "zarr",
            "kvstore": store.kvstore(stored.piece, stored.key),
            "recheck_cached_data": False,
            "recheck_cached_metadata": False,
            "fill_missing_data_reads": False,  # or an absent chunk would read as zeros
        }
        return ts.open(spec, open=True, read=True, context=self._context).result()


def _read(source: ts.TensorStore, part: tuple[tuple[int, int], ...], dtype: np.dtype) -> tuple[np.ndarray, ts.WriteFutures]:
    """Memory for a part of an array, and what fills it; zeros where the stored array ends before."""
    out = _empty(tuple(stop - start for start, stop in part), dtype)
    wanted = ts.IndexDomain(inclusive_min=[start for start, _ in part], exclusive_max=[stop for _, stop in part])
    held = source.domain.intersect(wanted)
    if held != wanted:
        out[...] = np.zeros((), dtype)
    return out, ts.array(out)[ts.d[:].translate_to[wanted.origin]][held].write(source[held])


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    nbytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)


@contextlib.contextmanager
def _readable(stored: Stored) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # TensorStore's have no type of their own
        raise ValueError(
            f"{stored.name} in {stored.piece} must be readable; got: {store.first_line(error)}; copy the directory again."
        ) from error
