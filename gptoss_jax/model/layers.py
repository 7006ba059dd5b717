"""The small parts that every layer shares: products with weights, RMSNorm."""

import jax
import jax.numpy as jnp


def linear(x: jax.Array, w: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """x [..., in] @ w [out, in].T + bias [out] -> [..., out] float32.

    The product is computed in w's dtype and accumulated in float32; float32 weights are multiplied in full precision.
    """
    rows = x.reshape(-1, x.shape[-1])

    def dot(rows):
        precision = "highest" if w.dtype == jnp.float32 else None
        contract = (((1,), (1,)), ((), ()))
        return jax.lax.dot_general(rows.astype(w.dtype), w, contract, precision=precision, preferred_element_type=jnp.float32)

    def few(rows):
        # XLA's CPU backend has a fast bfloat16 product from two rows on: eight times one row's speed with four.
        return dot(jnp.broadcast_to(rows, (4, rows.shape[1])))[:1]

    if rows.shape[0] == 1 and w.dtype == jnp.bfloat16:
        y = jax.lax.platform_dependent(rows, cpu=few, default=dot)
    else:
        y = dot(rows)
    if bias is not None:
        y = y + bias[None, :]
    return y.reshape(*x.shape[:-1], w.shape[0])


def rms_norm(x: jax.Array, gain: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * gain over the last axis, float32."""
    x = x.astype(jnp.float32)
    scaled = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
    return scaled * gain.reshape((1,) * (x.ndim - 1) + gain.shape)
