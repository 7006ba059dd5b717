"""The small parts that layers share: products with weights, RMSNorm, rows of the embedding."""

import jax
import jax.numpy as jnp

from gptoss_jax.parallel.sharding import Partition, total
from pallas_kernels.low_rank import LowRank
from pallas_kernels.matmul import matmul


def linear(x: jax.Array, w: jax.Array | LowRank, bias: jax.Array | None = None) -> jax.Array:
    """x [..., in] @ w [out, in].T + bias [out] -> [..., out] float32.

    The product is computed in w's dtype and accumulated in float32; float32 weights are multiplied in full precision.
    """
    rows = x.reshape(-1, x.shape[-1])
    y = w.matmul(rows, matmul) if isinstance(w, LowRank) else matmul(rows, w)
    if bias is not None:
        y = y + bias[None, :]
    return y.reshape(*x.shape[:-1], w.shape[0])


def rms_norm(x: jax.Array, gain: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * gain over the last axis, float32."""
    x = x.astype(jnp.float32)
    scaled = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
    return scaled * gain.reshape((1,) * (x.ndim - 1) + gain.shape)


def look_up(partition: Partition | None, embedding: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of the embedding [V, D] -> [..., D] float32, within `sharding.local`: what each device has of them is added up."""
    if partition is not None:
        own = tokens - partition.index("vocab") * len(embedding)
        rows = embedding.at[own].get(mode="fill", fill_value=0, wrap_negative_indices=False)
        return total(partition, rows, "vocab").astype(jnp.float32)  # exact: all terms but one are zero
    return embedding[tokens].astype(jnp.float32)
