"""Which tokens may be drawn: min-p, top-k and top-p as masks [B, V], exact, without sorting the vocabulary.

Tokens are ranked by logit, highest first, equals by id, lowest first. Top-k and top-p each keep a prefix of that ranking:
the shortest whose count, or mass, reaches a target. Its last member is found by bisection, first on the 32 bits of its
logit, then, only where logits tie, on the bits of its id: each step is one masked sum over the vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def rank_keys(
    logits: jax.Array,  # [B, V] f32, no NaN
) -> jax.Array:  # [B, V] uint32
    """Integers in the order of the logits: equal where they are equal (-0 and 0 too), greater where they are greater."""
    bits = jax.lax.bitcast_convert_type(jnp.where(logits == 0, jnp.float32(0), logits), jnp.uint32)
    # A float's bits count its distance from 0: above it lift them past all negatives, below it turn them over.
    return jnp.where(bits >> 31 == 0, bits | jnp.uint32(1 << 31), ~bits)


def shortest_prefix(
    keys: jax.Array,  # [B, V] uint32
    measure: Callable[[jax.Array], jax.Array],  # mask [B, V] bool -> [B]; never falls when the mask grows
    target: jax.Array,  # [B], above 0 and at most measure(everything)
) -> jax.Array:  # [B, V] bool
    """The fewest entries, greatest key first and of equals lowest id first, whose measure reaches the target."""
    batch, vocab = keys.shape
    ids = jax.lax.broadcasted_iota(jnp.uint32, keys.shape, 1)

    def lower_key(step, least):  # builds the greatest `least` that still reaches the target, highest bit first
        trial = least | jnp.uint32(1 << 31) >> step.astype(jnp.uint32)
        return jnp.where(measure(keys >= trial[:, None]) >= target, trial, least)

    least = jax.lax.fori_loop(0, 32, lower_key, jnp.zeros(batch, jnp.uint32))[:, None]
    above, tied = keys > least, keys == least

    def break_ties():
        width = vocab.bit_length()

        def raise_id(step, last):  # builds the greatest `last` before which the target is not yet reached
            trial = last | jnp.uint32(1 << (width - 1)) >> step.astype(jnp.uint32)
            return jnp.where(measure(above | tied & (ids < trial[:, None])) < target, trial, last)

        last = jax.lax.fori_loop(0, width, raise_id, jnp.zeros(batch, jnp.uint32))
        return above | tied & (ids <= last[:, None])

    crowded = jnp.any(jnp.sum(tied, axis=-1, dtype=jnp.int32) > 1)
    return jax.lax.cond(crowded, break_ties, lambda: above | tied)


def keep_min_p(
    scaled: jax.Array,  # [B, V] f32: logits / temperature, less their maximum
    log_min_p: jax.Array,  # [B] f32; -inf keeps all
) -> jax.Array:  # [B, V] bool
    """Tokens whose probability is at least `min_p` times that of the most probable."""
    return scaled >= log_min_p[:, None]


def keep_top_k(
    keys: jax.Array,  # [B, V] uint32, of `rank_keys`
    k: jax.Array,  # [B] int32, 1 to V
) -> jax.Array:  # [B, V] bool
    """The k tokens with the highest logits, exactly k: of equals the lowest ids."""
    return shortest_prefix(keys, lambda mask: jnp.sum(mask, axis=-1, dtype=jnp.int32), k)


def keep_top_p(
    keys: jax.Array,  # [B, V] uint32, of `rank_keys`
    scaled: jax.Array,  # [B, V] f32: as in keep_min_p; -inf for tokens dropped before
    p: jax.Array,  # [B] f32 in (0, 1]; 1 keeps all
) -> jax.Array:  # [B, V] bool
    """The fewest most probable tokens that hold at least `p` of the mass of the tokens not dropped before; never none.

    Sums of floats depend on their order, and XLA may order them differently for another batch size. So a row's
    probabilities are summed as fixed-point integers (three limbs; resolution 2**-42 of the most probable token's at
    V = 201,088), which come out the same in any order: the kept set depends on the row alone.
    """
    bits = 32 - keys.shape[-1].bit_length()  # V * 2**bits < 2**32: no sum of limbs overflows
    unit = jnp.float32(2**bits)
    rest, limbs = jnp.exp(scaled), []  # 1 for the most probable token
    for _ in range(3):
        limb = jnp.floor(rest * unit)
        rest = rest * unit - limb  # exact
        limbs.append(limb.astype(jnp.uint32))

    def mass(mask):  # in units of the last limb
        high, middle, low = (jnp.sum(jnp.where(mask, x, jnp.uint32(0)), axis=-1, dtype=jnp.uint32) for x in limbs)
        return (high.astype(jnp.float32) * unit + middle.astype(jnp.float32)) * unit + low.astype(jnp.float32)

    everything = mass(jnp.ones(keys.shape, bool))
    target = jnp.maximum(p * everything, jnp.float32(1))
    return shortest_prefix(keys, mass, target) | (p >= 1)[:, None]
