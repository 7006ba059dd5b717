"""What attention's softmax looks like from inside: its rows' statistics and the weight of every key. For study: plain jnp.

Scores are those of `reference`. Statistics take parts of the queries at a time; weights are one array [B, T, N, S].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.attention.reference import SCORES, dot


class Seen(NamedTuple):
    """What queries may look at."""

    q_positions: jax.Array  # [B, T] int32
    k: jax.Array  # [B, S, K, H]
    v: jax.Array  # [B, S, K, H]
    k_positions: jax.Array  # [B, S] int32; -1 where there is no key
    q_segments: jax.Array | None = None  # [B, T] int32
    k_segments: jax.Array | None = None  # [B, S] int32


def statistics(q: jax.Array, seen: Seen, sinks: jax.Array, *, window: int | None) -> tuple[jax.Array, jax.Array]:  # [B, T, N] float32
    """The greatest score of each query and head, -inf where it sees no key, and the log of its softmax's denominator, sink included.

    Args:
      q: [B, T, N, H] queries.
      seen: what they may look at.
      sinks: [N] float32.
      window: keys a query sees, itself included; None for all before it.
    """
    B, T, N, _ = q.shape
    rows = min(T, max(1, SCORES // (B * N * seen.k.shape[1])))

    def part(queries):
        scores = _scores(*queries, seen, window)
        top = jnp.max(scores, -1)
        safe = jax.lax.stop_gradient(jnp.maximum(top, sinks[None, :, None]))
        total = jnp.sum(jnp.exp(scores - safe[..., None]), -1) + jnp.exp(sinks[None, :, None] - safe)
        return top, safe + jnp.log(total)  # [B, N, rows]

    def cut(x):  # [parts, B, rows, ...]
        padded = jnp.pad(x, [(0, 0), (0, -T % rows)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(B, -1, rows, *x.shape[2:]), 1, 0)

    def joined(x):  # [parts, B, N, rows] -> [B, T, N]
        return jnp.transpose(x, (1, 0, 3, 2)).reshape(B, -1, N)[:, :T]

    top, lse = jax.lax.map(part, jax.tree.map(cut, (q, seen.q_positions, seen.q_segments)))
    return joined(top), joined(lse)


def weights(q: jax.Array, seen: Seen, lse: jax.Array, *, window: int | None) -> jax.Array:  # [B, T, N, S] float32
    """The weight of every key: exp(score - lse). They add up to what the sink leaves. `lse` is [B, T, N], of `statistics`."""
    scores = _scores(q, seen.q_positions, seen.q_segments, seen, window)
    return jnp.exp(scores - lse.swapaxes(1, 2)[..., None]).swapaxes(1, 2)


def weighed(pattern: jax.Array, seen: Seen, dtype) -> jax.Array:  # [B, T, N, H]
    """What heads read with these weights of keys [B, T, N, S], in the values' precision. A weight of 0 takes nothing, of NaN neither."""
    B, T, N, S = pattern.shape
    K = seen.v.shape[2]
    finite = jnp.all(jnp.isfinite(seen.v), (2, 3))  # [B, S]
    pattern = jnp.where(finite[:, None, None, :] | (pattern == 0), pattern, jnp.nan)
    values = jnp.where(finite[:, :, None, None], seen.v, 0)
    grouped = pattern.reshape(B, T, K, N // K, S).astype(values.dtype)
    return dot("btkgs,bskh->btkgh", grouped, values).reshape(B, T, N, -1).astype(dtype)


def _scores(q, positions, segments, seen: Seen, window) -> jax.Array:  # [B, N, T, S]
    B, T, N, H = q.shape
    K = seen.k.shape[2]
    scores = dot("btkgh,bskh->bkgts", q.reshape(B, T, K, N // K, H), seen.k).reshape(B, N, T, -1) * H**-0.5
    age = positions[:, :, None] - seen.k_positions[:, None, :]
    visible = (age >= 0) & (seen.k_positions >= 0)[:, None, :]
    if window is not None:
        visible &= age < window
    if segments is not None:
        visible &= segments[:, :, None] == seen.k_segments[:, None, :]
    return jnp.where(visible[:, None], scores, -jnp.inf)
