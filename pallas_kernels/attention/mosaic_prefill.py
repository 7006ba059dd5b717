"""Attention of many queries over a paged cache as a Hopper kernel: two warpgroups multiply, a third one fetches.

A block takes twice `rows` rows of one sequence and kv head through the pages that any of them sees; pages stream through a ring in shared
memory from which both warpgroups read. They take turns on the tensor cores: one multiplies while the other does its softmax. Only pages
at an edge of what is seen are masked.
"""

import functools

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import primitives
from pallas_kernels.attention import tile
from pallas_kernels.attention.tile import PAGE, H, Shape
from pallas_kernels.attention.tuning import Prefill

WORKERS = 2  # warpgroups that multiply
FETCHING, MULTIPLYING = 40, 232  # registers of a thread


def attend(shape: Shape, tuning: Prefill, q, k_pages, v_pages, table, q_positions, lengths, sinks):
    """Packed queries' attention, [B, boxes, K, box, H] bf16.

    Later tiles of a sequence see more keys. They start first, so that no long one is left at the end; blocks that run together are of one
    tile, for all sequences and heads.
    """
    rows, stages = tuning.rows, tuning.stages
    swizzled = primitives.swizzled(H, jnp.bfloat16)
    boxes = min(rows // shape.box, shape.boxes)  # of a warpgroup
    return plgpu.kernel(
        functools.partial(_kernel, shape),
        out_type=jax.ShapeDtypeStruct((shape.B, shape.boxes, shape.K, shape.box, H), jnp.bfloat16),
        grid=(-(-shape.boxes * shape.box // (WORKERS * rows)), shape.B, shape.K),
        grid_names=("tile", "b", "k"),
        num_threads=WORKERS + 1,
        thread_name="warpgroup",
        kernel_name="attention_prefill",
        compiler_params=plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
        scratch_types=[
            plgpu.SMEM((WORKERS, rows, H), jnp.bfloat16, transforms=swizzled),
            [plgpu.SMEM((stages, PAGE, H), jnp.bfloat16, transforms=swizzled) for _ in range(2)],
            plgpu.Barrier(num_arrivals=boxes, num_barriers=WORKERS),
            [plgpu.Barrier(num_barriers=stages) for _ in range(2)],
            plgpu.Barrier(num_arrivals=WORKERS, num_barriers=stages),
            plgpu.Barrier(num_arrivals=WORKERS),
            primitives.staging((WORKERS, rows, PAGE)),
        ],
    )(q, k_pages, v_pages, table, q_positions, lengths, sinks)


def _kernel(shape: Shape, q, k_pages, v_pages, table, q_positions, lengths, sinks, out, q_s, ring, q_ready, ready, free, turn, staging):
    rows = q_s.shape[1]
    b, k, warpgroup = (jax.lax.axis_index(name) for name in ("b", "k", "warpgroup"))
    number = jax.lax.axis_size("tile") - 1 - jax.lax.axis_index("tile")
    row, first = number * (WORKERS * rows), q_positions[b, 0]
    lo, hi = shape.blocks(first, row, WORKERS * rows, lengths[b])

    @pl.when(warpgroup == WORKERS)
    def _():
        plgpu.set_max_registers(FETCHING, action="decrease")
        page = lambda step: table[b, jax.lax.rem(lo + step, shape.R)]
        _fetch(page, hi - lo, [x.at[:, k] for x in (k_pages, v_pages)], ring, ready, free)

    @pl.when(warpgroup < WORKERS)
    def _():
        plgpu.set_max_registers(MULTIPLYING, action="increase")
        mine = row + warpgroup * rows
        queries = q_s.at[warpgroup]
        tile.load_queries(shape, q, b, k, mine, queries, q_ready.at[warpgroup])
        state = tile.start(shape, rows, sinks, k)
        plgpu.barrier_wait(q_ready.at[warpgroup])
        pl.when(warpgroup == 1)(lambda: _swap(turn))
        seen = lambda j: shape.end(first, row, WORKERS * rows, lengths[b]) - (lo + j) * PAGE  # by any row of the block
        left = lambda j: jnp.where(warpgroup == 0, seen(j), PAGE)
        step = functools.partial(_step, queries, ring, ready, free, turn, left, [x.at[warpgroup] for x in staging])
        visible = lambda j: shape.visible(first, mine, rows, lo + j)
        state = tile.loop(step, shape.clear(first, mine, lo, hi - lo), hi - lo, visible, state)
        pl.when(warpgroup == 0)(lambda: _swap(turn))
        queries[...] = tile.finish(state)[0].astype(jnp.bfloat16)  # the queries are not needed any more
        mine = jax.lax.optimization_barrier(mine)  # places are computed anew: as they were for the queries, they would be kept in registers
        tile.store_rows(shape, queries, out, b, k, mine)


def _fetch(page, count, sources, ring, ready, free) -> None:
    """Brings pages page(0) ... page(count - 1) of keys and values into the ring, each into the next slot when all are done with it."""
    stages = ring[0].shape[0]

    def copy(step, page):
        slot = jax.lax.rem(step, stages)
        for source, target, arrived in zip(sources, ring, ready, strict=True):
            plgpu.copy_gmem_to_smem(source.at[page], target.at[slot], arrived.at[slot])

    def refill(j, ahead):
        plgpu.barrier_wait(free.at[jax.lax.rem(j, stages)])
        pl.when(j + stages < count)(lambda: copy(j + stages, ahead))
        return page(j + (stages + 1))  # known a step before it is needed

    for i, its in enumerate([page(i) for i in range(stages)]):
        pl.when(i < count)(lambda i=i, its=its: copy(jnp.int32(i), its))
    jax.lax.fori_loop(0, count, refill, page(stages))


def _step(queries, ring, ready, free, turn, left, staging, j, visible, state):
    """The state after page `j`, of which the `visible` keys count; all do where that is None.

    A page that nobody sees to its end is cleaned by the warpgroup that multiplies first: the other one's product comes a turn later.
    """
    slot = jax.lax.rem(j, ring[0].shape[0])
    plgpu.barrier_wait(ready[0].at[slot])
    score = tile.scores(queries, ring[0].at[slot], lambda: _swap(turn))
    (values, top, denominator), weights = tile.softmax_step(score, visible, state)
    values, top, denominator, weights = jax.lax.optimization_barrier((values, top, denominator, weights))
    if visible is None:
        plgpu.barrier_arrive(turn)
        plgpu.barrier_wait(ready[1].at[slot])
    else:
        plgpu.barrier_wait(ready[1].at[slot])
        tile.clean(ring[1].at[slot], left(j))
        plgpu.barrier_arrive(turn)
    plgpu.barrier_wait(turn)
    values = primitives.plus_product(values, weights, ring[1].at[slot], staging)
    plgpu.barrier_arrive(free.at[slot])
    return values, top, denominator


def _swap(turn) -> None:
    """The tensor cores pass from one warpgroup to the other."""
    plgpu.barrier_arrive(turn)
    plgpu.barrier_wait(turn)
