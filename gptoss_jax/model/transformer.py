"""gpt-oss from token ids to logits: `forward` without a cache, `prefill` and `decode_step` with one. Pure; jit them.

Arguments go (params, config, cache, data, *, options); `config` is static. A product is computed in its weight's dtype
with float32 accumulation; norms, router, softmax and the residual stream are float32. Arrays are whole ones: on a mesh
(`params.partition`) only products with weights and attention look at a device's own piece.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from gptoss_jax.config import Config
from gptoss_jax.model import fused, inputs, rope, views
from gptoss_jax.model.attention import HEADS, KV_HEADS, ROWS, attention_block
from gptoss_jax.model.cache import Cache, own_pages, pages_axes, places, write
from gptoss_jax.model.hooks import Hook, carried, tap
from gptoss_jax.model.layers import linear, look_up, rms_norm
from gptoss_jax.model.moe import moe_block
from gptoss_jax.model.params import Layer, Params
from gptoss_jax.parallel.sharding import check_rows, local
from pallas_kernels import dispatch
from pallas_kernels.attention import attention, paged_attention
from pallas_kernels.attention.weights import Seen


def _without(run: Callable) -> Callable:
    """`run(params, ...)`, traced without the kernels that the params do without: XLA's forms are in their places."""

    @functools.wraps(run)
    def traced(params, *args, **options):
        if not isinstance(params, Params):
            raise ValueError(f"params must be Params; got {type(params).__name__}; pass model.params, and behind them model.config.")
        with dispatch.without(params.without):
            return run(params, *args, **options)

    return traced


@_without
def forward(
    params: Params,
    config: Config,
    tokens: jax.Array,  # [B, T] int32
    *,
    segment_ids: jax.Array | None = None,  # [B, T] int32
    remat: bool = False,
    hook: Hook | None = None,
) -> jax.Array:  # [B, T, V] float32
    """Logits at every position of whole sequences, without a cache. Differentiable and vmappable.

    Args:
      tokens: ids below V; padding belongs behind a row's end, where no real token sees it.
      remat: for derivatives: keep the residual stream before each layer only, and compute the layer again on the way back.
      segment_ids: for rows packed with several sequences: a token sees its own segment only.
      hook: see `gptoss_jax.model.hooks`.

    Raises:
      ValueError: params and config are not one model's; tokens or segment_ids are no such arrays, or, where their values are known (not
        under a trace), ids are not of the vocabulary; rows are longer than the model; or they lie on different devices.
    """
    inputs.check(params, config, tokens, segment_ids, hook)
    B, T = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None, :], (B, T))

    rows = None if segment_ids is None else ("batch", None)

    def attend(layer, q, k, v):
        def run(q, k, v, sinks, segment_ids):
            return attention(q, k, v, sinks, window=config.window(layer), segment_ids=segment_ids)

        run = local(params.partition, run, [HEADS, KV_HEADS, KV_HEADS, ("heads",), rows], HEADS)
        return run(q, k, v, params.layers[layer].attention.sinks, segment_ids)

    look = lambda layer, k, v: views.in_sequence(positions, k, v, segment_ids)
    x = _layers(params, config, tokens, positions, None, attend, look, hook, remat)
    return unembed(params, config, x, hook=hook)


@_without
def extend(
    params: Params,
    config: Config,
    cache: Cache,
    tokens: jax.Array,  # [B, T] int32
    num_tokens: jax.Array,  # [B] int32
    *,
    hook: Hook | None = None,
) -> tuple[jax.Array, Cache]:  # [B, T, D] float32
    """Appends the first `num_tokens` tokens of each row to the cache; returns their hidden states, before the last norm.

    Rows may append different numbers, none included; what a row does not append costs no expert work, and its hidden
    states mean nothing. No row may pass the cache's context, nor T the `chunk` that the cache was made for.
    """
    B, T = tokens.shape
    import chex

    chex.assert_shape([num_tokens, cache.length], (B,))
    step = jnp.arange(T, dtype=jnp.int32)[None, :]
    positions = cache.length[:, None] + step
    valid = step < num_tokens[:, None]
    length = cache.length + num_tokens
    pages_k, pages_v = list(cache.k), list(cache.v)

    def attend(layer, q, k, v):
        window = config.window(layer)

        def run(q, k, v, pages_k, pages_v, table, positions, valid, length, sinks):
            count, _, size, _ = pages_k.shape
            table = own_pages(params.partition, table, count)
            place = places(table, positions, valid, size, count)
            pages_k, pages_v = write(pages_k, *place, k), write(pages_v, *place, v)
            return paged_attention(q, pages_k, pages_v, table, positions, length, sinks, window=window), pages_k, pages_v

        rows, lie = ("batch", None), (pages_axes(pages_k[layer]), pages_axes(pages_v[layer]))
        ins = [HEADS, KV_HEADS, KV_HEADS, *lie, rows, rows, rows, ("batch",), ("heads",)]
        heads, pages_k[layer], pages_v[layer] = local(params.partition, run, ins, (HEADS, *lie))(
            *(q, k, v, pages_k[layer], pages_v[layer], cache.table(window), positions, valid, length), params.layers[layer].attention.sinks
        )
        return heads

    def look(layer, k, v):
        written = cache.replace(k=tuple(pages_k), v=tuple(pages_v))
        return views.in_cache(params.partition, written, layer, config.window(layer), positions, length, k.dtype)

    x = _layers(params, config, tokens, positions, valid, attend, look, hook)
    return x, cache.replace(k=tuple(pages_k), v=tuple(pages_v), length=length)


def prefill(
    params: Params,
    config: Config,
    cache: Cache,
    tokens: jax.Array,  # [B, T] int32
    num_tokens: jax.Array,  # [B] int32
    *,
    hook: Hook | None = None,
) -> tuple[jax.Array, Cache]:  # [B, V] float32
    """Appends a chunk of each row's prompt; returns the logits after its last token. See `extend`.

    The logits of a row that appends nothing mean nothing.
    """
    x, cache = extend(params, config, cache, tokens, num_tokens, hook=hook)
    last = jnp.maximum(num_tokens - 1, 0)[:, None, None]
    x = jnp.take_along_axis(x, last, 1)  # [B, 1, D]
    return unembed(params, config, x, hook=hook)[:, 0], cache


@_without
def decode_step(
    params: Params,
    config: Config,
    cache: Cache,
    tokens: jax.Array,  # [B] int32
    *,
    active: jax.Array,  # [B] bool
    hook: Hook | None = None,
) -> tuple[jax.Array, Cache]:  # [B, V] float32
    """Appends one token to each active row; returns the logits after it, which mean nothing for the others.

    Experts in tiles and few rows take the form that Hopper kernels make few launches of (`gptoss_jax.model.fused`); a hook needs the other.
    """
    if hook is None and fused.covers(params, len(tokens), cache):
        return fused.decode_step(params, config, cache, tokens, active)
    return prefill(params, config, cache, tokens[:, None], active.astype(jnp.int32), hook=hook)


def embed(params: Params, tokens: jax.Array) -> jax.Array:
    """Token ids [B, T] -> rows of the embedding [B, T, D] float32."""
    check_rows(params.partition, len(tokens))
    find = functools.partial(look_up, params.partition)
    return local(params.partition, find, [("vocab", None), ("batch", None)], ROWS)(params.embedding, tokens)


def unembed(params: Params, config: Config, x: jax.Array, *, hook: Hook | None = None) -> jax.Array:
    """Hidden states [B, T, D] -> logits [B, T, V] float32, on a mesh each device's part of the vocabulary."""
    with jax.named_scope("unembed"):
        x = tap(hook, "norm", rms_norm(x, params.norm, config.rms_norm_eps))
        product = local(params.partition, linear, [ROWS, ("vocab", None)], ("batch", None, "vocab"))
        return tap(hook, "logits", product(x, params.unembedding))


def _layers(
    params: Params,
    config: Config,
    tokens: jax.Array,
    positions: jax.Array,
    valid: jax.Array | None,
    attend: Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array],
    look: Callable[[int, jax.Array, jax.Array], Seen],
    hook: Hook | None,
    remat: bool = False,
) -> jax.Array:
    """The residual stream [B, T, D] float32 after the last layer."""
    partition, dtype = params.partition, params.embedding.dtype
    with jax.named_scope("embed"):
        x = tap(hook, "embedding", embed(params, tokens))
        angles = rope.tables(config, positions)

    def run(i: int, layer: Layer, x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
        name, window = f"layers.{i}", config.window(i)
        own = functools.partial(attend, i), functools.partial(look, i)
        with jax.named_scope(name):
            x = tap(hook, f"{name}.residual_pre", x)
            x = x + attention_block(layer.attention, config, x, angles, *own, window, hook, f"{name}.attention", partition)
            x = tap(hook, f"{name}.residual_mid", x)
            x = x + moe_block(layer.moe, config, x, valid, dtype, hook, f"{name}.moe", partition)
            return tap(hook, f"{name}.residual_post", x)

    for i, layer in enumerate(params.layers):
        step = functools.partial(run, i)
        x = (carried(jax.checkpoint, step, hook) if remat else step)(layer, x, angles)
    return x
