"""The mixture-of-experts block of a layer: norm, router, top-A experts, their gated sum."""

import jax
import jax.numpy as jnp

from gptoss_jax.config import Config
from gptoss_jax.model.hooks import Hook, tap
from gptoss_jax.model.layers import linear, rms_norm
from gptoss_jax.model.params import Moe
from pallas_kernels.moe import moe


def moe_block(
    params: Moe,
    config: Config,
    x: jax.Array,  # [B, T, D] float32
    valid: jax.Array | None,  # [B, T] bool
    dtype: jnp.dtype,
    hook: Hook | None,
    name: str,
) -> jax.Array:  # [B, T, D] float32
    """What the experts add to the residual stream. Tokens that are not `valid` are not routed and get zero.

    `dtype` is the one that packed experts are multiplied in.
    """
    B, T, D = x.shape
    E, A = config.num_local_experts, config.num_experts_per_tok
    x = rms_norm(x, params.norm, config.rms_norm_eps)
    with jax.named_scope("router"):
        logits = tap(hook, f"{name}.router_logits", linear(x, params.router, params.router_bias))
        top, experts = jax.lax.top_k(logits, A)
        gates = jax.nn.softmax(top, -1)  # over the chosen ones only
        if valid is not None:
            experts = jnp.where(valid[:, :, None], experts, E)
        experts = tap(hook, f"{name}.experts", experts)
        gates = tap(hook, f"{name}.gates", gates)
    with jax.named_scope("experts"):
        y = moe(
            x.reshape(B * T, D),
            experts.reshape(B * T, A),
            gates.reshape(B * T, A),
            params.gate_up,
            params.gate_up_bias,
            params.down,
            params.down_bias,
            limit=config.swiglu_limit,
            dtype=dtype,
        )
    return tap(hook, f"{name}.out", y.reshape(B, T, D))
