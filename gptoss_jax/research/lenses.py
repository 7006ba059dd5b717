"""Lenses: what captured values say, in small pure functions of arrays. They run under jit, and know no tokenizer.

logits, seen = capture(forward, ["layers.*.residual_post", "layers.*.moe.experts"])(params, config, tokens)
by_layer = logit_lens(params, config, layers_of(seen, "residual_post"))
load = expert_load(layers_of(seen, "moe.experts"), config.num_local_experts)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gptoss_jax.config import Config
from gptoss_jax.model.params import Params
from gptoss_jax.model.transformer import unembed


def logit_lens(
    params: Params,
    config: Config,
    residuals: jax.Array,  # [layers, B, T, D] float32
    *,
    keep: Callable[[jax.Array], Any] = lambda logits: logits,
) -> Any:  # [layers, B, T, V] float32
    """The logits that each layer's residual stream would give if it were the last: the model's own last norm and unembedding of it.

    One layer at a time: with `keep` the logits of all layers never exist together.

    Args:
      residuals: such as `layers_of(values, "residual_post")`, or some positions of it, `[:, :, -8:]`.
      keep: what is kept of a layer's logits [B, T, V], stacked over layers; for instance
        `lambda logits: token_logprobs(logits, tokens)`.
    """
    if getattr(residuals, "ndim", 0) != 4 or residuals.shape[-1] != config.hidden_size:
        got = getattr(residuals, "shape", type(residuals).__name__)
        raise ValueError(f"residuals must be [layers, B, T, {config.hidden_size}]; got {got}; pass layers_of(values, 'residual_post').")
    return jax.lax.map(lambda x: keep(unembed(params, config, x)), residuals)


def token_logprobs(
    logits: jax.Array,  # [B, T, V] float32
    tokens: jax.Array,  # [B, T] int32
) -> jax.Array:  # [B, T - 1] float32
    """Natural-log probability of each token after the first, under the logits before it."""
    shapes = [getattr(x, "shape", type(x).__name__) for x in (logits, tokens)]
    if len(shapes[0]) != 3 or shapes[0][:2] != shapes[1]:
        raise ValueError(f"logits must be [B, T, V] and tokens [B, T]; got {shapes[0]} and {shapes[1]}; pass those of one batch.")
    before = logits[:, :-1].astype(jnp.float32)
    own = jnp.take_along_axis(before, tokens[:, 1:, None], 2)[:, :, 0]
    return own - jax.nn.logsumexp(before, -1)


def entropy(
    logits: jax.Array,  # [..., V] float32
) -> jax.Array:  # [...] float32
    """Entropy of the distribution, in nats: 0 where one token is certain, log(V) where all are alike. Logits of -inf count for nothing."""
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    return -jnp.sum(jnp.where(logprobs > -jnp.inf, jnp.exp(logprobs) * logprobs, 0), -1)


def expert_gates(
    experts: jax.Array,  # [..., A] int32
    gates: jax.Array,  # [..., A] float32
    num_experts: int,
) -> jax.Array:  # [..., E] float32
    """The weight of every expert, 0 for those that were not chosen: what is kept of "moe.experts" and "moe.gates", by expert."""
    chosen = jax.nn.one_hot(experts, num_experts, dtype=gates.dtype)  # [..., A, E], all zeros for E and more
    return jnp.sum(chosen * gates[..., None], -2)


def expert_load(
    experts: jax.Array,  # [L, B, T, A] int32
    num_experts: int,
    *,
    valid: jax.Array | None = None,  # [B, T] bool
) -> jax.Array:  # [L, E] float32
    """Share of the tokens that are routed to each expert; a layer's shares add up to A, and A / E is an even load.

    Args:
      experts: `layers_of(values, "moe.experts")`. E or more is no expert.
      valid: which tokens count, such as those that are no padding, or those of one kind; None for all. Of no tokens, all shares are 0.
    """
    routed = jnp.max(jax.nn.one_hot(experts, num_experts, dtype=jnp.float32), -2)  # [L, B, T, E]
    return _mean_of_tokens(routed, valid)


def sink_mass_by_head(
    mass: jax.Array,  # [L, B, T, N] float32
    *,
    valid: jax.Array | None = None,  # [B, T] bool
) -> jax.Array:  # [L, N] float32
    """Mean share of the softmax that each head's sink takes, over the tokens that count (`valid`, as for `expert_load`).

    Args:
      mass: `layers_of(values, "attention.sink_mass")`.
    """
    return _mean_of_tokens(mass, valid)


def _mean_of_tokens(values: jax.Array, valid: jax.Array | None) -> jax.Array:
    """[L, B, T, X] -> [L, X]."""
    if valid is None:
        return jnp.mean(values, (1, 2))
    total = jnp.sum(jnp.where(valid[None, :, :, None], values, 0), (1, 2))
    return total / jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1)
