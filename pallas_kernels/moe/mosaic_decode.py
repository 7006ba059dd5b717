"""The mixture of experts of a decode step as two Hopper kernels: weights stream through shared memory once, whatever the tokens.

A block takes one active expert and a few units of its rows. The weights of a unit, unpacked in registers, are the left operand of wgmma,
which has 64 rows; all tokens, routed to this expert or not, are the right one: few as they are, that costs less than sorting them. What
a token's column holds reaches no other column, so tokens need not be routed, nor even exist: shared memory has room for a multiple of 8.

Columns are summed in the same order whatever the tuning: a token's result depends neither on the others nor on their number.
"""

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import primitives
from pallas_kernels.moe import tuning
from pallas_kernels.moe.stream import HALF, Stream
from pallas_kernels.mxfp4.tiles import TILE

COLUMN = plgpu.Layout.WGMMA.reduce(0)  # one value per column of an accumulator


def covers(x) -> str | None:
    """Why the kernels do not cover these rows; None where they do."""
    return None if x.dtype == jnp.bfloat16 else f"rows must be bfloat16, not {x.dtype.name}"


def gate_up(rows, routing, weights, bias, *, num_active, limit, alpha):
    M, D = rows.shape
    E, F = len(bias), bias.shape[1] // 2
    x = _whole(rows)
    stream = Stream(len(x), D // TILE, 2, tuning.decode("gate_up", M, D // TILE))
    wide, units = stream.wide, stream.tuning.units
    pairs = lambda products: [products[i : i + 2] for i in range(0, units, 2)]
    tokens, grid = pl.ds(0, wide), (min(M * num_active, E), -(-F // (HALF * units)))

    def kernel(x, active, scale, words, scales, bias, h, h_s, swap_s, scale_s, bias_s, ready, *streamed):
        slot, first = jax.lax.axis_index("slot"), jax.lax.axis_index("block") * units
        primitives.begin(next_waits=True)  # `down` wants to know the active experts early
        expert = active[slot]

        @pl.when(expert < E)
        def _():
            operands = (x, words.at[expert], scales.at[expert], first, *streamed)
            stream.start(*operands, early=False)
            plgpu.copy_gmem_to_smem(scale.at[tokens], scale_s, ready)
            for i in range(bias_s.shape[0]):
                row = jnp.minimum(jax.lax.div(first, 2) + i, F // TILE - 1) * TILE
                for s in range(2):
                    bias_s[i, s, pl.ds(0, TILE)] = _load(bias.at[expert, pl.ds(row, TILE), s], primitives.ROW)
            products = stream.products(*operands)
            plgpu.barrier_wait(ready)
            by_token = _below(_load(scale_s, COLUMN), wide)
            for i, pair in enumerate(pairs(products)):
                gate, linear = (value * by_token for value in _part(pair, swap_s))
                rows = pl.ds(jax.lax.rem(first, 2) * HALF, TILE)
                gate, linear = (v + _beside(_load(bias_s.at[i, s, rows], primitives.ROW), wide) for s, v in enumerate((gate, linear)))
                gate, linear = jnp.minimum(gate, limit), jnp.clip(linear, -limit, limit)
                value = (gate / (1 + jnp.exp(-alpha * gate)) * (linear + 1)).astype(h_s.dtype)
                primitives.store(h_s.at[i].T, primitives.layout_cast(value, plgpu.Layout.WGMMA_TRANSPOSED), optimized=units > 1)
            plgpu.commit_smem()
            if units == 1:

                @pl.loop(0, M)
                def _(m):
                    plgpu.copy_smem_to_gmem(h_s.at[0, m, pl.ds(0, HALF)], h.at[slot, m, pl.ds(first * HALF, HALF)])

            else:
                for i in range(units // 2):
                    row = first * HALF + i * TILE
                    pl.when(row < F)(lambda i=i, row=row: plgpu.copy_smem_to_gmem(h_s.at[i], h.at[slot, tokens, pl.ds(row, TILE)]))
            plgpu.wait_smem_to_gmem(0)

    launch = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((grid[0], len(x), F), rows.dtype),
        grid=grid,
        grid_names=("slot", "block"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        scratch_types=[
            plgpu.SMEM((-(-units // 2), wide, TILE), rows.dtype),
            plgpu.SMEM((TILE + HALF, wide), jnp.float32),
            plgpu.SMEM((wide,), jnp.float32),
            plgpu.SMEM((-(-units // 2), 2, TILE + HALF), jnp.float32),
            plgpu.Barrier(),
            *stream.scratch(),
        ],
        kernel_name="moe_gate_up",
    )
    return launch(x, routing.active, routing.scale, *stream.halves(weights), bias.reshape(E, F, 2))[:, :M]


def down(h, routing, weights, bias, *, num_active, early):
    S, M, F = h.shape
    E, D = bias.shape
    x = _whole(h)
    stream = Stream(x.shape[1], F // TILE, 1, tuning.decode("down", M, F // TILE))
    wide, units, A = stream.wide, stream.tuning.units, num_active
    tokens = pl.ds(0, wide)

    def kernel(x, active, gates, ranks, words, scales, bias, terms, y_s, gate_s, rank_s, bias_s, ready, *streamed):
        slot, first = jax.lax.axis_index("slot"), jax.lax.axis_index("block") * units
        if not early:
            primitives.begin()
        expert = active[slot]
        if early:
            pl.when(expert >= E)(primitives.begin)

        @pl.when(expert < E)
        def _():
            operands = (x.at[slot], words.at[expert], scales.at[expert], first, *streamed)
            stream.start(*operands, early=early)
            plgpu.copy_gmem_to_smem(gates.at[expert, tokens], gate_s, ready)
            plgpu.copy_gmem_to_smem(ranks.at[expert, tokens], rank_s, ready)
            plgpu.copy_gmem_to_smem(bias.at[pl.ds(expert * D + first * TILE, units * TILE)], bias_s, ready)
            products = stream.products(*operands)
            plgpu.barrier_wait(ready)
            by_token = _below(_load(gate_s, COLUMN), wide)
            for i, product in enumerate(products):
                y = (product + _beside(_load(bias_s.at[pl.ds(i * TILE, TILE)], primitives.ROW), wide)) * by_token
                primitives.store(y_s.T, primitives.layout_cast(y, plgpu.Layout.WGMMA_TRANSPOSED), optimized=False)
                plgpu.commit_smem()
                pl.when((first + i) * TILE < D)(lambda i=i: store(first + i, y_s, rank_s, terms))
                plgpu.wait_smem_to_gmem(0)

    def store(unit, y_s, rank_s, terms):
        @pl.loop(0, M)
        def _(m):
            @pl.when(rank_s[m] < A)  # the token is routed to this expert
            def _():
                plgpu.copy_smem_to_gmem(y_s.at[m], terms.at[rank_s[m], m, pl.ds(unit * TILE, TILE)])

    launch = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((A, M, D), jnp.float32),
        grid=(S, -(-D // (TILE * units))),
        grid_names=("slot", "block"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        scratch_types=[
            plgpu.SMEM((wide, TILE), jnp.float32),
            plgpu.SMEM((wide,), jnp.float32),
            plgpu.SMEM((wide,), jnp.int32),
            plgpu.SMEM((units * TILE,), jnp.float32),
            plgpu.Barrier(num_arrivals=3),
            *stream.scratch(),
        ],
        kernel_name="moe_down",
    )
    return launch(x, routing.active, routing.gates, routing.ranks, *stream.halves(weights), bias.reshape(-1))


def _whole(x: jax.Array) -> jax.Array:
    """x [..., M, columns] with rows that TMA can cut into groups of 8: up to 8, or padded to a multiple of 8."""
    M = x.shape[-2]
    pad = 0 if M <= 8 else -M % 8
    return jnp.pad(x, (*[(0, 0)] * (x.ndim - 2), (0, pad), (0, 0))) if pad else x


def _load(ref, layout):
    return primitives.load(ref, layout, optimized=False)


def _part(products: list, swap_s) -> tuple:  # two of [64, wide]
    """The rows of gate and of linear of two units [64, wide], each 32 of either. Of a single unit rows 0 .. 31; the others mean nothing."""
    above, across = pl.ds(0, TILE), pl.ds(HALF, TILE)
    swap_s[above] = products[0]
    gate = products[0]
    if len(products) > 1:
        swap_s[across] = products[1]
        gate = _load(swap_s.at[above], plgpu.Layout.WGMMA)
        swap_s[above] = products[0]
    return gate, _load(swap_s.at[across], plgpu.Layout.WGMMA)


def _below(column, wide: int):  # [64, wide]
    """Values of the columns, below every row."""
    return jax.lax.broadcast_in_dim(column, (TILE, wide), [1])


def _beside(row, wide: int):  # [64, wide]
    """Values of the rows, beside every column."""
    return jax.lax.broadcast_in_dim(row, (TILE, wide), [0])
