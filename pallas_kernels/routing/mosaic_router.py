"""A router's moments as a Hopper kernel: a block of 128 threads takes a few columns of a token, each of them a sum over the width.

A sum is made in one order, whichever tokens there are. Rows are seen as in `pallas_kernels.norm.mosaic`.
"""

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import hopper, primitives
from pallas_kernels.routing.reference import FEW, columns

LINE = 64
COLUMNS = 4  # of a block. A sum waits for its warps, one after the other: more would take longer, fewer would read x more often


def covers(x: jax.Array, weight: jax.Array) -> str | None:
    """Why the kernel does not cover tokens like these."""
    M, D = x.shape
    if M > FEW:
        return f"for more than {FEW} rows a product reads the weights less often; got {M}"
    if (x.dtype, weight.dtype) != (jnp.float32, jnp.float32) or D % LINE or D // LINE > 256:
        return f"it takes float32 rows of a multiple of {LINE} values up to {256 * LINE}; got {x.dtype} and {weight.dtype}, {D} values"
    if 4 * (COLUMNS + 2) * (D + LINE) > hopper.SHARED_MEMORY - 1024:
        return f"{COLUMNS + 2} rows of {D} values do not fit shared memory"
    return None


def router(x, gain, weight, valid, *, early):
    (E, D), M = weight.shape, x.shape[0]
    lines = D // LINE
    padded = lines + lines % 2
    strided = plgpu.Layout.WG_STRIDED((padded, LINE), vec_size=1)

    def kernel(x, gain, weight, valid, moments, gain_s, weight_s, x_s, arrived):
        first, token = jax.lax.axis_index("column") * COLUMNS, jax.lax.axis_index("token")
        real = pl.ds(0, lines)
        if not early:
            primitives.begin()
        plgpu.copy_gmem_to_smem(gain, gain_s.at[real], arrived)
        for i in range(COLUMNS):
            plgpu.copy_gmem_to_smem(weight.at[jnp.minimum(first + i, E - 1)], weight_s.at[i, real], arrived)
        if early:
            primitives.begin()
        plgpu.copy_gmem_to_smem(x.at[token], x_s.at[real], arrived)
        is_real = primitives.iota((padded, LINE), 0, strided) < lines
        plgpu.barrier_wait(arrived)

        value, scaled = primitives.load(x_s, strided), primitives.load(gain_s, strided)
        for i in range(COLUMNS):
            column = first + i
            other = jnp.where(jax.lax.broadcast(column == E, value.shape), value, primitives.load(weight_s.at[i], strided) * scaled)
            product = value * other
            total = jnp.sum(jnp.where(is_real, product, jnp.zeros_like(product)))  # the line that nobody filled may hold anything
            behind = jnp.where(column == E + 1, (valid[token] != 0).astype(jnp.float32), 0.0)
            moments[token, column] = jnp.where(column <= E, total, behind)

    run = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((M, columns(E)), jnp.float32),
        grid=(columns(E) // COLUMNS, M),
        grid_names=("column", "token"),
        kernel_name="router",
        scratch_types=[
            plgpu.SMEM((padded, LINE), jnp.float32),
            plgpu.SMEM((COLUMNS, padded, LINE), jnp.float32),
            plgpu.SMEM((padded, LINE), jnp.float32),
            plgpu.Barrier(num_arrivals=2 + COLUMNS),
        ],
    )
    in_lines = lambda a: a.reshape(*a.shape[:-1], lines, LINE)
    return run(in_lines(x), in_lines(gain), in_lines(weight), valid.astype(jnp.int32))
