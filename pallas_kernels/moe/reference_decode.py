"""The mixture of experts of a decode step in plain jnp: one active expert after the other, all tokens at once."""

import jax
import jax.numpy as jnp

from pallas_kernels.matmul import packed_matmul
from pallas_kernels.moe.reference import ALPHA, swiglu
from pallas_kernels.mxfp4.tiles import from_tiles


def gate_up(rows, routing, weights, bias, *, num_active, limit, alpha=ALPHA):
    (M, _), (E, out) = rows.shape, bias.shape
    scale = routing.scale[:M, None]

    def expert(slot, h):
        e = routing.active[slot]
        product = _multiply(rows, weights, e) * scale + bias[e][None, :]
        return h.at[slot].set(swiglu(product, limit, alpha).astype(h.dtype))

    slots = min(M * num_active, E)
    return jax.lax.fori_loop(0, _count(routing, slots, E), expert, jnp.zeros((slots, M, out // 2), rows.dtype))


def down(h, routing, weights, bias, *, num_active):
    (slots, M, _), (E, D) = h.shape, bias.shape
    plane = jnp.arange(num_active, dtype=jnp.int32)[:, None, None]

    def expert(slot, terms):
        e = routing.active[slot]
        product = _multiply(h[slot], weights, e)
        term = routing.gates[e, :M, None] * (product + bias[e][None, :])
        return jnp.where(routing.ranks[e, :M][None, :, None] == plane, term[None], terms)

    return jax.lax.fori_loop(0, _count(routing, slots, E), expert, jnp.zeros((num_active, M, D), jnp.float32))


def _multiply(x, weights, expert):
    return packed_matmul(x, from_tiles(jax.tree.map(lambda stack: stack[expert], weights)), x.dtype)


def _count(routing, slots: int, num_experts: int) -> jax.Array:  # [] int32
    """Slots that have an expert: the first ones."""
    return jnp.sum(routing.active[:slots] < num_experts, dtype=jnp.int32)
