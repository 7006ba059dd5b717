"""Attention of few queries over a paged cache as a Hopper kernel: a warpgroup per sequence, kv head and part of the keys.

Keys and values stream through shared memory by TMA. The tensor cores work on 64 rows whether they are real or not: rows of a product
are independent, so what the others hold is neither initialised nor stored.
"""

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import hopper
from pallas_kernels.attention import tile
from pallas_kernels.attention.tile import PAGE, H, Shape
from pallas_kernels.attention.tuning import Decode

ROWS = 64


def attend(shape: Shape, tuning: Decode, q, k_pages, v_pages, table, q_positions, lengths, sinks):
    """What the splits make of packed queries.

    Returns:
      [B, boxes, K, box, H] bf16, finished, if there is one split; else outputs of the splits [S, B, boxes, K, box, H] float32 and the
      logarithms of their denominators [S, B, K, tiles, 64] float32, at most `tile.LEAST` + 1 where a split has seen nothing: its output
      may be anything then.
    """
    S, stages = tuning.splits, tuning.stages
    boxes = min(ROWS // shape.box, shape.boxes)  # of a tile

    def kernel(q, k_pages, v_pages, table, q_positions, lengths, sinks, out, *scratch):
        lse, (q_s, k_s, v_s, o_s, lse_s, q_ready, k_ready, v_ready, staging) = (scratch[0], scratch[1:]) if S > 1 else (None, scratch)
        b, k, split, number = (jax.lax.axis_index(name) for name in ("b", "k", "split", "tile"))
        row = number * ROWS
        first, entries = q_positions[b, 0], table.at[b]
        lo, hi = shape.blocks(first, row, ROWS, lengths[b])
        part = jnp.maximum(jax.lax.div(hi - lo + (S - 1), S), tuning.least) if S > 1 else hi - lo
        lo = lo + split * part
        count = jnp.clip(hi - lo, 0, part)
        page = lambda step: entries[jax.lax.rem(lo + step, shape.R)]

        def fetch(step, page):
            slot = jax.lax.rem(step, stages)
            plgpu.copy_gmem_to_smem(k_pages.at[page, k], k_s.at[slot], k_ready.at[slot])
            plgpu.copy_gmem_to_smem(v_pages.at[page, k], v_s.at[slot], v_ready.at[slot])

        def step(j, carry):
            state, ahead = carry
            slot = jax.lax.rem(j, stages)
            plgpu.barrier_wait(k_ready.at[slot])
            score = tile.scores(q_s, k_s.at[slot])
            (values, top, denominator), weights = tile.softmax_step(score, shape.visible(first, row, ROWS, lo + j), state)
            plgpu.barrier_wait(v_ready.at[slot])
            values = hopper.plus_product(values, weights, v_s.at[slot], staging)
            pl.when(j + stages < count)(lambda: fetch(j + stages, ahead))
            return (values, top, denominator), page(j + (stages + 1))  # known a step before it is needed

        def run():
            tile.load_queries(shape, q, b, k, row, q_s, q_ready)
            for i, its in enumerate([page(i) for i in range(stages)]):
                pl.when(i < count)(lambda i=i, its=its: fetch(i, its))
            state = tile.start(shape, ROWS, sinks if S == 1 else None, k)
            plgpu.barrier_wait(q_ready)
            state, _ = jax.lax.fori_loop(0, count, step, (state, page(stages)))
            result, logarithm = tile.finish(state)
            if S == 1:
                q_s[...] = result.astype(jnp.bfloat16)  # the queries are not needed any more
                tile.store_rows(shape, q_s, out, b, k, row)
                return
            o_s[...] = result
            lse_s[...] = logarithm
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(lse_s, lse.at[split, b, k, number])
            tile.store_rows(shape, o_s, out.at[split], b, k, row)

        def nothing():
            lse_s[...] = hopper.layout_cast(jnp.full((ROWS,), tile.LEAST, jnp.float32), hopper.ROW)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(lse_s, lse.at[split, b, k, number])
            plgpu.wait_smem_to_gmem(0)

        if S == 1:
            run()
        else:
            pl.when(count > 0)(run)
            pl.when(count == 0)(nothing)

    packed = (shape.B, shape.boxes, shape.K, shape.box, H)
    tiles = -(-shape.boxes // boxes)
    split_out = (jax.ShapeDtypeStruct((S, *packed), jnp.float32), jax.ShapeDtypeStruct((S, shape.B, shape.K, tiles, ROWS), jnp.float32))
    swizzled = hopper.swizzled(H, jnp.bfloat16)
    return plgpu.kernel(
        kernel,
        out_type=split_out if S > 1 else jax.ShapeDtypeStruct(packed, jnp.bfloat16),
        grid=(shape.B, S, shape.K, tiles),
        grid_names=("b", "split", "k", "tile"),
        kernel_name="attention_decode",
        compiler_params=plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
        scratch_types=[
            plgpu.SMEM((ROWS, H), jnp.bfloat16, transforms=swizzled),
            plgpu.SMEM((stages, PAGE, H), jnp.bfloat16, transforms=swizzled),
            plgpu.SMEM((stages, PAGE, H), jnp.bfloat16, transforms=swizzled),
            plgpu.SMEM((ROWS, H), jnp.float32, transforms=hopper.swizzled(H, jnp.float32)) if S > 1 else None,
            plgpu.SMEM((ROWS,), jnp.float32) if S > 1 else None,
            plgpu.Barrier(num_arrivals=boxes),
            plgpu.Barrier(num_barriers=stages),
            plgpu.Barrier(num_barriers=stages),
            hopper.staging((ROWS, PAGE)),
        ],
    )(q, k_pages, v_pages, table, q_positions, lengths, sinks)
