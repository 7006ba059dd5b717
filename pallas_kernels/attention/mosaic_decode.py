"""Attention of few queries over a paged cache as a Hopper kernel: a warpgroup per sequence, kv head and part of the keys.

Keys and values stream through shared memory by TMA, each warpgroup its own. The tensor cores work on 64 rows whether they are real or
not: rows of a product are independent, so what the others hold is neither initialised nor stored. The parts of a sequence are the
warpgroups of a cluster of blocks, which joins their results before it ends: one launch, however many parts.
"""

import functools

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import primitives
from pallas_kernels.attention import parts, tile
from pallas_kernels.attention.tile import PAGE, H, Shape
from pallas_kernels.attention.tuning import Decode

ROWS = 64


def attend(shape: Shape, tuning: Decode, q, k_pages, v_pages, table, q_positions, lengths, sinks):
    """Packed queries' attention, [B, boxes, K, box, H] bf16."""
    S, W, stages = tuning.splits, tuning.warpgroups, tuning.stages
    boxes = min(ROWS // shape.box, shape.boxes)  # of a tile
    tiles = -(-shape.boxes // boxes)
    out = jax.ShapeDtypeStruct((shape.B, shape.boxes, shape.K, shape.box, H), jnp.bfloat16)
    swizzled = primitives.swizzled(H, jnp.bfloat16)
    ring = [plgpu.SMEM((W, stages, PAGE, H), jnp.bfloat16, transforms=swizzled) for _ in range(2)]
    given = [plgpu.SMEM((W, ROWS, H), jnp.float32, transforms=primitives.swizzled(H, jnp.float32)), plgpu.SMEM((W, ROWS), jnp.float32)]
    results = plgpu.kernel(
        functools.partial(_kernel, shape, tuning),
        out_type=(out, *parts.exchange(shape, tiles, S * W, boxes * shape.box)) if S > 1 else (out,),
        grid=(shape.B, shape.K, tiles),
        grid_names=("b", "k", "tile"),
        cluster=(S,) if S > 1 else (),
        cluster_names=("split",) if S > 1 else (),
        num_threads=W,
        thread_name="warpgroup",
        kernel_name="attention_decode",
        compiler_params=plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
        scratch_types=[
            plgpu.SMEM((ROWS, H), jnp.bfloat16, transforms=swizzled),
            plgpu.RefUnion(ring, given) if S > 1 else ring,
            plgpu.Barrier(num_arrivals=boxes),
            [plgpu.Barrier(num_barriers=W * stages) for _ in range(2)],
            plgpu.Barrier(num_arrivals=W),
            primitives.staging((W, ROWS, PAGE)),
            primitives.meeting_place(("split",), W) if S > 1 else [],
        ],
    )(q, k_pages, v_pages, table, q_positions, lengths, sinks)
    return results[0]


def _kernel(shape: Shape, tuning: Decode, q, k_pages, v_pages, table, q_positions, lengths, sinks, out, *rest):
    S, W = tuning.splits, tuning.warpgroups
    exchange, rest = (rest[:2], rest[2:]) if S > 1 else (None, rest)
    q_s, ring, q_ready, ready, done, staging, place = rest
    ring, given = ring if S > 1 else (ring, None)
    b, k, number, warpgroup = (jax.lax.axis_index(name) for name in ("b", "k", "tile", "warpgroup"))
    split = jax.lax.axis_index("split") if S > 1 else 0
    primitives.begin()
    row, first = number * ROWS, q_positions[b, 0]
    part = parts.cut(warpgroup * S + split, S * W, tuning.least, *shape.blocks(first, row, ROWS, lengths[b]))

    def idle():
        """For a warpgroup that gives nothing, though others may."""
        if W > 1:
            plgpu.barrier_arrive(done)
        primitives.leave(place)

    def run():
        pl.when(warpgroup == 0)(lambda: tile.load_queries(shape, q, b, k, row, q_s, q_ready))
        keys = [x.at[:, k] for x in (k_pages, v_pages)], table.at[b]
        barriers = lambda slot: [x.at[warpgroup * tuning.stages + slot] for x in ready]
        ours = (*(x.at[warpgroup] for x in ring), barriers)
        start = lambda: tile.start(shape, ROWS, sinks, k, part.number == 0)
        loop = functools.partial(
            tile.loop,
            clear=shape.clear(first, row, part.lo, part.count),
            count=part.count,
            visible=lambda j: shape.visible(first, row, ROWS, part.lo + j),
        )
        left = lambda j: shape.end(first, row, ROWS, lengths[b]) - (part.lo + j) * PAGE
        result, logarithm = _attend_part(shape, part, keys, q_s, q_ready, ours, start, loop, left, [x.at[warpgroup] for x in staging])

        def alone():
            q_s[...] = result.astype(jnp.bfloat16)  # the queries are not needed any more
            tile.store_rows(shape, q_s, out, b, k, row)
            if S > 1:
                idle()

        def together():
            if W > 1:  # what is given lies where the block's pages were
                plgpu.barrier_arrive(done)
                plgpu.barrier_wait(done)
            ours = [x.at[b, k, number] for x in exchange]
            parts.give(result, logarithm, part, [x.at[warpgroup] for x in given], ours)
            primitives.meet(place)
            parts.join(shape, part, ours, out, b, k, row)

        if S == 1:
            alone()
        else:
            pl.when(part.active == 1)(alone)
            pl.when(part.active > 1)(together)

    if S == 1:
        run()
    else:
        pl.when(part.number < part.active)(run)
        pl.when(part.number >= part.active)(idle)


def _attend_part(shape: Shape, part: parts.Part, keys, q_s, q_ready, ring, start, loop, left, staging):
    """What `tile.finish` makes of a part's blocks.

    Args:
      keys: ([pages of keys [P, page, H], of values], [R] the sequence's table).
      q_s, q_ready: the queries, and the barrier that tells that they are there.
      ring: keys [stages, page, H] and values in shared memory; slot -> their barriers.
      start: () -> state before any key.
      loop: `tile.loop` over the part's blocks.
      left: block -> how many of its keys, and of those behind, may be seen at all.
      staging: see `primitives.plus_product`.
    """
    (sources, table), (k_s, v_s, barriers) = keys, ring
    stages = k_s.shape[0]
    page = lambda step: table[jax.lax.rem(part.lo + step, shape.R)]

    def fetch(step, page):
        slot = jax.lax.rem(step, stages)
        for source, target, ready in zip(sources, (k_s, v_s), barriers(slot), strict=True):
            plgpu.copy_gmem_to_smem(source.at[page], target.at[slot], ready)

    def step(j, visible, carry):
        state, ahead = carry
        slot = jax.lax.rem(j, stages)
        k_ready, v_ready = barriers(slot)
        if visible is not None:  # before there are scores and weights in registers
            plgpu.barrier_wait(v_ready)
            tile.clean(v_s.at[slot], left(j))
        plgpu.barrier_wait(k_ready)
        score = tile.scores(q_s, k_s.at[slot])
        (values, top, denominator), weights = tile.softmax_step(score, visible, state)
        if visible is None:
            plgpu.barrier_wait(v_ready)
        values = primitives.plus_product(values, weights, v_s.at[slot], staging)
        pl.when(j + stages < part.count)(lambda: fetch(j + stages, ahead))
        return (values, top, denominator), page(j + (stages + 1))  # known a step before it is needed

    for i, its in enumerate([page(i) for i in range(stages)]):
        pl.when(i < part.count)(lambda i=i, its=its: fetch(jnp.int32(i), its))
    state = start()
    plgpu.barrier_wait(q_ready)
    state, _ = loop(step, state=(state, page(stages)))
    return tile.finish(state)
