"""Attention in plain jnp: an online softmax over blocks of keys, float32 inside, the queries' dtype outside.

The sink is where the running softmax starts: maximum = sink, denominator = 1, value = 0. One loop serves whole sequences
and paged caches; they differ in where a block of keys comes from.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.attention import fp8_pages

KEY_BLOCK = 512
DECODE_KEY_BLOCK = 256  # for one query a row: a smaller block reads fewer keys that nobody sees
SCORES = 1 << 24  # elements of a block of scores [B, N, queries, keys]: 64 MB in float32


class _Keys(NamedTuple):
    """Where blocks of keys come from."""

    block: int  # keys a block
    first: jax.Array  # [B, blocks] int32 least position in each block
    last: jax.Array  # [B, blocks] int32 greatest position in it; -1 where it is empty
    at: Callable  # j -> positions [B, S] (-1: nothing there) and segments [B, S] or None
    read: Callable  # j -> keys and values [B, K, S, H], and which of them are finite [B, S]; None where that was not looked at


def attention(q, k, v, sinks, *, window, segment_ids):
    B, T = q.shape[:2]
    block = min(T, KEY_BLOCK)
    k, v, finite = _finite(*(_pad(x, 1, block) for x in (k, v)), (2, 3))
    positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None, :], (B, T))
    key_positions = _pad(positions, 1, block, -1)
    key_segments = None if segment_ids is None else _pad(segment_ids, 1, block, -1)
    cut = lambda x, j: jax.lax.dynamic_slice_in_dim(x, j * block, block, 1)
    blocks = key_positions.reshape(B, -1, block)
    keys = _Keys(
        block,
        blocks[:, :, 0],
        jnp.max(blocks, -1),
        lambda j: (cut(key_positions, j), None if key_segments is None else cut(key_segments, j)),
        lambda j: (cut(k, j).swapaxes(1, 2), cut(v, j).swapaxes(1, 2), cut(finite, j)),
    )
    return _attend(q, positions, segment_ids, sinks, window, keys)


def paged_attention(q, k_pages, v_pages, table, q_positions, lengths, sinks, *, window):
    B, R = table.shape
    page = k_pages.shape[2]
    pages = min(R, max(1, (DECODE_KEY_BLOCK if q.shape[1] == 1 else KEY_BLOCK) // page))  # a block
    newest = ((lengths - 1) // page)[:, None]  # [B, 1]
    entry = jnp.arange(R, dtype=jnp.int32)[None, :]
    held = newest - (newest - entry) % R  # [B, R] block of the sequence that lies in each entry
    first = _pad(jnp.where(held < 0, -1, held * page), 1, pages, -1)  # position of each entry's first key
    table = _pad(table, 1, pages)

    def at(j):
        start = jax.lax.dynamic_slice_in_dim(first, j * pages, pages, 1)[:, :, None]
        positions = start + jnp.arange(page, dtype=jnp.int32)[None, None, :]
        return jnp.where((start < 0) | (positions >= lengths[:, None, None]), -1, positions).reshape(B, -1), None

    def read(j):
        ids = jax.lax.dynamic_slice_in_dim(table, j * pages, pages, 1)
        read = lambda x: fp8_pages.take(x, ids, q.dtype) if isinstance(x, fp8_pages.Fp8Pages) else x[ids]
        k, v = (jnp.moveaxis(read(x), 2, 1).reshape(B, x.shape[1], -1, x.shape[3]) for x in (k_pages, v_pages))
        return (k, v, None) if q.shape[1] == 1 else _finite(k, v, (1, 3))

    starts = first.reshape(B, -1, pages)
    last = jnp.max(starts, -1)
    last = jnp.where(last < 0, -1, jnp.minimum(last + page, lengths[:, None]) - 1)
    keys = _Keys(pages * page, jnp.min(jnp.where(starts < 0, last[:, :, None], starts), -1), last, at, read)
    return _attend(q, q_positions, None, sinks, window, keys)


def _pad(x, axis, multiple, value=0):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths, constant_values=value)


def _attend(q, positions, segments, sinks, window, keys: _Keys):
    """Splits the queries so that no block of scores grows past `SCORES`, then attends block by block."""
    B, T, N, H = q.shape
    rows = max(16, SCORES // (B * N * keys.block))
    if rows >= T:
        return _attend_rows(q, positions, segments, sinks, window, keys)
    cut = lambda x, value=0: jnp.moveaxis(_pad(x, 1, rows, value).reshape(B, -1, rows, *x.shape[2:]), 1, 0)
    parts = (cut(q), cut(positions, -1), None if segments is None else cut(segments, -2))
    out = jax.lax.map(lambda part: _attend_rows(*part, sinks, window, keys), parts)
    return jnp.moveaxis(out, 0, 1).reshape(B, -1, N, H)[:, :T]


def _attend_rows(q, positions, segments, sinks, window, keys: _Keys):
    B, T, N, H = q.shape

    def visible(key_positions, key_segments):  # -> [B, T, S]
        age = positions[:, :, None] - key_positions[:, None, :]
        seen = (age >= 0) & (key_positions >= 0)[:, None, :]
        if window is not None:
            seen &= age < window
        if segments is not None:
            seen &= segments[:, :, None] == key_segments[:, None, :]
        return seen

    def add(carry, j):
        top, denominator, value = carry
        k, v, finite = keys.read(j)  # [B, K, S, H]
        K = k.shape[1]
        grouped = jnp.moveaxis(q.reshape(B, T, K, N // K, H), 1, 3).reshape(B, K, -1, H)  # [B, K, G*T, H]
        seen = visible(*keys.at(j))
        if finite is None:  # of one query: what it does not see is zeros
            v = jnp.where(seen[..., None], v, 0)
        masked = jnp.where(seen, 0.0 if finite is None else jnp.where(finite, 0.0, jnp.nan)[:, None], -jnp.inf)
        scores = dot("bkmh,bksh->bkms", grouped, k).reshape(B, N, T, -1) * H**-0.5
        scores = jnp.where(masked[:, None] == 0, scores, masked[:, None])
        higher = jax.lax.stop_gradient(jnp.maximum(top, jnp.max(scores, -1)))
        rescale = jnp.exp(top - higher)
        weights = jnp.exp(scores - higher[..., None])  # [B, N, T, S]
        denominator = denominator * rescale + jnp.sum(weights, -1)
        weights = weights.astype(v.dtype).reshape(B, K, -1, weights.shape[-1])
        value = value * rescale[..., None] + dot("bkms,bksh->bkmh", weights, v).reshape(B, N, T, H)
        return higher, denominator, value

    sink = jnp.broadcast_to(sinks.astype(jnp.float32)[None, :, None], (B, N, T))
    top = jax.lax.stop_gradient(sink)
    carry = (top, jnp.exp(sink - top), jnp.zeros((B, N, T, H), jnp.float32))
    num_blocks = keys.first.shape[1]
    if num_blocks == 1:
        carry = add(carry, 0)
    else:
        newest = jnp.max(positions, 1)[:, None]
        oldest = jnp.min(jnp.where(positions < 0, newest, positions), 1)[:, None] - (newest + 1 if window is None else window - 1)
        needed = jnp.any((keys.last >= 0) & (keys.first <= newest) & (keys.last >= oldest), 0)  # [blocks]

        @jax.checkpoint
        def step(carry, block):
            j, needed = block
            return jax.lax.cond(needed, add, lambda carry, j: carry, carry, j), None

        carry, _ = jax.lax.scan(step, carry, (jnp.arange(num_blocks, dtype=jnp.int32), needed))
    _, denominator, value = carry
    return (value / denominator[..., None]).swapaxes(1, 2).astype(q.dtype)


def _finite(k, v, axes):
    """Keys and values with zeros for those of which one is not finite, and which are, over heads and width: `axes`.

    A weight of zero, or a cotangent, makes NaN of what is not finite. Whoever sees such a key gets NaN for its score instead.
    """
    finite = jnp.all(jnp.isfinite(k) & jnp.isfinite(v), axes)
    return *(jnp.where(jnp.expand_dims(finite, axes), x, 0) for x in (k, v)), finite


def dot(formula, a, b):
    """An einsum that sums in float32, at full precision where its operands are float32."""
    precision = "highest" if a.dtype == jnp.float32 else None
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.float32, precision=precision)
