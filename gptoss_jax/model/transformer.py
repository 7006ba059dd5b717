"""gpt-oss from token ids to logits: `forward` without a cache, `prefill` and `decode_step` with one. Pure; jit them.

Arguments go (params, config, cache, data, *, options); `config` is static. A product is computed in its weight's dtype
with float32 accumulation; norms, router, softmax and the residual stream are float32.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from gptoss_jax.config import Config
from gptoss_jax.model import fused, rope
from gptoss_jax.model.attention import attention_block
from gptoss_jax.model.cache import Cache, places, write
from gptoss_jax.model.hooks import Hook, tap
from gptoss_jax.model.layers import linear, rms_norm
from gptoss_jax.model.moe import moe_block
from gptoss_jax.model.params import Params
from pallas_kernels.attention import attention, paged_attention


def forward(
    params: Params,
    config: Config,
    tokens: jax.Array,  # [B, T] int32
    *,
    segment_ids: jax.Array | None = None,  # [B, T] int32
    hook: Hook | None = None,
) -> jax.Array:  # [B, T, V] float32
    """Logits at every position of whole sequences, without a cache. Differentiable and vmappable.

    Args:
      tokens: ids below V; padding belongs behind a row's end, where no real token sees it.
      segment_ids: for rows packed with several sequences: a token sees its own segment only.
      hook: see `gptoss_jax.model.hooks`.
    """
    B, T = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None, :], (B, T))

    def attend(layer, q, k, v):
        sinks = params.layers[layer].attention.sinks
        return attention(q, k, v, sinks, window=config.window(layer), segment_ids=segment_ids)

    x = _layers(params, config, tokens, positions, None, attend, hook)
    return unembed(params, config, x, hook=hook)


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
    chex.assert_shape([num_tokens, cache.length], (B,))
    step = jnp.arange(T, dtype=jnp.int32)[None, :]
    positions = cache.length[:, None] + step
    valid = step < num_tokens[:, None]
    length = cache.length + num_tokens
    pages_k, pages_v = list(cache.k), list(cache.v)

    def attend(layer, q, k, v):
        window = config.window(layer)
        table = cache.table(window)
        page, offset = places(table, positions, valid, pages_k[layer].shape[2], pages_k[layer].shape[0])
        pages_k[layer] = write(pages_k[layer], page, offset, k)
        pages_v[layer] = write(pages_v[layer], page, offset, v)
        sinks = params.layers[layer].attention.sinks
        return paged_attention(q, pages_k[layer], pages_v[layer], table, positions, length, sinks, window=window)

    x = _layers(params, config, tokens, positions, valid, attend, hook)
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
    if hook is None and fused.covers(params, len(tokens)):
        return fused.decode_step(params, config, cache, tokens, active)
    return prefill(params, config, cache, tokens[:, None], active.astype(jnp.int32), hook=hook)


def unembed(params: Params, config: Config, x: jax.Array, *, hook: Hook | None = None) -> jax.Array:
    """Hidden states [B, T, D] -> logits [B, T, V] float32."""
    with jax.named_scope("unembed"):
        x = tap(hook, "norm", rms_norm(x, params.norm, config.rms_norm_eps))
        return tap(hook, "logits", linear(x, params.unembedding))


def _layers(
    params: Params,
    config: Config,
    tokens: jax.Array,
    positions: jax.Array,
    valid: jax.Array | None,
    attend: Callable[[int, jax.Array, jax.Array, jax.Array], jax.Array],
    hook: Hook | None,
) -> jax.Array:
    """The residual stream [B, T, D] float32 after the last layer."""
    with jax.named_scope("embed"):
        x = tap(hook, "embedding", params.embedding[tokens].astype(jnp.float32))
        angles = rope.tables(config, positions)
    for i, layer in enumerate(params.layers):
        name = f"layers.{i}"
        with jax.named_scope(name):
            x = tap(hook, f"{name}.residual_pre", x)
            x = x + attention_block(layer.attention, config, x, angles, lambda *qkv, i=i: attend(i, *qkv), hook, f"{name}.attention")
            x = tap(hook, f"{name}.residual_mid", x)
            x = x + moe_block(layer.moe, config, x, valid, params.embedding.dtype, hook, f"{name}.moe")
            x = tap(hook, f"{name}.residual_post", x)
    return x
