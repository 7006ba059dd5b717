"""A sum and the beginning of RMSNorm in plain jnp."""

import jax.numpy as jnp


def add_norm(x, terms, valid, gain, *, dtype):
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return scaled(x + jnp.where(valid[:, None], total, 0), gain, dtype)


def scaled(y, gain, dtype):
    """y [M, D], y * gain in dtype, the sums of squares [M]."""
    return y, (y * gain[None, :]).astype(dtype), jnp.sum(y * y, -1)
