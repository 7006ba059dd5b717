"""Routing as one Hopper kernel of one block: tokens are the 64 rows of a tensor core's accumulator, experts its columns.

Everything is a comparison or a sum along one of the two axes. The list of active experts takes each expert to a slot, the number of
active ones before it; where an expert must stand in a row as well as in a column, it goes through shared memory.
"""

import functools

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import primitives
from pallas_kernels.routing.reference import ROWS, Routing, room

COLUMN = plgpu.Layout.WGMMA.reduce(0)  # one value per column of an accumulator
MOMENTS = 8  # columns behind the logits that are looked at: the square sum, whether the token is valid, zeros
MOST_ACTIVE = 16  # of as many as 128, one after the other: more spill registers, and take minutes to compile
_LEAST = -3e38  # what is not a number, or is less, counts as this; a chosen expert's place holds -inf


def covers(bias: jax.Array, num_active: int) -> str | None:
    """Why the kernel does not cover so many experts; None where it does."""
    if len(bias) > 2 * ROWS:
        return f"it takes up to {2 * ROWS} experts; got {len(bias)}"
    if num_active > MOST_ACTIVE:
        return f"a token may have up to {MOST_ACTIVE} experts; got {num_active}"
    return None


def route(moments, bias, *, num_active, width, eps):
    M, E = moments.shape[0], len(bias)
    A, slots, wide = num_active, -(-E // ROWS) * ROWS, room(E)
    part = min(wide, ROWS)  # columns at a time, where all would need too many registers
    bias = jnp.pad(bias, (0, wide - E), constant_values=-jnp.inf)  # what is no expert is chosen by no token, not even one of no numbers

    def kernel(moments, bias, gates, ranks, active, scale, raw, extra, gates_out, ranks_out, present_s, active_s, scale_s, arrived):
        primitives.begin()
        plgpu.copy_gmem_to_smem(moments.at[:, pl.ds(0, wide)], raw.at[pl.ds(0, M)], arrived)
        plgpu.copy_gmem_to_smem(moments.at[:, pl.ds(E, MOMENTS)], extra.at[pl.ds(0, M)], arrived)
        plgpu.barrier_wait(arrived)

        # Rows behind M hold anything: they are not valid, and no row looks at another before invalid ones are taken out.
        more = primitives.load(extra, plgpu.Layout.WGMMA)
        of = lambda i: jnp.sum(jnp.where(primitives.iota((ROWS, MOMENTS), 1) == i, more, jnp.zeros_like(more)), axis=1)
        scales = jax.lax.rsqrt(of(0) / width + eps)
        valid = (_along_rows(of(1), part) > 0.5) & (primitives.iota((ROWS, part), 0) < M)

        # Read as a whole, and once: Mosaic swizzles as many of the rows together as divide M, and where that is one, it takes a swizzle to
        # begin anew where a part of the columns begins. Of odd M the second part's columns were exchanged by eights.
        x = primitives.load(raw, plgpu.Layout.WGMMA) * _along_rows(scales, wide)
        x = x + _along_columns(primitives.load(bias, COLUMN, optimized=False))
        tops, bests = _best(jnp.where(x > _LEAST, x, jnp.full_like(x, _LEAST)), A)
        weights = [jnp.exp(top - tops[0]) for top in tops]
        total = sum(weights)

        for start in range(0, wide, part):
            column, experts = primitives.iota((ROWS, part), 1) + start, pl.ds(start, part)
            at = [column == _along_rows(best, part) for best in bests]
            chosen = functools.reduce(jnp.logical_or, at) & valid
            gate = jnp.zeros(column.shape, jnp.float32)
            for here, weight in zip(at, weights, strict=True):
                gate = jnp.where(here & valid, _along_rows(weight / total, part), gate)
            gates_out.at[experts].T[...] = primitives.layout_cast(gate, plgpu.Layout.WGMMA_TRANSPOSED)
            rank = sum((column > _along_rows(best, part)).astype(jnp.int32) for best in bests)
            rank = jnp.where(chosen, rank, jnp.full_like(rank, A))
            ranks_out.at[experts].T[...] = primitives.layout_cast(rank, plgpu.Layout.WGMMA_TRANSPOSED)
            present = jnp.max(chosen.astype(jnp.int32), axis=0)
            for copy in range(2):
                present_s[copy, experts] = present
        plgpu.commit_smem()
        _compact(present_s, active_s, E, wide, part)
        scale_s[...] = scales
        plgpu.commit_smem()
        tables = [table.at[primitives.leading(wide)] for table in (gates, ranks)]
        for made, target in zip((gates_out, ranks_out, active_s, scale_s), (*tables, active, scale), strict=True):
            plgpu.copy_smem_to_gmem(made, target)
        plgpu.wait_smem_to_gmem(0)

    rows = -(-E // 8) * 8  # of the tables, which are cut into tiles of 8
    outputs = (((rows, ROWS), jnp.float32), ((rows, ROWS), jnp.int32), ((slots,), jnp.int32), ((ROWS,), jnp.float32))
    run = plgpu.kernel(
        kernel,
        out_type=tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs),
        grid=(1,),
        grid_names=("block",),
        kernel_name="route",
        scratch_types=[
            plgpu.SMEM((ROWS, wide), jnp.float32),
            plgpu.SMEM((ROWS, MOMENTS), jnp.float32),
            plgpu.SMEM((wide, ROWS), jnp.float32),
            plgpu.SMEM((wide, ROWS), jnp.int32),
            plgpu.SMEM((2, slots), jnp.int32),
            plgpu.SMEM((slots,), jnp.int32),
            plgpu.SMEM((ROWS,), jnp.float32),
            plgpu.Barrier(num_arrivals=2),
        ],
    )
    gates, ranks, active, scale = run(moments, bias)
    return Routing(gates[:E], ranks[:E], active, scale)


def _best(left, count):
    """The largest `count` values of each row of [ROWS, wide], and their columns; of equal values the first."""
    wide, tops, bests = left.shape[1], [], []
    column = primitives.iota((ROWS, wide), 1)
    for _ in range(count):
        tops.append(jnp.max(left, axis=1))
        at = jnp.where(left == _along_rows(tops[-1], wide), wide - 1 - column, jnp.full_like(column, -1))
        bests.append(wide - 1 - jnp.max(at, axis=1))
        left = jnp.where(column == _along_rows(bests[-1], wide), jnp.full_like(left, -jnp.inf), left)
    return tops, bests


def _along_rows(x, columns):  # [ROWS] -> [ROWS, columns]
    return jax.lax.broadcast_in_dim(x, (ROWS, columns), (0,))


def _along_columns(x):  # [columns] -> [ROWS, columns]
    return jax.lax.broadcast_in_dim(x, (ROWS, *x.shape), (1,))


def _compact(present_s, active_s, E, wide, part):
    """The experts that are present, of E in `wide` places, ascending, in the places of active_s; E behind them.

    Of present_s there are two copies, one that is read along rows and one along columns: one could not be in two layouts.
    """
    row, column = (primitives.iota((ROWS, part), axis) for axis in (0, 1))
    starts = range(0, wide, part)
    zero = jnp.zeros_like(column)
    places = []
    for start in starts:  # of columns: an expert's place is the number of those before it
        earlier = zero
        for other in starts:
            present = _along_rows(primitives.load(present_s.at[0, pl.ds(other, ROWS)], primitives.ROW, optimized=False), part)
            before = (row + other < column + start) & (row + other < wide)  # behind these the shared memory holds anything
            earlier = earlier + jnp.where(before, present, zero)
        place = _along_columns(jnp.sum(earlier, axis=0))
        present = _along_columns(primitives.load(present_s.at[1, pl.ds(start, part)], COLUMN, optimized=False))
        places.append(jnp.where(present > 0, place, zero - 1))
    for first in range(0, active_s.shape[0], ROWS):
        found = zero  # 1 + the expert whose place the row is, or 0
        for place, start in zip(places, starts, strict=True):
            found = found + jnp.where(place == row + first, column + (start + 1), zero)
        expert = jnp.sum(found, axis=1)
        active_s[pl.ds(first, ROWS)] = jnp.where(expert > 0, expert - 1, jnp.full_like(expert, E))
