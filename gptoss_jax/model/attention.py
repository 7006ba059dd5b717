"""The attention block of a layer: norm, projections, RoPE, attention over a sequence or over a cache, projection back."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gptoss_jax.config import Config
from gptoss_jax.model import rope
from gptoss_jax.model.hooks import Hook, asked, tap
from gptoss_jax.model.layers import linear, rms_norm
from gptoss_jax.model.params import OUT_AXES, QKV_AXES, Attention, low_rank_axes
from gptoss_jax.model.views import attention_sites
from gptoss_jax.parallel.sharding import Axes, Partition, local, total
from pallas_kernels.attention.weights import Seen
from pallas_kernels.low_rank import LowRank
from pallas_kernels.matmul import matmul

ROWS: Axes = ("batch", None, None)  # the residual stream, and what is computed on whole rows of it
HEADS: Axes = ("batch", None, "heads", None)
KV_HEADS: Axes = ("batch", None, "kv_heads", None)


def attention_block(
    params: Attention,
    config: Config,
    x: jax.Array,  # [B, T, D] float32
    angles: tuple[jax.Array, jax.Array],  # cosines and sines [B, T, H/2]
    attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    look: Callable[[jax.Array, jax.Array], Seen],
    window: int | None,
    hook: Hook | None,
    name: str,
    partition: Partition | None,
) -> jax.Array:  # [B, T, D] float32
    """What attention adds to the residual stream.

    `attend(q [B, T, N, H], k [B, T, K, H], v [B, T, K, H])` says what the queries see: the sequence itself, or a cache that
    it writes to; `look(k, v)`, called after it, tells a hook the same. On a mesh, heads stay on their devices from their
    projection to the output's, whose parts are added up.
    """
    B, T, D = x.shape
    N, H, G = config.num_attention_heads, config.head_dim, config.group
    dtype = params.qkv.dtype
    with jax.named_scope("qkv"):
        x = rms_norm(x, params.norm, config.rms_norm_eps)
        project = local(partition, _project, [ROWS, low_rank_axes(params.qkv, QKV_AXES), ("kv_heads", None, None)], (*KV_HEADS, None))
        qkv = project(x, params.qkv, params.qkv_bias)
        q = rope.rotate(qkv[:, :, :, :G].reshape(B, T, N, H), *angles)
        k = rope.rotate(qkv[:, :, :, G], *angles)
        q = tap(hook, f"{name}.q", q).astype(dtype)
        k = tap(hook, f"{name}.k", k).astype(dtype)
        v = tap(hook, f"{name}.v", qkv[:, :, :, G + 1]).astype(dtype)
    with jax.named_scope("attend"):
        heads = attend(q, k, v)
        import chex

        chex.assert_shape(heads, (B, T, N, H))
        heads = attention_sites(hook, name, heads, q, lambda: look(k, v), params.sinks, window, partition)
        heads = tap(hook, f"{name}.heads", heads.astype(jnp.float32))
    with jax.named_scope("out"):
        site, each = f"{name}.head_outputs", None
        if asked(hook, site):
            each = _project_each(heads, params.out, partition)
            patched = tap(hook, site, each)
            each = None if patched is each else patched
        y = _project_out(heads, params.out, partition) if each is None else jnp.sum(each, 2)
        return tap(hook, f"{name}.out", y + params.out_bias[None, None, :])


def _project(x: jax.Array, w: jax.Array | LowRank, bias: jax.Array) -> jax.Array:  # [B, T, K, G+2, H] float32
    base = w.base if isinstance(w, LowRank) else w
    y = linear(x, base.reshape(-1, base.shape[-1]), bias.reshape(-1)).reshape(*x.shape[:2], *bias.shape)
    if not isinstance(w, LowRank):
        return y

    def term(a, b):
        _, r, D = a.shape  # of queries, keys, values
        kinds = matmul(x.reshape(-1, D), a.reshape(-1, D)).reshape(*x.shape[:2], 3, r)
        q, k, v = (kinds[:, :, i] for i in range(3))
        low = lambda x, b: jnp.einsum("btr,kghr->btkgh", x.astype(b.dtype), b, precision="highest", preferred_element_type=jnp.float32)
        return jnp.concatenate([low(q, b[:, :-2]), low(k, b[:, -2:-1]), low(v, b[:, -1:])], 3)

    return w.add(y, term)


def _project_out(heads: jax.Array, w: jax.Array | LowRank, partition: Partition | None) -> jax.Array:  # [B, T, D] float32
    def project(heads, w):
        return total(partition, linear(heads.reshape(*heads.shape[:2], -1), w), "heads")

    return local(partition, project, [HEADS, low_rank_axes(w, OUT_AXES)], ROWS)(heads, w)


def _project_each(heads: jax.Array, w: jax.Array | LowRank, partition: Partition | None) -> jax.Array:  # [B, T, N, D] float32
    """What each head adds to the residual stream."""

    def project(heads, w):
        B, T, N, H = heads.shape
        alone = jnp.zeros((B, T, N, N, H), heads.dtype).at[:, :, jnp.arange(N), jnp.arange(N)].set(heads)
        return linear(alone.reshape(B, T, N, N * H), w)

    return local(partition, project, [HEADS, low_rank_axes(w, OUT_AXES)], HEADS)(heads, w)
