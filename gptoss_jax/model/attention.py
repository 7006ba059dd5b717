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
from gptoss_jax.sharding import Axes, Partition, local, total

ROWS: Axes = ("batch", None, None)  # the residual stream, and what is computed on whole rows of it
HEADS: Axes = ("batch", None, "heads", None)
KV_HEADS: Axes = ("batch", None, "kv_heads", None)


def attention_block(
    params: Attention,
    config: Config,
    x: jax.Array,  # [B, T, D] float32
    angles: tuple[jax.Array, jax.Array],  # cosines and sines [B, T, H/2]
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    hook: Hook | None,
    name: str,
    partition: Partition | None,
) -> jax.Array:  # [B, T, D] float32
    """What attention adds to the residual stream.

    `attend(q [B, T, N, H], k [B, T, K, H], v [B, T, K, H])` says what the queries see: the sequence itself, or a cache that
    it writes to. On a mesh, heads stay on their devices from their projection to the output's, whose parts are added up.
    """
    B, T, D = x.shape
    N, H, G = config.num_attention_heads, config.head_dim, config.group
    dtype = params.qkv.dtype
    with jax.named_scope("qkv"):
        x = rms_norm(x, params.norm, config.rms_norm_eps)
        project = local(partition, _project, [ROWS, ("kv_heads", None, None, None), ("kv_heads", None, None)], (*KV_HEADS, None))
        qkv = project(x, params.qkv, params.qkv_bias)
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
        return tap(hook, f"{name}.out", _project_out(heads, params.out, partition) + params.out_bias[None, None, :])


def _project(x: jax.Array, w: jax.Array, bias: jax.Array) -> jax.Array:  # [B, T, K, G+2, H] float32
    y = linear(x, w.reshape(-1, w.shape[-1]), bias.reshape(-1))
    return y.reshape(*x.shape[:2], *bias.shape)


def _project_out(heads: jax.Array, w: jax.Array, partition: Partition | None) -> jax.Array:  # [B, T, D] float32
    def project(heads, w):
        return total(partition, linear(heads.reshape(*heads.shape[:2], -1), w), "heads")

    return local(partition, project, [HEADS, (None, "heads")], ROWS)(heads, w)
