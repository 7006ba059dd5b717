"""The sites of attention that are computed on request: statistics of the softmax's rows, the sinks' share, the pattern.

What attention itself computes never holds them. Where a hook asks for one it is computed beside it, and where a hook changes one,
what the heads read is computed anew from it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gptoss_jax.model.cache import Cache, own_pages, pages_axes
from gptoss_jax.model.hooks import Hook, asked, tap
from gptoss_jax.parallel.sharding import Axes, Partition, local
from pallas_kernels.attention import Fp8Pages, fp8_pages
from pallas_kernels.attention.weights import Seen, statistics, weighed, weights

_SITES = ("scores_max", "scores_lse", "sink_mass", "pattern")
_HEADS: Axes = ("batch", None, "heads")
_ROW: Axes = ("batch", None)
_KEYS: Axes = ("batch", None, "kv_heads", None)


def attention_sites(
    hook: Hook | None,
    name: str,
    heads: jax.Array,  # [B, T, N, H]
    q: jax.Array,  # [B, T, N, H]
    look: Callable[[], Seen],
    sinks: jax.Array,  # [N] float32
    window: int | None,
    partition: Partition | None,
) -> jax.Array:  # [B, T, N, H]
    """What the heads read: `heads`, unless a hook changes what they are made from. `look` tells what the queries see."""
    if not any(asked(hook, f"{name}.{site}") for site in _SITES):
        return heads
    seen = look()
    ins = Seen(_ROW, _KEYS, _KEYS, _ROW, *(None if x is None else _ROW for x in seen[4:]))
    look_at = lambda q, seen, sinks: statistics(q, seen, sinks, window=window)
    top, lse = local(partition, look_at, [(*_HEADS, None), ins, ("heads",)], (_HEADS,) * 2)(q, seen, sinks)
    for site, value in (("scores_max", top), ("scores_lse", lse)):
        if asked(hook, f"{name}.{site}"):
            tap(hook, f"{name}.{site}", value)
    share = None  # of the keys, as a part of what it was
    if asked(hook, f"{name}.sink_mass"):
        mass = jnp.exp(sinks[None, None, :] - lse)
        patched = tap(hook, f"{name}.sink_mass", mass)
        if patched is not mass:
            share = jnp.where(mass < 1, (1 - patched) / jnp.where(mass < 1, 1 - mass, 1), 0)[..., None]
            heads = (heads.astype(jnp.float32) * share).astype(heads.dtype)
    if asked(hook, f"{name}.pattern"):
        weigh = lambda q, seen, lse: weights(q, seen, lse, window=window)
        pattern = local(partition, weigh, [(*_HEADS, None), ins, _HEADS], (*_HEADS, None))(q, seen, lse)
        pattern = pattern if share is None else pattern * share
        patched = tap(hook, f"{name}.pattern", pattern)
        if patched is not pattern:
            dtype = heads.dtype
            read = lambda pattern, seen: weighed(pattern, seen, dtype)
            heads = local(partition, read, [(*_HEADS, None), ins], (*_HEADS, None))(patched, seen)
    return heads


def in_sequence(positions: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None) -> Seen:
    """What the queries of whole sequences see: keys and values [B, T, K, H] at positions [B, T], within segments [B, T]."""
    return Seen(positions, k, v, positions, segment_ids, segment_ids)


def in_cache(
    partition: Partition | None, cache: Cache, layer: int, window: int | None, positions: jax.Array, lengths: jax.Array, dtype
) -> Seen:
    """What new queries at positions [B, T] see of one layer's pages, which hold `lengths` [B] tokens: by position, 0 to the context."""
    k, v, table = cache.k[layer], cache.v[layer], cache.table(window)
    context = cache.full_table.shape[1] * k.shape[2]

    def run(k, v, table, lengths):
        table = own_pages(partition, table, k.shape[0])
        R, page = table.shape[1], k.shape[2]
        block = jnp.arange(context // page, dtype=jnp.int32)
        newest = ((lengths - 1) // page)[:, None]
        held = (block[None, :] <= newest) & (block[None, :] > newest - R)
        ids = table[:, block % R]
        position = block[:, None] * page + jnp.arange(page, dtype=jnp.int32)[None, :]  # [blocks, page]
        there = held[:, :, None] & (position[None] < lengths[:, None, None])
        read = lambda x: fp8_pages.take(x, ids, dtype) if isinstance(x, Fp8Pages) else x[ids]  # [B, blocks, K, page, H]
        flat = lambda x: jnp.moveaxis(read(x), 2, 3).reshape(len(ids), context, *x.shape[1:2], x.shape[3])
        return flat(k), flat(v), jnp.where(there, position[None], -1).reshape(len(ids), context)

    ins = [pages_axes(k), pages_axes(v), _ROW, ("batch",)]
    k, v, there = local(partition, run, ins, (_KEYS, _KEYS, _ROW))(k, v, table, lengths)
    return Seen(positions, k, v, there)
