"""The small parts that every layer shares: products with weights, RMSNorm."""

import jax
import jax.numpy as jnp

from pallas_kernels.matmul import matmul


def linear(x: jax.Array, w: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """x [..., in] @ w [out, in].T + bias [out] -> [..., out] float32.

    The product is computed in w's dtype and accumulated in float32; float32 weights are multiplied in full precision.
    """
    y = matmul(x.reshape(-1, x.shape[-1]), w)
    if bias is not None:
        y = y + bias[None, :]
    return y.reshape(*x.shape[:-1], w.shape[0])


def rms_norm(x: jax.Array, gain: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * gain over the last axis, float32."""
    x = x.astype(jnp.float32)
    scaled = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
    return scaled * gain.reshape((1,) * (x.ndim - 1) + gain.shape)
