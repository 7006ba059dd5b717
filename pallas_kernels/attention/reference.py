"""Attention in plain jnp: an online softmax over blocks of keys, float32 inside.

The sink is where the running softmax starts: maximum = sink, denominator = 1, value = 0. One loop serves whole sequences
and paged caches; they differ in where a block of keys comes from.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

KEY_BLOCK = 512
SCORES = 1 << 24  # elements of a block of scores [B, N, queries, keys]: 64 MB in float32


def attention(q, k, v, sinks, *, window, segment_ids):
    B, T = q.shape[:2]
    block = min(T, KEY_BLOCK)
    k, v = (_pad(x, 1, block) for x in (k, v))
    positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    key_positions = _pad(positions, 1, block, -1)
    key_segments = None if segment_ids is None else _pad(segment_ids, 1, block, -1)

    def keys(j):
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, j * block, block, 1)
        segments = None if key_segments is None else cut(key_segments)
        return cut(key_positions), segments, lambda: (cut(k).swapaxes(1, 2), cut(v).swapaxes(1, 2))

    return _attend(q, positions, segment_ids, sinks, window, k.shape[1] // block, block, keys)


def paged_attention(q, k_pages, v_pages, table, q_positions, lengths, sinks, *, window):
    B, R = table.shape
    page = k_pages.shape[2]
    pages = min(R, max(1, KEY_BLOCK // page))  # pages a block of keys
    table = _pad(table, 1, pages)
    newest = ((lengths - 1) // page)[:, None]  # [B, 1]

    def keys(j):
        entry = j * pages + jnp.arange(pages, dtype=jnp.int32)[None, :]  # [1, pages]
        held = newest - (newest - entry) % R  # [B, pages] block of the sequence that lies in each entry
        held = jnp.where((held < 0) | (entry >= R), -1, held)
        at = held[:, :, None] * page + jnp.arange(page, dtype=jnp.int32)[None, None, :]
        at = jnp.where((held[:, :, None] < 0) | (at >= lengths[:, None, None]), -1, at).reshape(B, -1)
        ids = jax.lax.dynamic_slice_in_dim(table, j * pages, pages, 1)
        gather = lambda x: jnp.moveaxis(x[ids], 2, 1).reshape(B, x.shape[1], -1, x.shape[3])
        return at, None, lambda: (gather(k_pages), gather(v_pages))

    return _attend(q, q_positions, None, sinks, window, table.shape[1] // pages, pages * page, keys)


def _pad(x, axis, multiple, value=0):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths, constant_values=value)


def _attend(q, positions, segments, sinks, window, num_blocks: int, block: int, keys: Callable):
    """Splits the queries so that no block of scores grows past `SCORES`, then attends block by block.

    `keys(j)` gives positions [B, S] (-1: nothing there) and segments [B, S] (or None) of the j-th block of keys, and a
    function that reads its keys and values [B, K, S, H].
    """
    B, T, N, H = q.shape
    rows = max(16, SCORES // (B * N * block))
    if rows >= T:
        return _attend_rows(q, positions, segments, sinks, window, num_blocks, keys)
    cut = lambda x, value=0: jnp.moveaxis(_pad(x, 1, rows, value).reshape(B, -1, rows, *x.shape[2:]), 1, 0)
    parts = (cut(q), cut(positions, -1), None if segments is None else cut(segments, -2))
    out = jax.lax.map(lambda part: _attend_rows(*part, sinks, window, num_blocks, keys), parts)
    return jnp.moveaxis(out, 0, 1).reshape(B, -1, N, H)[:, :T]


def _attend_rows(q, positions, segments, sinks, window, num_blocks, keys):
    B, T, N, H = q.shape

    def visible(key_positions, key_segments):  # -> [B, T, S]
        age = positions[:, :, None] - key_positions[:, None, :]
        seen = (age >= 0) & (key_positions >= 0)[:, None, :]
        if window is not None:
            seen &= age < window
        if segments is not None:
            seen &= segments[:, :, None] == key_segments[:, None, :]
        return seen

    def add(carry, k, v, seen):  # k, v [B, K, S, H]
        top, denominator, value = carry
        K = k.shape[1]
        grouped = jnp.moveaxis(q.reshape(B, T, K, N // K, H), 1, 3)  # [B, K, G, T, H]
        scores = _dot("bkgth,bksh->bkgts", grouped, k).reshape(B, N, T, -1) * H**-0.5
        scores = jnp.where(seen[:, None], scores, -jnp.inf)
        higher = jax.lax.stop_gradient(jnp.maximum(top, jnp.max(scores, -1)))
        rescale = jnp.exp(top - higher)
        weights = jnp.exp(scores - higher[..., None])  # [B, N, T, S]
        denominator = denominator * rescale + jnp.sum(weights, -1)
        weights = weights.astype(v.dtype).reshape(B, K, N // K, T, -1)
        value = value * rescale[..., None] + _dot("bkgts,bksh->bkgth", weights, v).reshape(B, N, T, H)
        return higher, denominator, value

    sink = jnp.broadcast_to(sinks.astype(jnp.float32)[None, :, None], (B, N, T))
    top = jax.lax.stop_gradient(sink)
    carry = (top, jnp.exp(sink - top), jnp.zeros((B, N, T, H), jnp.float32))
    if num_blocks == 1:
        at, key_segments, read = keys(0)
        carry = add(carry, *read(), visible(at, key_segments))
    else:

        @jax.checkpoint
        def step(carry, j):
            at, key_segments, read = keys(j)
            seen = visible(at, key_segments)
            return jax.lax.cond(jnp.any(seen), lambda c: add(c, *read(), seen), lambda c: c, carry), None

        carry, _ = jax.lax.scan(step, carry, jnp.arange(num_blocks, dtype=jnp.int32))
    _, denominator, value = carry
    return (value / denominator[..., None]).swapaxes(1, 2)


def _dot(formula, a, b):
    precision = "highest" if a.dtype == jnp.float32 else None
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.float32, precision=precision)
