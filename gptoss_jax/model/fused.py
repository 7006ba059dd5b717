"""A decode step for Hopper GPUs in eight launches a layer: the same numbers as the layers of `transformer`, no hooks.

Norms begin where the residual stream is written and end behind the next product; bias, RoPE and the writing of the cache belong to
the projection that makes them. Every op runs as a kernel where there is one, and as its formula elsewhere.
"""

import jax
import jax.numpy as jnp

from gptoss_jax.config import Config
from gptoss_jax.model import rope
from gptoss_jax.model.cache import Cache, places
from gptoss_jax.model.params import Layer, Params
from pallas_kernels.attention import paged_attention
from pallas_kernels.moe import decode as experts
from pallas_kernels.mxfp4.tiles import Tiles
from pallas_kernels.norm import add_norm, scaled
from pallas_kernels.projection import project_out, project_qkv, unembed
from pallas_kernels.routing import route, router

ROWS = 64  # of a tensor core's operand


def covers(params: Params, rows: int) -> bool:
    """Whether a step of this many rows takes the fused form: experts are in tiles, and the rows fit one operand."""
    return rows <= ROWS and isinstance(params.layers[0].moe.gate_up, Tiles)


def decode_step(
    params: Params,
    config: Config,
    cache: Cache,
    tokens: jax.Array,  # [B] int32
    active: jax.Array,  # [B] bool
) -> tuple[jax.Array, Cache]:  # [B, V] float32
    """Appends one token to each active row; returns the logits after it, which mean nothing for the others."""
    eps, dtype = config.rms_norm_eps, params.embedding.dtype
    positions, length = cache.length, cache.length + active.astype(jnp.int32)
    with jax.named_scope("embed"):
        cos, sin = (table[:, 0] for table in rope.tables(config, positions[:, None]))
        gains = [layer.attention.norm for layer in params.layers[1:]] + [params.norm]
        x, rows, square_sum = scaled(params.embedding[tokens].astype(jnp.float32), params.layers[0].attention.norm, dtype)
    pages_k, pages_v = list(cache.k), list(cache.v)
    some_layer = {config.window(i): i for i in range(config.num_hidden_layers)}  # layers with one window have one table
    new = {window: _places(cache, i, window, positions, active) for window, i in some_layer.items()}
    for i, layer in enumerate(params.layers):
        with jax.named_scope(f"layers.{i}"):
            window = config.window(i)
            table = cache.table(window)
            with jax.named_scope("attention"):
                w = layer.attention
                q, pages_k[i], pages_v[i] = project_qkv(
                    rows, square_sum, w.qkv, w.qkv_bias, cos, sin, pages_k[i], pages_v[i], *new[window], eps=eps
                )
                heads = paged_attention(
                    q[:, None], pages_k[i], pages_v[i], table, positions[:, None], length, w.sinks, window=window
                )
                x, rows = project_out(heads.reshape(len(x), -1), w.out, w.out_bias, x, layer.moe.norm)
            with jax.named_scope("moe"):
                terms = _experts(layer, config, x, rows, active)
                x, rows, square_sum = add_norm(x, terms, active, gains[i], dtype=dtype)
    with jax.named_scope("unembed"):
        logits = unembed(rows, square_sum, params.unembedding, eps=eps)
    return logits, cache.replace(k=tuple(pages_k), v=tuple(pages_v), length=length)


def _places(cache: Cache, layer: int, window: int | None, positions: jax.Array, active: jax.Array) -> list[jax.Array]:
    """Page and offset, each [B], of the new keys and values of all layers with this window."""
    pages, _, size, _ = cache.k[layer].shape
    return [x[:, 0] for x in places(cache.table(window), positions[:, None], active[:, None], size, pages)]


def _experts(layer: Layer, config: Config, x, rows, active):
    """What each row's experts add to it, [A, B, D] float32."""
    w = layer.moe
    active_experts = config.num_experts_per_tok
    moments = router(x, w.norm, w.router, active)
    routing = route(moments, w.router_bias, num_active=active_experts, width=config.hidden_size, eps=config.rms_norm_eps)
    h = experts.gate_up(rows, routing, w.gate_up, w.gate_up_bias, num_active=active_experts, limit=config.swiglu_limit)
    return experts.down(h, routing, w.down, w.down_bias, num_active=active_experts)
