"""What stands between the blocks of a decode step, in one launch: a block's output joins the residual stream, and a norm begins.

RMSNorm is split round the product that follows it: the rows go into the product times the gain, and since a row's 1/rms is one
factor, it is applied to the row's products. So a norm is (y * gain, sum of y * y), and nobody waits for a row to be complete.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.norm import reference
from pallas_kernels.norm.reference import scaled

__all__ = ["add_norm", "scaled"]


def add_norm(
    x: jax.Array,  # [M, D] float32
    terms: jax.Array,  # [A, M, D] float32
    valid: jax.Array,  # [M] bool
    gain: jax.Array,  # [D] float32
    *,
    dtype=jnp.bfloat16,
    implementation: dispatch.Implementation = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # [M, D] float32, [M, D] dtype, [M] float32
    """The residual stream with a block's output, y = x + (terms[0] + terms[1] + ...); y * gain; the sum of y * y.

    Args:
      x: the residual stream.
      terms: what is added, in this order; what they hold for a row that is not valid is not used.
      valid: rows to which the terms are added; the others stay x.
      gain: of the norm that follows.
      dtype: of y * gain, which the product that follows takes.
      implementation: see `pallas_kernels.dispatch`.

    Raises:
      ValueError: shapes do not fit together.
      NotImplementedError: the implementation asked for by name does not cover the call.
    """
    if terms.shape[1:] != x.shape or valid.shape != x.shape[:1] or gain.shape != x.shape[1:] or not terms.shape[0]:
        raise ValueError(
            f"terms must be [A >= 1, *x.shape], valid [M] and gain [D] for x [M, D]; got x {x.shape}, terms {terms.shape}, "
            f"valid {valid.shape}, gain {gain.shape}."
        )

    def kernel():
        from pallas_kernels.norm import mosaic

        return mosaic.add_norm, mosaic.covers(x, terms, dtype)

    xla = functools.partial(reference.add_norm, dtype=dtype)
    return dispatch.run("add_norm", implementation, x, terms, valid, gain, xla=xla, kernel=kernel)
