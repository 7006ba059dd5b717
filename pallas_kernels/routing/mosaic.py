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
from pallas_kernels.routing.reference import ROWS, Routing

COLUMN = plgpu.Layout.WGMMA.reduce(0)  # one value per column of an accumulator
_LEAST = -3e38  # what is not a number, or is less, counts as this; a chosen expert's place holds -inf


def covers(bias: jax.Array) -> str | None:
    """Why the kernel does not cover so many experts."""
    E = len(bias)
    if E % 8 or E > 2 * ROWS or ROWS < E < 2 * ROWS:
        return f"it takes up to {ROWS} experts, in eights, or {2 * ROWS}; got {E}"
    return None


def route(moments, bias, *, num_active, width, eps):
    M, E = moments.shape[0], len(bias)
    A, slots, rest = num_active, -(-E // ROWS) * ROWS, moments.shape[1] - E
    part = min(E, ROWS)  # columns at a time, where all would need too many registers

    def kernel(moments, bias, gates, ranks, active, scale, raw, extra, gates_out, ranks_out, present_s, active_s, scale_s, arrived):
        plgpu.copy_gmem_to_smem(moments.at[:, pl.ds(0, E)], raw.at[pl.ds(0, M)], arrived)
        plgpu.copy_gmem_to_smem(moments.at[:, pl.ds(E, rest)], extra.at[pl.ds(0, M)], arrived)
        row = primitives.iota((ROWS, part), 0)
        plgpu.barrier_wait(arrived)

        # Rows behind M hold anything: they are not valid, and no row looks at another before invalid ones are taken out.
        more = primitives.load(extra, plgpu.Layout.WGMMA)
        of = lambda i: jnp.sum(jnp.where(primitives.iota((ROWS, rest), 1) == i, more, jnp.zeros_like(more)), axis=1)
        scales = jax.lax.rsqrt(of(0) / width + eps)
        valid = (_along_rows(of(1), part) > 0.5) & (row < M)

        def logits(start, n):
            columns = pl.ds(start, n)
            x = primitives.load(raw.at[:, columns], plgpu.Layout.WGMMA) * _along_rows(scales, n)
            x = x + _along_columns(primitives.load(bias.at[columns], COLUMN, optimized=False))
            return jnp.where(x > _LEAST, x, jnp.full_like(x, _LEAST))

        tops, bests = _best(logits(0, E), A)
        first, total = tops[0], sum(jnp.exp(top - tops[0]) for top in tops)

        for start in range(0, E, part):
            column, experts = primitives.iota((ROWS, part), 1) + start, pl.ds(start, part)
            chosen = functools.reduce(jnp.logical_or, [column == _along_rows(best, part) for best in bests]) & valid
            gate = jnp.exp(logits(start, part) - _along_rows(first, part)) / _along_rows(total, part)
            gate = jnp.where(chosen, gate, jnp.zeros_like(gate))
            gates_out.at[experts].T[...] = primitives.layout_cast(gate, plgpu.Layout.WGMMA_TRANSPOSED)
            rank = sum((column > _along_rows(best, part)).astype(jnp.int32) for best in bests)
            rank = jnp.where(chosen, rank, jnp.full_like(rank, A))
            ranks_out.at[experts].T[...] = primitives.layout_cast(rank, plgpu.Layout.WGMMA_TRANSPOSED)
            present = jnp.max(chosen.astype(jnp.int32), axis=0)
            for copy in range(2):
                present_s[copy, experts] = present
        plgpu.commit_smem()
        _compact(present_s, active_s, E, part)
        scale_s[...] = scales
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(gates_out, gates)
        plgpu.copy_smem_to_gmem(ranks_out, ranks)
        plgpu.copy_smem_to_gmem(active_s, active)
        plgpu.copy_smem_to_gmem(scale_s, scale)
        plgpu.wait_smem_to_gmem(0)

    outputs = (((E, ROWS), jnp.float32), ((E, ROWS), jnp.int32), ((slots,), jnp.int32), ((ROWS,), jnp.float32))
    run = plgpu.kernel(
        kernel,
        out_type=tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs),
        grid=(1,),
        grid_names=("block",),
        kernel_name="route",
        scratch_types=[
            plgpu.SMEM((ROWS, E), jnp.float32),
            plgpu.SMEM((ROWS, rest), jnp.float32),
            plgpu.SMEM((E, ROWS), jnp.float32),
            plgpu.SMEM((E, ROWS), jnp.int32),
            plgpu.SMEM((2, slots), jnp.int32),
            plgpu.SMEM((slots,), jnp.int32),
            plgpu.SMEM((ROWS,), jnp.float32),
            plgpu.Barrier(num_arrivals=2),
        ],
    )
    return Routing(*run(moments, bias))


def _best(left, count):
    """The largest `count` values of each row of [ROWS, E], and their columns; of equal values the first."""
    E, tops, bests = left.shape[1], [], []
    column = primitives.iota((ROWS, E), 1)
    for _ in range(count):
        tops.append(jnp.max(left, axis=1))
        at = jnp.where(left == _along_rows(tops[-1], E), E - 1 - column, jnp.full_like(column, -1))
        bests.append(E - 1 - jnp.max(at, axis=1))
        left = jnp.where(column == _along_rows(bests[-1], E), jnp.full_like(left, -jnp.inf), left)
    return tops, bests


def _along_rows(x, columns):  # [ROWS] -> [ROWS, columns]
    return jax.lax.broadcast_in_dim(x, (ROWS, columns), (0,))


def _along_columns(x):  # [columns] -> [ROWS, columns]
    return jax.lax.broadcast_in_dim(x, (ROWS, *x.shape), (1,))


def _compact(present_s, active_s, E, part):
    """The experts that are present, ascending, in the places of active_s; E behind them.

    Of present_s there are two copies, one that is read along rows and one along columns: one could not be in two layouts.
    """
    row, column = (primitives.iota((ROWS, part), axis) for axis in (0, 1))
    starts = range(0, E, part)
    zero = jnp.zeros_like(column)
    places = []
    for start in starts:  # of columns: an expert's place is the number of those before it
        earlier = zero
        for other in starts:
            present = _along_rows(primitives.load(present_s.at[0, pl.ds(other, ROWS)], primitives.ROW, optimized=False), part)
            before = (row + other < column + start) & (row + other < E)  # behind E the shared memory holds anything
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
