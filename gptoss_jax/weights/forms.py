"""Experts from the form in which they are held to the one in which they are stored, and back: same values, same width, on any mesh.

Stored are MXFP4 blocks as published, or one array [E, out, in]. Knows arrays and where they lie, no files.
"""

import jax
import jax.numpy as jnp

from gptoss_jax.model.params import Experts, expert_axes
from gptoss_jax.parallel import sharding
from gptoss_jax.parallel.sharding import Axes, Partition
from pallas_kernels import mxfp4
from pallas_kernels.mxfp4 import Mxfp4
from pallas_kernels.mxfp4.tiles import Tiles, from_tiles, to_tiles
from pallas_kernels.mxfp4.tiles import fits as _fits

_PACKED, _TILED = Mxfp4(None, None), Tiles(None, None)  # for `expert_axes`


def stored(experts: Experts, axes: Axes, partition: Partition | None) -> Mxfp4 | jax.Array:
    """An expert matrix in the form in which it is stored: `Mxfp4`, or an array [E, out, in].

    Args:
        experts: in any form.
        axes: of the matrix.
        partition: how it lies on a mesh.
    """
    if isinstance(experts, Tiles):
        return _untile(experts, axes, partition)
    return stack(experts, axes, partition) if isinstance(experts, tuple) else experts


@jax.jit(static_argnames=("interleaved", "axes", "partition"))
def tile(packed: Mxfp4, interleaved: int, axes: Axes, partition: Partition | None) -> Tiles:
    """The same bits in tiles; on a mesh each device has whole tiles, and so tiles its own piece."""
    each = lambda piece: jax.lax.map(lambda expert: to_tiles(expert, interleaved), piece)  # one by one: between lie 8 bytes a weight
    return sharding.local(partition, each, (expert_axes(_PACKED, axes),), expert_axes(_TILED, axes))(packed)


@jax.jit(static_argnames=("axes", "partition"))
def _untile(tiles: Tiles, axes: Axes, partition: Partition | None) -> Mxfp4:
    each = lambda piece: jax.lax.map(from_tiles, piece)
    return sharding.local(partition, each, (expert_axes(_TILED, axes),), expert_axes(_PACKED, axes))(tiles)


@jax.jit(static_argnames=("shape", "dtype", "axes", "partition"))
def expand(packed: Mxfp4, shape: tuple[int, int, int], dtype: str, axes: Axes, partition: Partition | None) -> jax.Array:
    """[E, out, in]: the values, cut to shape where a mesh's packed matrix is wider than what it holds expanded."""
    _, out, width = shape
    return sharding.constrain(partition, mxfp4.unpack(packed, dtype)[:, :out, :width], axes)


@jax.jit(static_argnames=("shape", "dtype", "axes", "partition"))
def expand_one(
    packed: Mxfp4, expert: jax.Array, shape: tuple[int, int], dtype: str, axes: Axes, partition: Partition | None
) -> jax.Array:  # [out, in]
    """One expert's matrix, cut to shape likewise; axes are those of one."""
    out, width = shape
    return sharding.constrain(partition, mxfp4.unpack(packed[expert], dtype)[:out, :width], axes)


@jax.jit(static_argnames=("axes", "partition"))
def stack(each: tuple[jax.Array, ...], axes: Axes, partition: Partition | None) -> jax.Array:
    """One array of a matrix per expert."""
    return sharding.local(partition, jnp.stack, ins=[tuple(axes[1:] for _ in each)], outs=axes)(each)


fits = jax.jit(_fits)
"""Whether the kernels can take a packed matrix as tiles."""
