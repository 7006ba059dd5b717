"""A router's moments by the kernel: against NumPy, to the bit whatever the other tokens are, and what a Hopper makes of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.routing import router
from pallas_kernels.routing.reference import columns


def inputs(M, E, D):
    rng = np.random.default_rng(0)
    x, gain, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((M, D), D, (E, D)))
    return 30 * x, gain, weight, rng.random(M) < 0.6


def run(args, interpreter):
    with interpreter():
        return np.asarray(jax.jit(functools.partial(router, implementation="mosaic"))(*args))


@pytest.mark.thorough
@pytest.mark.parametrize("E", [24, 128])
@pytest.mark.parametrize("M, D", [(1, 2880), (7, 192), (16, 128)])
def test_kernel_is_logits_square_sum_and_validity(M, D, E, interpreter):
    x, gain, weight, valid = inputs(M, E, D)
    moments = run((x, gain, weight, valid), interpreter)
    assert moments.shape == (M, columns(E))
    exact = (x.astype(np.float64) * gain) @ weight.T
    np.testing.assert_allclose(moments[:, :E], exact, atol=1e-6 * np.abs(exact).max())
    np.testing.assert_allclose(moments[:, E], np.sum(x.astype(np.float64) ** 2, -1), rtol=1e-6)
    np.testing.assert_array_equal(moments[:, E + 1], valid)
    np.testing.assert_array_equal(moments[:, E + 2 :], 0)


@pytest.mark.thorough
def test_a_row_depends_neither_on_the_others_nor_on_their_number(interpreter):
    x, gain, weight, valid = inputs(6, 8, 192)
    together = run((x, gain, weight, valid), interpreter)
    x[[0, 1, 3, 4, 5]] = np.nan
    np.testing.assert_array_equal(run((x, gain, weight, valid), interpreter)[2], together[2])
    np.testing.assert_array_equal(run((x[2:3], gain, weight, valid[2:3]), interpreter)[0], together[2])


def test_more_rows_than_it_covers_are_a_product(interpreter):
    args = inputs(17, 8, 192)
    with pytest.raises(NotImplementedError, match="more than 16 rows"):
        run(args, interpreter)
    with interpreter():
        assert router(*args).shape == (17, columns(8))


@pytest.mark.thorough
@pytest.mark.parametrize("M, E", [(1, 32), (16, 128)])
def test_compiled_for_a_hopper(M, E, compile_for_hopper):
    args = jax.eval_shape(lambda: tuple(map(jnp.asarray, inputs(M, E, 2880))))
    (kernel,) = [kernel for kernel in compile_for_hopper(functools.partial(router, early=True), *args).kernels if kernel.pallas]
    assert (kernel.name, kernel.spill_bytes, kernel.stack_bytes) == ("router", 0, 0)
