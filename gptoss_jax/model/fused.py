"""A decode step for Hopper GPUs in eight launches a layer: the same numbers as the layers of `transformer`, no hooks.

Norms begin where the residual stream is written and end behind the next product; bias, RoPE and the writing of the cache belong to
the projection that makes them. Every op runs as a kernel where there is one, and as its formula elsewhere. On a mesh all of it runs on
each device's own pieces, and parts are added up after attention and after the experts: two all-reduces a layer.
"""

import functools

import jax
import jax.numpy as jnp

from gptoss_jax.config import Config
from gptoss_jax.model import rope
from gptoss_jax.model.cache import Cache, cache_axes, own_pages, places
from gptoss_jax.model.layers import look_up
from gptoss_jax.model.params import Attention, Moe, Params, has_adapter, param_axes
from gptoss_jax.parallel.sharding import Partition, local, once, total
from pallas_kernels.attention import Fp8Pages, paged_attention
from pallas_kernels.moe import decode as experts
from pallas_kernels.mxfp4.tiles import Tiles
from pallas_kernels.norm import add_norm, scaled
from pallas_kernels.projection import project_out, project_qkv, unembed
from pallas_kernels.routing import route, router

ROWS = 64  # of a tensor core's operand


def covers(params: Params, rows: int, cache: Cache | None = None) -> bool:
    """Whether a step of this many rows takes the fused form: experts in tiles, plain pages, no adapter, a device's rows fit one operand."""
    if has_adapter(params) or cache is not None and isinstance(cache.k[0], Fp8Pages):
        return False
    replicas = 1 if params.partition is None else params.partition.parts("batch")
    return rows <= ROWS * replicas and isinstance(params.layers[0].moe.gate_up, Tiles)


def decode_step(
    params: Params,
    config: Config,
    cache: Cache,
    tokens: jax.Array,  # [B] int32
    active: jax.Array,  # [B] bool
) -> tuple[jax.Array, Cache]:  # [B, V] float32
    """Appends one token to each active row; returns the logits after it, which mean nothing for the others.

    On a Hopper weights are read before it is their launch's turn: `params` are arguments of the program, or as old.
    """
    lies = cache_axes(cache)
    step = functools.partial(_step, config, params.partition)
    step = local(params.partition, step, [param_axes(params, config), lies, ("batch",), ("batch",)], (("batch", "vocab"), lies))
    return step(params, cache, tokens, active)


def _step(config: Config, partition: Partition | None, params: Params, cache: Cache, tokens, active):
    """The step on one device's pieces."""
    eps, dtype = config.rms_norm_eps, params.embedding.dtype
    positions, length = cache.length, cache.length + active.astype(jnp.int32)
    with jax.named_scope("embed"):
        cos, sin = (table[:, 0] for table in rope.tables(config, positions[:, None]))
        gains = [layer.attention.norm for layer in params.layers[1:]] + [params.norm]
        x, rows, square_sum = scaled(look_up(partition, params.embedding, tokens), params.layers[0].attention.norm, dtype)
    pages_k, pages_v = list(cache.k), list(cache.v)
    some_layer = {config.window(i): i for i in range(config.num_hidden_layers)}  # layers with one window have one table
    tables = {window: own_pages(partition, cache.table(window), len(pages_k[i])) for window, i in some_layer.items()}
    new = {window: _places(tables[window], pages_k[i], positions, active) for window, i in some_layer.items()}
    for i, layer in enumerate(params.layers):
        with jax.named_scope(f"layers.{i}"):
            window = config.window(i)
            with jax.named_scope("attention"):
                w = layer.attention
                q, pages_k[i], pages_v[i] = project_qkv(
                    rows, square_sum, w.qkv, w.qkv_bias, cos, sin, pages_k[i], pages_v[i], *new[window], eps=eps, early=True
                )
                heads = paged_attention(
                    q[:, None], pages_k[i], pages_v[i], tables[window], positions[:, None], length, w.sinks, window=window
                )
                x, rows = _join_heads(partition, w, heads.reshape(len(x), -1), x, layer.moe.norm)
            with jax.named_scope("moe"):
                terms = _experts(partition, layer.moe, config, x, rows, active)
                x, rows, square_sum = add_norm(x, terms, active, gains[i], dtype=dtype)
    with jax.named_scope("unembed"):
        logits = unembed(rows, square_sum, params.unembedding, eps=eps, early=True)
    return logits, cache.replace(k=tuple(pages_k), v=tuple(pages_v), length=length)


def _places(table: jax.Array, pages: jax.Array, positions: jax.Array, active: jax.Array) -> list[jax.Array]:
    """Page and offset, each [B], of the new keys and values of all layers with this table."""
    count, _, size, _ = pages.shape
    return [x[:, 0] for x in places(table, positions[:, None], active[:, None], size, count)]


def _join_heads(partition: Partition | None, w: Attention, heads, x, gain) -> tuple[jax.Array, jax.Array]:
    """The residual stream [B, D] with what attention adds to it, and that times the next norm's gain."""
    if partition is None or partition.parts("heads") == 1:
        return project_out(heads, w.out, w.out_bias, x, gain, early=True)
    part, _ = project_out(heads, w.out, once(partition, w.out_bias, "heads"), jnp.zeros_like(x), gain, early=True)
    x, rows, _ = add_norm(x, total(partition, part, "heads")[None], jnp.ones(len(x), bool), gain, dtype=w.out.dtype)
    return x, rows


def _experts(partition: Partition | None, w: Moe, config: Config, x, rows, active) -> jax.Array:
    """What each row's experts add to it, in one or more terms [A or 1, B, D]."""
    num_active, swiglu = config.num_experts_per_tok, {"limit": config.swiglu_limit, "alpha": config.swiglu_alpha}
    moments = router(x, w.norm, w.router, active, early=True)
    routing = route(moments, w.router_bias, num_active=num_active, width=config.hidden_size, eps=config.rms_norm_eps)
    h = experts.gate_up(rows, routing, w.gate_up, w.gate_up_bias, num_active=num_active, **swiglu)
    terms = experts.down(h, routing, w.down, once(partition, w.down_bias, "expert_hidden"), num_active=num_active, early=True)
    if partition is None or partition.parts("expert_hidden") == 1:
        return terms
    part = functools.reduce(jnp.add, list(terms))
    return total(partition, jnp.where(active[:, None], part, 0), "expert_hidden")[None]
