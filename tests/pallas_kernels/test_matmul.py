"""The product of rows with a weight matrix: its dtype, its accuracy, its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from pallas_kernels.matmul import matmul

ROUNDING = 2**-8  # two operands, each rounded to 8 bits (2**-9 relative, at most)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("dtype, allowed", [(jnp.float32, 1e-6), (jnp.bfloat16, ROUNDING)])
def test_the_product_is_accumulated_in_float32(rows, dtype, allowed):
    x, w = draw(rows, 96), jnp.asarray(draw(64, 96, seed=1)).astype(dtype)
    y = jax.jit(matmul)(x, w)
    assert y.dtype == jnp.float32 and y.shape == (rows, 64)
    assert oracle.error(y, x.astype(np.float64) @ np.asarray(w, np.float64).T) < allowed


@pytest.mark.parametrize("rows", [1, 5])
def test_bfloat16_derivatives_are_near_those_of_float32(rows):
    x, w, way = draw(rows, 96), draw(64, 96, seed=1), draw(rows, 64, seed=2)
    loss = lambda x, w: jnp.sum(jnp.sin(matmul(x, w)) * way)
    low = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, jnp.asarray(w).astype(jnp.bfloat16))
    product = x.astype(np.float64) @ w.T.astype(np.float64)
    outer = np.cos(product) * way
    assert (low[0].dtype, low[1].dtype) == (jnp.float32, jnp.bfloat16)
    # An error of ROUNDING * |product| in the cosine's argument, where |product| is about sqrt(96), besides the roundings themselves.
    allowed = ROUNDING * (96**0.5 + 3)
    assert oracle.error(low[0], outer @ w) < allowed
    assert oracle.error(low[1], outer.T @ x) < allowed


def test_forward_derivatives_agree_with_reverse_ones():
    x, way, w = draw(5, 96), draw(5, 96, seed=3), jnp.asarray(draw(64, 96, seed=1)).astype(jnp.bfloat16)
    loss = lambda x: jnp.sum(matmul(x, w) ** 2)
    _, slope = jax.jit(lambda x: jax.jvp(loss, (x,), (way,)))(x)
    assert float(slope) == pytest.approx(float(jnp.sum(jax.jit(jax.grad(loss))(x) * way)), rel=4 * ROUNDING)
