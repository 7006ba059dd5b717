"""The projections of a decode step in plain jnp: products in the weights' dtype, everything else float32."""

import jax
import jax.numpy as jnp

from pallas_kernels.matmul import matmul


def project_qkv(x, square_sum, w, bias, cos, sin, k_pages, v_pages, page, offset, *, eps):
    M, D = x.shape
    K, rows, H, _ = w.shape
    y = matmul(x, w.reshape(-1, D)) * _scale(square_sum, D, eps) + bias.astype(jnp.float32).reshape(1, -1)
    y = y.reshape(M, K, rows, H)
    turned = _rotate(y[:, :, :-1], cos[:, None, None, :], sin[:, None, None, :])
    q = turned[:, :, :-1].reshape(M, K * (rows - 2), H).astype(w.dtype)

    def write(pages, new):  # [M, K, H]; a page that does not exist is dropped
        return pages.at[page, :, offset].set(new.astype(pages.dtype), mode="drop")

    return q, write(k_pages, turned[:, :, -1]), write(v_pages, y[:, :, -1])


def project_out(x, w, bias, residual, gain):
    y = matmul(x, w) + bias.astype(jnp.float32)[None, :] + residual
    return y, (y * gain[None, :]).astype(w.dtype)


def unembed(x, square_sum, w, *, eps):
    return matmul(x, w) * _scale(square_sum, x.shape[1], eps)


def _scale(square_sum: jax.Array, width: int, eps: float) -> jax.Array:  # [M, 1] float32
    """1 / rms of each row."""
    return jax.lax.rsqrt(square_sum / width + eps)[:, None]


def _rotate(x, cos, sin):
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
