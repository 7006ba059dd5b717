"""Hooks: a hook is a function (name, value) -> value that every named site of the model passes through.

Returning the value observes it; returning another one of the same shape and dtype patches it. Hooks run while the model is
traced, so without one the compiled program is the same as if the sites were not there.
"""

from collections.abc import Callable

import jax

from gptoss_jax.config import Config

Hook = Callable[[str, jax.Array], jax.Array]

MODEL_SITES = ("embedding", "norm", "logits")
LAYER_SITES = (
    "residual_pre",  # [B, T, D] the residual stream before the layer
    "attention.q",  # [B, T, N, H] after RoPE
    "attention.k",  # [B, T, K, H] after RoPE
    "attention.v",  # [B, T, K, H]
    "attention.heads",  # [B, T, N, H] what each head reads
    "attention.out",  # [B, T, D] what attention adds to the residual stream
    "residual_mid",  # [B, T, D] the residual stream between attention and experts
    "moe.router_logits",  # [B, T, E]
    "moe.experts",  # [B, T, A] int32, the experts chosen; E where a token is padding
    "moe.gates",  # [B, T, A]
    "moe.out",  # [B, T, D] what the experts add to the residual stream
    "residual_post",  # [B, T, D] the residual stream after the layer
)


def sites(config: Config) -> list[str]:
    """Every name that a hook is called with, in the order of a forward pass."""
    layers = [f"layers.{i}.{name}" for i in range(config.num_hidden_layers) for name in LAYER_SITES]
    return [MODEL_SITES[0], *layers, *MODEL_SITES[1:]]


def tap(hook: Hook | None, name: str, value: jax.Array) -> jax.Array:
    """`value` as the hook returns it; `value` itself without one."""
    if hook is None:
        return value
    patched = hook(name, value)
    if getattr(patched, "shape", None) != value.shape or patched.dtype != value.dtype:
        got = f"{patched.dtype}{patched.shape}" if hasattr(patched, "shape") else type(patched).__name__
        raise ValueError(f"a hook must return an array like the one it got; {name} is {value.dtype}{value.shape}, got {got}.")
    return patched
