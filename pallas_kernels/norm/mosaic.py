"""A sum and the beginning of RMSNorm as one Hopper kernel: a block of 128 threads per token, its row and its terms fetched by TMA.

A row of D values is seen as [D/64, 64], with one more line of zeros where D/64 is odd: a warpgroup holds a multiple of 128.
"""

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import hopper, primitives

LINE = 64
BESIDE = 3072  # bytes of shared memory that the rows cannot have: the barrier, and what Mosaic sums in


def covers(x: jax.Array, terms: jax.Array, dtype) -> str | None:
    """Why the kernel does not cover rows like these."""
    D = x.shape[1]
    if (x.dtype, terms.dtype, jnp.dtype(dtype)) != (jnp.float32, jnp.float32, jnp.bfloat16) or D % LINE:
        return f"it makes bfloat16 of float32 rows of a multiple of {LINE} values; got {x.dtype} and {terms.dtype}, {D} values, for {dtype}"
    if (4 * (len(terms) + 3) + 2) * (D + LINE) > hopper.SHARED_MEMORY - BESIDE or D // LINE > 256:
        return f"a row of {D} values and its {len(terms)} terms do not fit shared memory"
    return None


def add_norm(x, terms, valid, gain):
    (M, D), A = x.shape, terms.shape[0]
    lines = D // LINE
    padded = lines + lines % 2
    strided = plgpu.Layout.WG_STRIDED((padded, LINE), vec_size=1)

    def kernel(x, terms, valid, gain, y, scaled, square_sum, rows, gains, y_out, scaled_out, arrived):
        token = jax.lax.axis_index("token")
        primitives.begin()
        real = pl.ds(0, lines)
        plgpu.copy_gmem_to_smem(x.at[token], rows.at[0, real], arrived)
        plgpu.copy_gmem_to_smem(gain, gains.at[real], arrived)
        for a in range(A):
            plgpu.copy_gmem_to_smem(terms.at[a, token], rows.at[a + 1, real], arrived)
        is_real = primitives.iota((padded, LINE), 0, strided) < lines
        is_valid = jax.lax.broadcast(valid[token] != 0, (padded, LINE))
        plgpu.barrier_wait(arrived)

        total = primitives.load(rows.at[1], strided)
        for a in range(1, A):
            total = total + primitives.load(rows.at[a + 1], strided)
        row = primitives.load(rows.at[0], strided) + jnp.where(is_valid, total, jnp.zeros_like(total))
        row = jnp.where(is_real, row, jnp.zeros_like(row))  # the line that nobody filled may hold anything
        square_sum[token] = jnp.sum(row * row)
        y_out[...] = row
        scaled_out[...] = (row * primitives.load(gains, strided)).astype(scaled_out.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(y_out.at[real], y.at[token])
        plgpu.copy_smem_to_gmem(scaled_out.at[real], scaled.at[token])
        plgpu.wait_smem_to_gmem(0)

    run = plgpu.kernel(
        kernel,
        out_type=(
            jax.ShapeDtypeStruct((M, lines, LINE), jnp.float32),
            jax.ShapeDtypeStruct((M, lines, LINE), jnp.bfloat16),
            jax.ShapeDtypeStruct((M,), jnp.float32),
        ),
        grid=(M,),
        grid_names=("token",),
        kernel_name="add_norm",
        scratch_types=[
            plgpu.SMEM((A + 1, padded, LINE), jnp.float32),
            plgpu.SMEM((padded, LINE), jnp.float32),
            plgpu.SMEM((padded, LINE), jnp.float32),
            plgpu.SMEM((padded, LINE), jnp.bfloat16),
            plgpu.Barrier(num_arrivals=A + 2),
        ],
    )
    in_lines = lambda a: a.reshape(*a.shape[:-1], lines, LINE)
    y, scaled, square_sum = run(in_lines(x), in_lines(terms), valid.astype(jnp.int32), in_lines(gain))
    return y.reshape(M, D), scaled.reshape(M, D), square_sum
