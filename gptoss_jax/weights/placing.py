"""Stored tensors -> arrays on devices, piece by piece: of a file a process reads what its devices hold, and each part of it once.

A piece is what one device holds of an array, or several that hold the same. No mesh is one piece that is everything. Where a mesh
widens the experts (`gptoss_jax.model.params.expert_width`), what lies beyond the stored tensor is zero.

Experts that are to be unpacked travel packed, in whole groups of 32, and a device that begins inside a group cuts what it unpacked:

    columns  0 .......... 31 | 32 ......... 63        two devices of 24 columns each
    device 0 [=======]                                reads group 0, and has room for two, since shapes are the same everywhere
    device 1          [==============]                reads groups 0 and 1, and drops 24 columns of the first
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.model.params import Spec, expert_axes
from gptoss_jax.parallel import sharding
from gptoss_jax.parallel.sharding import Axes, Partition
from gptoss_jax.weights import forms, layouts, safetensors
from gptoss_jax.weights.safetensors import Index, Stored
from gptoss_jax.weights.watching import Watch
from pallas_kernels import mxfp4
from pallas_kernels.mxfp4 import BLOCK, GROUP, Mxfp4
from pallas_kernels.mxfp4.tiles import LARGEST_SCALE, Tiles, fits

Entry = Spec | Mxfp4 | Tiles | tuple[Spec, ...]
"""What the table says of one array, or of the arrays that hold one expert matrix."""


@dataclass(frozen=True)
class _Carrier:
    """A global array as it travels, and what a piece of it is made of."""

    shape: tuple[int, ...]
    axes: Axes
    dtype: np.dtype
    cuts: Callable[[Index], Sequence[tuple[Stored, Index]]]
    join: Callable[[Sequence[np.ndarray]], np.ndarray] = lambda parts: parts[0]


def nbytes(source: layouts.Source, stored: dict[str, Stored], entry: Entry, partition: Partition | None) -> int:
    """Bytes that `place` reads in this process."""
    return sum(
        safetensors.nbytes(*cut)
        for carrier in _carriers(source, stored, entry, partition)
        for index in _pieces(carrier.shape, carrier.axes, partition)
        for cut in carrier.cuts(index)
    )


def place(source: layouts.Source, stored: dict[str, Stored], entry: Entry, partition: Partition | None, watch: Watch | None = None):
    """What an entry of the table describes, with the stored values: on its devices, or on the default one if there is no mesh.

    Args:
        source: the stored tensors of the entry.
        stored: where they lie.
        entry: of `abstract_params` for the same partition.
        partition: how arrays lie on a mesh.
        watch: looks at what is read.

    Returns:
        An array; of an expert matrix Mxfp4, Tiles, [E, out, in], or a tuple of [out, in].

    Raises:
        ValueError: a file has become unreadable, holds what `watch` refuses, or tiles cannot hold the experts.
    """
    arrays = (_assemble(carrier, partition, watch) for carrier in _carriers(source, stored, entry, partition))
    if not source.is_experts:
        return next(arrays)
    shape, axes, dtype = _matrix(entry)
    to = {"axes": axes, "partition": partition}
    if source.transposed:
        each = tuple(_transpose(x, **to) for x in arrays)
        return each if isinstance(entry, tuple) else forms.stack(each, **to)
    packed = Mxfp4(*arrays)
    if isinstance(entry, Mxfp4):
        return packed
    if isinstance(entry, Tiles):
        if not fits(packed):
            name = source.tensors[-1].name
            raise ValueError(f"{name} has scales above 2^{LARGEST_SCALE - 127}, which the kernels do not take; pass experts='packed'.")
        return forms.tile(packed, interleaved=entry.interleaved, **to)
    to |= {"width": shape[-1], "dtype": dtype.name}
    if isinstance(entry, tuple):
        return tuple(_unpack(packed, expert, **to) for expert in range(len(entry)))
    return _unpack(packed, None, **to)


def _matrix(entry: Entry) -> tuple[tuple[int, ...], Axes, np.dtype]:
    """Shape [E, out, in] of an expert matrix as it is held, its axes, and the dtype of what holds it."""
    if isinstance(entry, tuple):
        return (len(entry), *entry[0].shape), ("experts", *entry[0].axes), entry[0].dtype
    if isinstance(entry, Mxfp4):
        return entry.shape, entry.scales.axes, entry.scales.dtype
    if isinstance(entry, Tiles):
        return entry.shape, entry.words.axes[:3], entry.words.dtype
    return entry.shape, entry.axes, entry.dtype


def _carriers(source: layouts.Source, stored: dict[str, Stored], entry: Entry, partition: Partition | None) -> list[_Carrier]:
    """The arrays that have to be read for an entry, in the order in which it needs them."""
    parts = [stored[tensor.name] for tensor in source.tensors]
    if not source.is_experts:

        def cuts(index):
            return [(stored[tensor.name], cut) for tensor, cut in source.cuts(index)]

        return [_Carrier(entry.shape, entry.axes, entry.dtype, cuts, source.join)]
    (experts, out, width), axes, dtype = _matrix(entry)
    if source.transposed:  # each expert on its own: [in, out] as stored
        one = lambda expert: lambda index: [(parts[0], (slice(expert, expert + 1), *index))]
        first = lambda read: read[0][0]
        return [_Carrier((width, out), axes[:0:-1], dtype, one(expert), first) for expert in range(experts)]
    pieces = 1 if partition is None else partition.parts(axes[-1])
    own = width // pieces
    groups = max(-(-(piece * own % GROUP + own) // GROUP) for piece in range(pieces))  # that one piece's columns touch

    def grouped(part):
        def cuts(index):
            begin = index[2].start // groups * own // GROUP
            return [(part, (*index[:2], slice(begin, begin + groups), *index[3:]))]

        return cuts

    blocks, scales = map(grouped, parts)
    shape, u8 = (experts, out, pieces * groups), np.dtype(np.uint8)
    return [_Carrier((*shape, BLOCK), (*axes, None), u8, blocks), _Carrier(shape, axes, u8, scales)]


def _pieces(shape: tuple[int, ...], axes: Axes, partition: Partition | None) -> dict[Index, list[jax.Device | None]]:
    """The different pieces of an array that this process holds, and on which devices."""
    if partition is None:
        return {tuple(slice(0, size) for size in shape): [None]}
    found: dict[Index, list[jax.Device | None]] = {}
    for device, index in partition.sharding(axes).addressable_devices_indices_map(shape).items():
        index = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))
        found.setdefault(index, []).append(device)
    return found


def _assemble(carrier: _Carrier, partition: Partition | None, watch: Watch | None) -> jax.Array:
    """The array: its pieces are read and put on their devices one after another."""
    arrays = []
    for index, devices in _pieces(carrier.shape, carrier.axes, partition).items():
        piece = carrier.join([safetensors.read(part, carrier.dtype, cut, watch) for part, cut in carrier.cuts(index)])
        arrays += jax.block_until_ready([jax.device_put(piece, device) for device in devices])
    if partition is None:
        return arrays[0]
    return jax.make_array_from_single_device_arrays(carrier.shape, partition.sharding(carrier.axes), arrays)


@jax.jit(static_argnames=("axes", "partition"))
def _transpose(x: jax.Array, *, axes: Axes, partition: Partition | None) -> jax.Array:  # [in, out] -> [out, in]
    return sharding.local(partition, jnp.transpose, ins=[axes[:0:-1]], outs=axes[1:])(x)


@jax.jit(static_argnames=("width", "dtype", "axes", "partition"))
def _unpack(
    packed: Mxfp4, expert: jax.Array | None, *, width: int, dtype: str, axes: Axes, partition: Partition | None
) -> jax.Array:  # [E, out, in], or [out, in] of one expert
    def own(packed: Mxfp4, *expert: jax.Array) -> jax.Array:
        values = mxfp4.unpack(packed[expert[0]] if expert else packed, dtype)
        pieces = 1 if partition is None else partition.parts(axes[-1])
        if values.shape[-1] == width // pieces:
            return values
        begin = partition.index(axes[-1]) * (width // pieces) % GROUP
        return jax.lax.dynamic_slice_in_dim(values, begin, width // pieces, axis=values.ndim - 1)

    chosen, outs = ((), axes) if expert is None else ((expert,), axes[1:])
    return sharding.local(partition, own, ins=[expert_axes(packed, axes), *(() for _ in chosen)], outs=outs)(packed, *chosen)
