"""The projections as Hopper kernels: what is done with a tile of the product once `stream` has made it.

Arrays are cut into boxes that may reach past their ends: TMA neither reads nor writes what is outside. So up to 8 rows may be any number,
and the last tile of w may be a part of one.
"""

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import primitives
from pallas_kernels.projection.stream import HEIGHT, WIDTH, Stream
from pallas_kernels.projection.tuning import tuning

COLUMN = plgpu.Layout.WGMMA.reduce(0)  # one value per column of an accumulator


def covers(x, w) -> str | None:
    """Why the kernels do not cover a product of x [M, columns] with w [..., columns]; None where they do."""
    if w.dtype != jnp.bfloat16:
        return f"weights must be bfloat16, not {w.dtype.name}"
    if x.shape[0] > HEIGHT:
        return f"at most {HEIGHT} rows, not {x.shape[0]}"
    columns = x.shape[1]
    if columns % WIDTH or w.size // columns % WIDTH:
        return f"w must have a multiple of {WIDTH} columns and rows, not {columns} and {w.size // columns}"
    return None


def project_out(x, w, bias, residual, gain, *, early):
    M, C = x.shape
    D = w.shape[0]
    x, residual = whole(x, w.dtype), whole(residual)
    stream = Stream(x.shape[0], C, tuning("project_out", M, C))
    tile = stream.tuning.tile

    def kernel(x, w, bias, residual, gain, y, scaled, y_s, scaled_s, bias_s, gain_s, ready, *streamed):
        first = jax.lax.axis_index("tile") * tile
        rows, here = primitives.leading(stream.tall), pl.ds(first, tile)
        stream.start(x, w, [first], *streamed, early=early)
        plgpu.copy_gmem_to_smem(residual.at[rows, here], y_s.at[rows], ready)
        plgpu.copy_gmem_to_smem(bias.at[here], bias_s, ready)
        plgpu.copy_gmem_to_smem(gain.at[here], gain_s, ready)
        product = stream.product(x, w, [first], *streamed)
        plgpu.barrier_wait(ready)
        total = product + across(bias_s, tile) + primitives.load(y_s, plgpu.Layout.WGMMA, optimized=False)
        y_s[...] = total
        scaled_s[...] = (total * across(gain_s, tile)).astype(scaled_s.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(y_s.at[rows], y.at[rows, here])
        plgpu.copy_smem_to_gmem(scaled_s.at[rows], scaled.at[rows, here])
        plgpu.wait_smem_to_gmem(0)

    launch = plgpu.kernel(
        kernel,
        out_type=(jax.ShapeDtypeStruct(residual.shape, jnp.float32), jax.ShapeDtypeStruct(residual.shape, w.dtype)),
        grid=(-(-D // tile),),
        grid_names=("tile",),
        scratch_types=[
            plgpu.SMEM((HEIGHT, tile), jnp.float32),
            plgpu.SMEM((HEIGHT, tile), w.dtype),
            plgpu.SMEM((tile,), jnp.float32),
            plgpu.SMEM((tile,), jnp.float32),
            plgpu.Barrier(num_arrivals=3),
            *stream.scratch(),
        ],
        kernel_name="project_out",
    )
    return tuple(out[:M] for out in launch(x, w, bias, residual, gain))


def unembed(x, square_sum, w, *, eps, early):
    M, D = x.shape
    V = w.shape[0]
    x = whole(x, w.dtype)
    stream = Stream(x.shape[0], D, tuning("unembed", M, D))
    tile = stream.tuning.tile

    def kernel(x, square_sum, w, y, y_s, sum_s, ready, *streamed):
        first, rows = jax.lax.axis_index("tile") * tile, primitives.leading(stream.tall)
        stream.start(x, w, [first], *streamed, early=early)
        plgpu.copy_gmem_to_smem(square_sum.at[rows], sum_s.at[rows], ready)
        product = stream.product(x, w, [first], *streamed)
        plgpu.barrier_wait(ready)
        y_s[...] = product * row_scale(sum_s, tile, D, eps)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(y_s.at[rows], y.at[rows, pl.ds(first, tile)])
        plgpu.wait_smem_to_gmem(0)

    launch = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((x.shape[0], V), jnp.float32),
        grid=(-(-V // tile),),
        grid_names=("tile",),
        scratch_types=[
            plgpu.SMEM((HEIGHT, tile), jnp.float32),
            plgpu.SMEM((HEIGHT,), jnp.float32),
            plgpu.Barrier(),
            *stream.scratch(),
        ],
        kernel_name="unembed",
    )
    return launch(x, square_sum, w)[:M]


def whole(x: jax.Array, dtype=None) -> jax.Array:
    """x with rows that TMA can cut into groups of 8: up to 8, or padded to a multiple of 8."""
    M = x.shape[0]
    pad = 0 if M <= 8 else -M % 8
    x = x if dtype is None else x.astype(dtype)
    return jnp.pad(x, ((0, pad), (0, 0))) if pad else x


def row_scale(sum_s, tile: int, width: int, eps: float):  # [64, tile] float32
    """1 / rms of each row, beside every column."""
    scale = jax.lax.rsqrt(primitives.load(sum_s, primitives.ROW, optimized=False) * (1 / width) + eps)
    return jax.lax.broadcast_in_dim(scale, (HEIGHT, tile), [0])


def across(column, tile: int):  # [64, tile]
    """Values of the columns, a ref [tile], below every row."""
    return jax.lax.broadcast_in_dim(primitives.load(column, COLUMN, optimized=False), (HEIGHT, tile), [1])
