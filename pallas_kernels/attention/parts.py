"""How the parts of a split sequence come together within a launch: through a little global memory and a barrier of the cluster.

A part gives its output and the logarithms of its denominators. Joining parts is arithmetic of elements in the parts' order, whichever
warpgroup does it.
"""

import dataclasses
import functools

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import primitives
from pallas_kernels.attention.tile import H, Shape

CHUNK = 2  # rows that a warpgroup joins at a time: a value a thread and part. More would take registers from a block's neighbours


@dataclasses.dataclass(frozen=True)
class Part:
    """Which blocks of keys a warpgroup attends to; scalars.

    Attributes:
      number: of the part.
      lo, count: its blocks are lo ... lo + count - 1.
      active: parts that have any, at least one: part 0 stands for a sequence without keys.
    """

    number: jax.Array | int
    lo: jax.Array
    count: jax.Array
    active: jax.Array | int


def cut(number, parts: int, least: int, lo, hi) -> Part:
    """Part `number` of blocks lo ... hi - 1: cut into equal parts of at least `least` blocks, the last of which may be shorter."""
    if parts == 1:
        return Part(number, lo, hi - lo, 1)
    size = jnp.maximum(jax.lax.div(hi - lo + (parts - 1), parts), least)
    active = jnp.maximum(jax.lax.div(hi - lo + (size - 1), size), 1)
    lo = lo + number * size
    return Part(number, lo, jnp.clip(hi - lo, 0, size), active)


def exchange(shape: Shape, tiles: int, parts: int, rows: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """The global memory: outputs [B, K, tiles, parts, rows, H] and logarithms [B, K, tiles, parts, 64]. Never initialised."""
    place = (shape.B, shape.K, tiles, parts)
    return jax.ShapeDtypeStruct((*place, rows, H), jnp.float32), jax.ShapeDtypeStruct((*place, 64), jnp.float32)


def give(result, logarithm, part: Part, staging, exchange) -> None:
    """Writes a part's result to global memory.

    Args:
      result, logarithm: [64, H] and [64] float32.
      part: whose result it is.
      staging: shared memory like them.
      exchange: [parts, rows, H] and [parts, 64], a tile's part of it; of the result, the first `rows` rows count.
    """
    staging[0][...] = result
    staging[1][...] = logarithm
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(staging[0].at[pl.ds(0, exchange[0].shape[1])], exchange[0].at[part.number])
    plgpu.copy_smem_to_gmem(staging[1], exchange[1].at[part.number])
    plgpu.wait_smem_to_gmem(0, wait_read_only=False)  # until it has arrived


def join(shape: Shape, part: Part, exchange, out, b, k, row) -> None:
    """Adds the parts' results, weighted by their denominators, once all are there. Each active part joins some of the rows.

    Args:
      exchange: as in `give`.
      out: [B, boxes, K, box, H] bf16.
      b, k, row: the tile's place; its first row.
    """
    parts, rows, _ = exchange[0].shape
    layout = plgpu.Layout.WG_STRIDED((CHUNK, H), vec_size=CHUNK * H // 128)
    upper = primitives.iota((CHUNK, H), 0, layout) == 0

    def chunk(i, _):
        at = (part.number + i * part.active) * CHUNK
        full = lambda j, r: jnp.broadcast_to(exchange[1][j, at + r], (CHUNK, H))
        present = [jnp.minimum(j, part.active - 1) for j in range(parts)]  # what has not been given is not read
        logs = [jnp.where(upper, full(j, 0), full(j, 1)) for j in present]
        values = [primitives.load(exchange[0].at[j, pl.ds(at, CHUNK)], layout, optimized=False) for j in present]
        top = functools.reduce(jnp.maximum, logs)
        weights = [jnp.exp2(log - top) * jnp.where(j < part.active, 1.0, 0.0) for j, log in enumerate(logs)]
        value = functools.reduce(jnp.add, [weight * value for weight, value in zip(weights, values, strict=True)])
        box, within = jax.lax.div(row + at, shape.box), jax.lax.rem(row + at, shape.box)

        @pl.when(box < shape.boxes)
        def _():
            out[b, box, k, pl.ds(within, CHUNK)] = (value / functools.reduce(jnp.add, weights)).astype(out.dtype)

    left = rows // CHUNK - part.number  # chunks from this part's first one on
    jax.lax.fori_loop(0, jnp.maximum(jax.lax.div(left + part.active - 1, part.active), 0), chunk, None)
