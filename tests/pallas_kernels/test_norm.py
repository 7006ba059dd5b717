"""The sum and the beginning of a norm: kernel, formula, and what neither may let through."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.norm import add_norm


def inputs(M, D, A, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return 30 * draw(M, D), draw(A, M, D), rng.random(M) < 0.7, draw(D)


def run(args, interpreter, **options):
    with interpreter():
        return [np.asarray(out.astype(jnp.float32)) for out in jax.jit(functools.partial(add_norm, **options))(*args)]


@pytest.mark.quick("5-192-2")
@pytest.mark.parametrize("M, D, A", [(1, 2880, 4), (5, 192, 2), (3, 128, 1)])
def test_kernel_is_the_formula(M, D, A, interpreter):
    x, terms, valid, gain = inputs(M, D, A)
    valid[-1] = True
    y, scaled, square_sum = run((x, terms, valid, gain), interpreter, implementation="mosaic")
    wanted = x + np.where(valid[:, None], functools.reduce(np.add, terms), 0)
    np.testing.assert_array_equal(y, wanted)  # the terms are added in their order
    np.testing.assert_array_equal(scaled, np.asarray(jnp.asarray(wanted * gain).astype(jnp.bfloat16), np.float32))
    np.testing.assert_allclose(square_sum, np.sum(wanted.astype(np.float64) ** 2, -1), rtol=2e-6)


@pytest.mark.parametrize("implementation", ["xla", "mosaic"])
def test_terms_of_rows_that_are_not_valid_are_not_used(implementation, interpreter):
    x, terms, _, gain = inputs(3, 192, 2)
    valid = np.array([True, False, True])
    before = run((x, terms, valid, gain), interpreter, implementation=implementation)
    terms[:, 1] = np.nan
    for a, b in zip(before, run((x, terms, valid, gain), interpreter, implementation=implementation), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_row_does_not_depend_on_the_others(interpreter):
    x, terms, valid, gain = inputs(4, 192, 4)
    together = run((x, terms, valid, gain), interpreter, implementation="mosaic")
    alone = run((x[2:3], terms[:, 2:3], valid[2:3], gain), interpreter, implementation="mosaic")
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a[2:3], b)


def test_what_the_kernel_does_not_cover(interpreter):
    args = inputs(2, 100, 1)
    with pytest.raises(NotImplementedError, match="multiple of 64"):
        run(args, interpreter, implementation="mosaic")
    assert run(args, interpreter)[0].shape == (2, 100)
    with pytest.raises(NotImplementedError, match="bfloat16"):
        run(inputs(2, 128, 1), interpreter, implementation="mosaic", dtype=jnp.float32)
    with pytest.raises(ValueError, match="terms must be"):
        add_norm(args[0], args[1][:, :1], *args[2:])


@pytest.mark.quick("16")
@pytest.mark.parametrize("M", [1, 16, 64])
def test_compiles_for_hopper(M, compile_for_hopper):
    args = jax.eval_shape(lambda: tuple(map(jnp.asarray, inputs(M, 2880, 4))))
    report = compile_for_hopper(add_norm, *args)
    (kernel,) = [kernel for kernel in report.kernels if "add_norm" in kernel.name]
    assert (kernel.spill_bytes, kernel.stack_bytes) == (0, 0)
    assert len(report.launches) == 2  # the mask's conversion and the kernel
