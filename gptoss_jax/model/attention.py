"""The attention block of a layer: norm, projections, RoPE, attention over a sequence or over a cache, projection back."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from gptoss_jax.config import Config
from gptoss_jax.model import rope
from gptoss_jax.model.hooks import Hook, tap
from gptoss_jax.model.layers import linear, rms_norm
from gptoss_jax.model.params import Attention


def attention_block(
    params: Attention,
    config: Config,
    x: jax.Array,  # [B, T, D] float32
    angles: tuple[jax.Array, jax.Array],  # cosines and sines [B, T, H/2]
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    hook: Hook | None,
    name: str,
) -> jax.Array:  # [B, T, D] float32
    """What attention adds to the residual stream.

    `attend(q [B, T, N, H], k [B, T, K, H], v [B, T, K, H])` says what the queries see: the sequence itself, or a cache that
    it writes to.
    """
    B, T, D = x.shape
    N, K, H, G = config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.group
    dtype = params.qkv.dtype
    with jax.named_scope("qkv"):
        x = rms_norm(x, params.norm, config.rms_norm_eps)
        qkv = linear(x, params.qkv.reshape(-1, D), params.qkv_bias.reshape(-1)).reshape(B, T, K, G + 2, H)
        q = rope.rotate(qkv[:, :, :, :G].reshape(B, T, N, H), *angles)
        k = rope.rotate(qkv[:, :, :, G], *angles)
        q = tap(hook, f"{name}.q", q).astype(dtype)
        k = tap(hook, f"{name}.k", k).astype(dtype)
        v = tap(hook, f"{name}.v", qkv[:, :, :, G + 1]).astype(dtype)
    with jax.named_scope("attend"):
        heads = attend(q, k, v)
        chex.assert_shape(heads, (B, T, N, H))
        heads = tap(hook, f"{name}.heads", heads.astype(jnp.float32))
    with jax.named_scope("out"):
        return tap(hook, f"{name}.out", linear(heads.reshape(B, T, N * H), params.out, params.out_bias))
