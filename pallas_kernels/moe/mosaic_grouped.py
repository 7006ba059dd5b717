"""Grouped products of many rows with MXFP4 experts on a Hopper: blocks of rows, each times the matrices of its own expert.

A block of threads takes one block of rows and a few tiles of 64 rows of the weights. One warpgroup starts copies; each of the others
unpacks the S tiles of its 64 rows in its registers, where the tensor cores take them, and multiplies them with the rows of x, which lie in
shared memory for all. Weights are the left operand, so that results lie transposed, and are turned on their way out.

The tiles are the grid's fast axis: neighbours on the GPU share their rows of x, and those at work together, some 132, their expert or two:
x and the weights come from memory about once, the rest from the L2 cache. Where the warpgroups do not divide the tiles, the last block of
threads reaches past the end, where copies read zeros and write nothing: weights need no padding. Blocks of no expert end at once.

Floor: the packed weights of the experts that are there, x and the results, 2 operations for each weight and row.
"""

from collections.abc import Callable

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import primitives
from pallas_kernels.moe.tuning import Step
from pallas_kernels.mxfp4 import dequantize
from pallas_kernels.mxfp4.tiles import TILE, Tiles

# A thread's, of the warpgroup that starts copies, by the number of those that multiply. `emit_pipeline_warp_specialized` gives each of them
# (512 - this) / number: 232 to two, 160 to three. The block has no more than it is launched with, 168 for each of three warpgroups (504) or
# 128 for each of four (512): a warpgroup that asks for more than is left waits for ever.
MEMORY_REGISTERS = {2: 40, 3: 32}


def gate_up(rows, expert, weights: Tiles, bias, *, block: int, step: Step, limit: float, alpha: float) -> jax.Array:
    """swiglu(weights[e] @ row + bias[e]) of each row of a block of expert e, [blocks * block, F] bf16; arguments as `_product`'s."""

    def finish(gate, linear):
        gate, linear = jnp.minimum(gate, limit), jnp.clip(linear, -limit, limit)
        return gate / (1 + jnp.exp(-alpha * gate)) * (linear + 1)

    return _product(rows, expert, weights, bias, finish, jnp.bfloat16, block=block, step=step, name="moe_gate_up_grouped")


def down(rows, expert, weights: Tiles, bias, *, block: int, step: Step) -> jax.Array:  # [blocks * block, D] float32
    """weights[e] @ row + bias[e] of each row of a block of expert e; arguments as `_product`'s, S = 1."""
    return _product(rows, expert, weights, bias, lambda y: y, jnp.float32, block=block, step=step, name="moe_down_grouped")


def _product(rows, expert, weights: Tiles, bias, finish: Callable, dtype, *, block: int, step: Step, name: str):
    """finish of the S products of each row, [blocks * block, R / S] of `dtype`.

    Args:
      rows: [blocks * block, K] bf16.
      expert: [blocks] int32; for E or more nothing is read, and what stands in the result means nothing.
      weights: [E, R, K] with S interleaved.
      bias: [E, R] float32.
      finish: S arrays [64, block] float32 -> one.
    """
    E, tiles, chunks, S, _ = weights.words.shape
    groups = step.groups
    chunk = next(n for n in range(step.chunks, 0, -1) if chunks % n == 0)
    piece = block // 2 if jnp.dtype(dtype).itemsize > 2 and block % 16 == 0 else block  # rows that are turned at a time

    def kernel(expert, words, scales, bias, rows, out, out_s, *staging):
        b, group = jax.lax.axis_index("block"), jax.lax.axis_index("group")
        first = jax.lax.axis_index("tiles") * groups
        e = expert[b]

        def multiply(_, words, scales, rows, sums):
            _add_products(sums, words.at[group], scales.at[group], rows, staging[0].at[group] if staging else None)
            return sums

        def compute(pipeline):
            def accumulate(*sums):
                pipeline(sums)
                return [a[...] for a in sums]

            tile = first + group
            sums = pl.run_scoped(accumulate, *[plgpu.ACC((TILE, block), jnp.float32)] * S)
            here = pl.ds(jnp.minimum(tile, tiles - 1) * TILE, TILE)
            biases = [primitives.load(bias.at[e, here, s], primitives.ROW, optimized=False) for s in range(S)]
            sums = [a + jax.lax.broadcast_in_dim(value, a.shape, [0]) for a, value in zip(sums, biases, strict=True)]
            _store(finish(*sums).astype(dtype), out_s.at[group], out, b * block, tile, tiles)

        @pl.when(e < E)
        def _():
            plgpu.emit_pipeline_warp_specialized(
                multiply,
                grid=(chunks // chunk,),
                memory_registers=MEMORY_REGISTERS[groups],
                wg_axis="group",
                num_compute_wgs=groups,
                max_concurrent_steps=step.stages,
                compute_context=compute,
                in_specs=[
                    plgpu.BlockSpec((groups, chunk * S * 4, 128), lambda k: (0, k, 0)),
                    plgpu.BlockSpec((groups, chunk * S * 32), lambda k: (0, k)),
                    plgpu.BlockSpec((block, chunk * TILE), lambda k: (0, k), transforms=primitives.swizzled(TILE, jnp.bfloat16)),
                ],
            )(words.at[e, pl.ds(first, groups)], scales.at[e, pl.ds(first, groups)], rows.at[pl.ds(b * block, block)])

    launch = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((rows.shape[0], tiles * TILE), dtype),
        grid=(rows.shape[0] // block, -(-tiles // groups)),
        grid_names=("block", "tiles"),
        num_threads=groups + 1,
        thread_name="group",
        scratch_types=[
            plgpu.SMEM((groups, piece, TILE), dtype, transforms=primitives.swizzled(TILE, dtype)),
            *primitives.staging((groups, TILE, TILE)),
        ],
        kernel_name=name,
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    words, scales = weights.words.reshape(E, tiles, -1, 128), weights.scales.reshape(E, tiles, -1)
    return launch(expert, words, scales, bias.reshape(E, -1, S), rows)


def _add_products(sums, words, scales, rows, staging) -> None:
    """sums[s] += tile s @ rows.T, chunk after chunk; rows [block, 64 * chunks], words [4 * S * chunks, 128], scales [32 * S * chunks]."""
    S, chunks = len(sums), rows.shape[1] // TILE
    for c in range(chunks):
        columns = rows.at[:, pl.ds(c * TILE, TILE)].T
        for s in range(S):
            primitives.wgmma_from_registers(sums[s], dequantize.tile(words, scales, c * S + s), columns, staging)
        plgpu.wgmma_wait(S if c + 1 < chunks else 0)  # the tiles of the chunk before give their registers back


def _store(result, out_s, out, first_row, tile, tiles: int) -> None:
    """Writes a warpgroup's result [64, block], turned, a piece of as many rows as out_s [piece, 64] has after the other."""
    piece, block = out_s.shape[0], result.shape[1]
    for first in range(0, block, piece):
        out_s.T[...] = primitives.layout_cast(result[:, first : first + piece], plgpu.Layout.WGMMA_TRANSPOSED)
        plgpu.commit_smem()

        @pl.when(tile < tiles)
        def _(first=first):
            plgpu.copy_smem_to_gmem(out_s, out.at[pl.ds(first_row + first, piece), pl.ds(tile * TILE, TILE)])

        plgpu.wait_smem_to_gmem(0, wait_read_only=first + piece < block)
