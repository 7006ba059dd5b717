"""The mixture-of-experts block of a layer: norm, router, top-A experts, their gated sum."""

import jax
import jax.numpy as jnp

from gptoss_jax.config import Config
from gptoss_jax.model.hooks import Hook, asked, tap
from gptoss_jax.model.layers import linear, rms_norm
from gptoss_jax.model.params import DOWN_AXES, GATE_UP_AXES, Moe, expert_axes
from gptoss_jax.parallel.sharding import Partition, local, once, total
from pallas_kernels.moe import moe


def moe_block(
    params: Moe,
    config: Config,
    x: jax.Array,  # [B, T, D] float32
    valid: jax.Array | None,  # [B, T] bool
    dtype: jnp.dtype,
    hook: Hook | None,
    name: str,
    partition: Partition | None,
) -> jax.Array:  # [B, T, D] float32
    """What the experts add to the residual stream. Tokens that are not `valid` are not routed and get zero.

    `dtype` is the one that packed experts are multiplied in. On a mesh every device routes all tokens and multiplies by its part of each
    expert; the parts' results are added up.
    """
    E, A = config.num_local_experts, config.num_experts_per_tok
    x = rms_norm(x, params.norm, config.rms_norm_eps)
    with jax.named_scope("router"):
        logits = tap(hook, f"{name}.router_logits", linear(x, params.router, params.router_bias))
        top, experts = jax.lax.top_k(logits, A)
        gates = jax.nn.softmax(top, -1)  # over the chosen ones only
        if valid is not None:
            experts = jnp.where(valid[:, :, None], experts, E)
        patched = tap(hook, f"{name}.experts", experts)
        if patched is not experts:
            experts = jnp.where(patched < 0, E, patched)
            gates = _gates(logits, experts)
        gates = tap(hook, f"{name}.gates", gates)
    with jax.named_scope("experts"):
        each = None
        if asked(hook, f"{name}.expert_outputs"):
            each = _each_expert(params, config, x, experts, dtype, partition)
            patched = tap(hook, f"{name}.expert_outputs", each)
            each = None if patched is each else patched
        if each is None:
            y = _experts(params, config, x, experts, gates, dtype, partition)
        else:
            y = jnp.sum(each * jnp.where(experts < E, gates, 0)[..., None], 2)
    return tap(hook, f"{name}.out", y)


def _gates(logits: jax.Array, experts: jax.Array) -> jax.Array:  # [B, T, A]
    """Weights of experts that a hook chose, from their own logits; none for E and more."""
    E = logits.shape[-1]
    own = jnp.take_along_axis(logits, jnp.clip(experts, 0, E - 1), 2)
    return jnp.where(experts < E, jax.nn.softmax(jnp.where(experts < E, own, jnp.finfo(own.dtype).min), -1), 0)


def _each_expert(params: Moe, config: Config, x, experts, dtype: jnp.dtype, partition: Partition | None) -> jax.Array:  # [B, T, A, D]
    """What each chosen expert makes: a token with A experts is A tokens with one each."""
    B, T, A = experts.shape
    alone = jnp.broadcast_to(x[:, :, None], (B, T, A, x.shape[-1])).reshape(B, T * A, -1)
    one = experts.reshape(B, T * A, 1)
    y = _experts(params, config, alone, one, jnp.ones(one.shape, jnp.float32), dtype, partition)
    return y.reshape(B, T, A, -1)


def _experts(params: Moe, config: Config, x, experts, gates, dtype: jnp.dtype, partition: Partition | None) -> jax.Array:  # [B, T, D]
    rows, options = ("batch", None, None), {"limit": config.swiglu_limit, "alpha": config.swiglu_alpha, "dtype": dtype}

    def run(x, experts, gates, gate_up, gate_up_bias, down, down_bias):
        flat = lambda a: a.reshape(-1, a.shape[-1])
        down_bias = once(partition, down_bias, "expert_hidden")
        y = moe(flat(x), flat(experts), flat(gates), gate_up, gate_up_bias, down, down_bias, **options)
        return total(partition, y, "expert_hidden").reshape(x.shape)

    gate_up, down = expert_axes(params.gate_up, GATE_UP_AXES), expert_axes(params.down, DOWN_AXES)
    run = local(partition, run, [rows, rows, rows, gate_up, GATE_UP_AXES[:2], down, (None, None)], rows)
    return run(x, experts, gates, params.gate_up, params.gate_up_bias, params.down, params.down_bias)
