"""Routing in plain jnp."""

import flax.struct
import jax
import jax.numpy as jnp

ROWS = 64  # tokens that a routing has room for: the rows of a tensor core's operand
FEW = 16  # rows up to which a reduction is one launch that reads little; for more, a product reads weights less often. Not measured


def room(num_experts: int) -> int:
    """Columns that the kernel has for experts: eights up to 64, else 128 at a time. In those that are left there is none."""
    return -(-num_experts // 8) * 8 if num_experts <= ROWS else -(-num_experts // (2 * ROWS)) * 2 * ROWS


def columns(num_experts: int) -> int:
    """Of `router`'s moments: the logits, the square sum, whether the token is valid, and zeros up to what TMA can cut into tiles."""
    return -(-(room(num_experts) + 8) // 32) * 32


@flax.struct.dataclass
class Routing:
    """Where the M <= 64 tokens of a step go. Columns behind M are not routed.

    Attributes:
        gates: [E, 64] float32, the weight of each expert in each token; 0 where the token is not routed to it.
        ranks: [E, 64] int32, how many of the token's experts have a lower index; A where the token is not routed to it.
        active: [E, rounded up to 64] int32, the experts that some token is routed to, ascending; E in the places that are left.
        scale: [64] float32, the 1/rms of each token's row; behind M anything.
    """

    gates: jax.Array
    ranks: jax.Array
    active: jax.Array
    scale: jax.Array


def router(x, gain, weight, valid):
    (E, D), M = weight.shape, x.shape[0]
    weight, valid = weight * gain[None, :], valid.astype(jnp.float32)
    if M > FEW:
        logits = jax.lax.dot_general(x, weight, (((1,), (1,)), ((), ())), precision="highest", preferred_element_type=jnp.float32)
        parts = [logits, jnp.sum(x * x, -1, keepdims=True), valid[:, None], jnp.zeros((M, columns(E) - E - 2), jnp.float32)]
        return jnp.concatenate(parts, -1)
    # Everything is decided before the sum: XLA would make a second launch of what comes behind it.
    column = jnp.arange(columns(E), dtype=jnp.int32)[None, :, None]
    other = jnp.where(column == E, x[:, None, :], jnp.pad(weight, ((0, columns(E) - E), (0, 0)))[None])
    return jnp.sum(jnp.where(column == E + 1, (valid / D)[:, None, None], x[:, None, :] * other), -1)


def route(moments, bias, *, num_active, width, eps):
    E = len(bias)
    scale = jax.lax.rsqrt(moments[:, E] / width + eps)
    logits = moments[:, :E] * scale[:, None] + bias[None, :]
    top, experts = jax.lax.top_k(logits, num_active)
    experts = jnp.where(moments[:, E + 1, None] > 0.5, experts, E)
    routing = of_experts(experts, jax.nn.softmax(top, -1), E)
    return routing.replace(scale=jnp.pad(scale, (0, ROWS - len(scale)), constant_values=1))


def of_experts(experts, gates, num_experts):
    (M, A), E = experts.shape, num_experts
    experts = jnp.pad(experts, ((0, ROWS - M), (0, 0)), constant_values=E)
    gates = jnp.pad(gates, ((0, ROWS - M), (0, 0)))
    place = jnp.arange(E, dtype=jnp.int32)
    chosen = experts[None, :, :] == place[:, None, None]  # [E, 64, A]
    routed = jnp.any(chosen, -1)  # [E, 64]
    before = jnp.cumsum(routed, 0, dtype=jnp.int32) - routed.astype(jnp.int32)
    return Routing(
        gates=jnp.sum(jnp.where(chosen, gates[None], 0), -1),
        ranks=jnp.where(routed, before, A),
        active=jnp.pad(jnp.sort(jnp.where(jnp.any(routed, 1), place, E)), (0, -E % ROWS), constant_values=E),
        scale=jnp.ones(ROWS, jnp.float32),
    )
