"""A router's moments as a Hopper kernel: a block of 128 threads takes a few columns and a few tokens, each of them a sum over the width.

A sum is made in one order, whichever tokens there are. Rows are seen as in `pallas_kernels.norm.mosaic`.
"""

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import hopper, primitives
from pallas_kernels.routing.reference import FEW, columns

LINE = 64
COLUMNS, TOKENS = 4, 4  # of a block, tokens at most. Fewer would read x and the weights more often, more would leave multiprocessors idle


def covers(x: jax.Array, weight: jax.Array) -> str | None:
    """Why the kernel does not cover tokens like these."""
    M, D = x.shape
    if M > FEW:
        return f"for more than {FEW} rows a product reads the weights less often; got {M}"
    if (x.dtype, weight.dtype) != (jnp.float32, jnp.float32) or D % LINE or D // LINE > 256:
        return f"it takes float32 rows of a multiple of {LINE} values up to {256 * LINE}; got {x.dtype} and {weight.dtype}, {D} values"
    if 4 * (COLUMNS + TOKENS + 1) * (D + LINE) > hopper.SHARED_MEMORY - 1024:
        return f"{COLUMNS + TOKENS + 1} rows of {D} values do not fit shared memory"
    return None


def router(x, gain, weight, valid, *, early):
    (E, D), M = weight.shape, x.shape[0]
    lines, tokens = D // LINE, min(TOKENS, M)
    padded = lines + lines % 2
    strided = plgpu.Layout.WG_STRIDED((padded, LINE), vec_size=1)

    def kernel(x, gain, weight, valid, moments, gain_s, weight_s, x_s, arrived):
        first, row = jax.lax.axis_index("column") * COLUMNS, jax.lax.axis_index("token") * tokens
        real = pl.ds(0, lines)
        if not early:
            primitives.begin()
        plgpu.copy_gmem_to_smem(gain, gain_s.at[real], arrived)
        for i in range(COLUMNS):
            plgpu.copy_gmem_to_smem(weight.at[jnp.minimum(first + i, E - 1)], weight_s.at[i, real], arrived)
        if early:
            primitives.begin()
        for t in range(tokens):
            plgpu.copy_gmem_to_smem(x.at[jnp.minimum(row + t, M - 1)], x_s.at[t, real], arrived)
        is_real = primitives.iota((padded, LINE), 0, strided) < lines
        plgpu.barrier_wait(arrived)

        for i in range(COLUMNS):
            column = first + i
            weighted = primitives.load(weight_s.at[i], strided) * primitives.load(gain_s, strided)
            for t in range(tokens):
                value = primitives.load(x_s.at[t], strided)
                product = value * jnp.where(jax.lax.broadcast(column == E, value.shape), value, weighted)
                total = jnp.sum(jnp.where(is_real, product, jnp.zeros_like(product)))  # the line that nobody filled may hold anything

                @pl.when(row + t < M)
                def _(t=t, column=column, total=total):
                    behind = jnp.where(column == E + 1, (valid[row + t] != 0).astype(jnp.float32), 0.0)
                    moments[row + t, column] = jnp.where(column <= E, total, behind)

    run = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((M, columns(E)), jnp.float32),
        grid=(columns(E) // COLUMNS, -(-M // tokens)),
        grid_names=("column", "token"),
        kernel_name="router",
        scratch_types=[
            plgpu.SMEM((padded, LINE), jnp.float32),
            plgpu.SMEM((COLUMNS, padded, LINE), jnp.float32),
            plgpu.SMEM((tokens, padded, LINE), jnp.float32),
            plgpu.Barrier(num_arrivals=1 + COLUMNS + tokens),
        ],
    )
    in_lines = lambda a: a.reshape(*a.shape[:-1], lines, LINE)
    return run(in_lines(x), in_lines(gain), in_lines(weight), valid.astype(jnp.int32))
