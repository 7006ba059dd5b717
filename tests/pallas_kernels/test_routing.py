"""Routing: kernel and formula against NumPy, to the expert; equal logits, tokens that are not valid, numbers that are none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from pallas_kernels.routing import ROWS, of_experts, route, router
from pallas_kernels.routing.reference import columns

EPS, WIDTH, A = 1e-5, 192, 4
EITHER = pytest.mark.parametrize("implementation", ["xla", "mosaic"])


def inputs(M, E, seed=0):
    """Moments as `router` makes them, some tokens not valid, and a bias."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    moments = np.zeros((M, columns(E)), np.float32)
    moments[:, :E] = 30 * draw(M, E)
    moments[:, E] = WIDTH * rng.uniform(10, 1000, M)
    moments[:, E + 1] = rng.random(M) < 0.8
    moments[-1, E + 1] = 1
    return moments, draw(E)


@functools.cache
def compiled(implementation, num_active):
    return jax.jit(functools.partial(route, num_active=num_active, width=WIDTH, eps=EPS, implementation=implementation))


def run(moments, bias, interpreter, implementation="mosaic", num_active=A):
    with interpreter():
        return jax.tree.map(np.asarray, compiled(implementation, num_active)(moments, bias))


def expected(moments, bias, num_active=A):
    """Gates, ranks, active experts and scale of the tokens there are, one after the other."""
    M, E = len(moments), len(bias)
    moments = moments.astype(np.float64)
    scale = 1 / np.sqrt(moments[:, E] / WIDTH + EPS)
    experts, weights = oracle.route(moments[:, :E] * scale[:, None] + bias, num_active)
    gates, ranks = np.zeros((E, ROWS)), np.full((E, ROWS), num_active)
    for m in np.flatnonzero(moments[:, E + 1]):
        gates[experts[m], m] = weights[m]
        ranks[np.sort(experts[m]), m] = np.arange(num_active)
    return gates, ranks, np.flatnonzero(np.any(ranks < num_active, 1)), scale[:M]


def check(got, wanted, M, E):
    gates, ranks, active, scale = wanted
    np.testing.assert_array_equal(got.ranks, ranks)
    np.testing.assert_allclose(got.gates, gates, rtol=1e-4, atol=1e-6)
    assert got.active.tolist() == [*active, *[E] * (len(got.active) - len(active))] and len(got.active) % ROWS == 0
    np.testing.assert_allclose(got.scale[:M], scale, rtol=1e-5)


COUNTS = [(1, 32), (7, 32), (64, 32), (1, 128), (7, 128), (64, 128)]
OTHERS = [(5, 1), (3, 7), (7, 24), (5, 29), (3, 64), (4, 65), (5, 96), (64, 127)]  # of pruned models; in eights and not


@pytest.mark.quick("7-32", "5-96")
@pytest.mark.parametrize("M, E", COUNTS + OTHERS)
def test_kernel_and_formula_choose_the_same_experts(M, E, interpreter):
    args, num_active = inputs(M, E), min(A, E)
    wanted = expected(*args, num_active)
    for implementation in ("xla", "mosaic"):
        check(run(*args, interpreter, implementation, num_active), wanted, M, E)


@EITHER
def test_of_equal_logits_the_lower_index_wins(implementation, interpreter):
    moments, bias = inputs(3, 32)
    moments[:, :32] = 0
    moments[1, [5, 6, 9, 20, 31]] = 1
    moments[2, [3, 30]] = 1
    moments[:, 33], bias[:] = 1, 0.5
    got = run(moments, bias, interpreter, implementation)
    chosen = [np.flatnonzero(got.ranks[:, m] < A).tolist() for m in range(3)]
    assert chosen == [[0, 1, 2, 3], [5, 6, 9, 20], [0, 1, 3, 30]]
    np.testing.assert_allclose(got.gates[:4, 0], 0.25, rtol=1e-6)


@EITHER
@pytest.mark.parametrize("E", [32, 128])
def test_tokens_that_are_not_valid_are_not_routed(implementation, E, interpreter):
    moments, bias = inputs(7, E)
    moments[:, E + 1] = [1, 0, 1, 1, 0, 0, 1]
    before = run(moments, bias, interpreter, implementation)
    moments[[1, 4, 5], : E + 1] = np.nan
    after = run(moments, bias, interpreter, implementation)
    check(after, (before.gates, before.ranks, before.active[before.active < E], after.scale[:7]), 7, E)
    assert np.all(after.ranks[:, [1, 4, 5, *range(7, ROWS)]] == A) and np.all(after.gates[:, [1, 4, 5, *range(7, ROWS)]] == 0)
    moments[:, E + 1] = 0
    assert np.all(run(moments, bias, interpreter, implementation).active == E)


@pytest.mark.quick("32")
@pytest.mark.parametrize("E", [32, 13, 70])
def test_logits_that_are_not_numbers_harm_no_other_token(E, interpreter):
    moments, bias = inputs(7, E)
    moments[:, E + 1] = 1
    before = run(moments, bias, interpreter)
    moments[1, : E + 1], moments[2, 3], moments[4, :E], moments[5, 7] = np.nan, np.nan, -np.inf, np.nan
    after, others = run(moments, bias, interpreter), [0, 3, 6]
    np.testing.assert_array_equal(after.gates[:, others], before.gates[:, others])
    np.testing.assert_array_equal(after.ranks[:, others], before.ranks[:, others])
    for m in range(7):  # each still has A experts, of ranks 0 .. A-1
        assert sorted(after.ranks[:, m].tolist())[: A + 1] == [*range(A), A]
    assert set(after.active.tolist()) <= {*range(E), E}
    assert after.ranks[3, 2] == after.ranks[7, 5] == A, "what is not a number is not chosen"


@pytest.mark.quick("1-xla", "3-mosaic")
@EITHER
@pytest.mark.parametrize("num_active", [1, 3])
def test_any_number_of_experts_a_token(implementation, num_active, interpreter):
    args = inputs(5, 32)
    check(run(*args, interpreter, implementation, num_active), expected(*args, num_active), 5, 32)


def test_known_experts_give_the_same_routing(interpreter):
    moments, bias = inputs(7, 32)
    got = run(moments, bias, interpreter, "xla")
    experts = np.full((7, A), 32, np.int32)
    gates = np.full((7, A), np.nan, np.float32)
    for m in range(7):
        mine = np.flatnonzero(got.ranks[:, m] < A)[::-1]  # in whatever order
        experts[m, : len(mine)], gates[m, : len(mine)] = mine, got.gates[mine, m]
    known = jax.jit(of_experts, static_argnums=2)(experts, gates, 32)
    for name in ("gates", "ranks", "active"):
        np.testing.assert_array_equal(getattr(known, name), getattr(got, name))
    np.testing.assert_array_equal(known.scale, np.ones(ROWS))


@pytest.mark.parametrize("M", [1, 7, 20])
def test_moments_are_logits_square_sum_and_validity(M):
    rng = np.random.default_rng(0)
    x, gain, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((M, WIDTH), WIDTH, (32, WIDTH)))
    valid = rng.random(M) < 0.5
    moments = np.asarray(jax.jit(router)(x, gain, weight, valid))
    assert moments.shape == (M, columns(32))
    np.testing.assert_allclose(moments[:, :32], (x.astype(np.float64) * gain) @ weight.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moments[:, 32], np.sum(x.astype(np.float64) ** 2, -1), rtol=1e-5)
    np.testing.assert_allclose(moments[:, 33], valid, rtol=1e-5)
    assert np.all(moments[:, 34:] == 0)


def test_what_is_refused(interpreter):
    moments, bias = inputs(2, 32)
    options = {"num_active": A, "width": WIDTH, "eps": EPS}
    with pytest.raises(ValueError, match="moments must be"):
        route(moments[:, :-1], bias, **options)
    with pytest.raises(ValueError, match="moments must be"):
        route(np.zeros((65, columns(32)), np.float32), bias, **options)
    with pytest.raises(ValueError, match="1 <= num_active"):
        route(moments, bias, **(options | {"num_active": 33}))
    with pytest.raises(NotImplementedError, match="up to 128 experts; got 129"):
        route(*inputs(2, 129), implementation="mosaic", **options)
    with pytest.raises(NotImplementedError, match="up to 16 experts; got 17"):
        route(moments, bias, implementation="mosaic", **(options | {"num_active": 17}))
    check(run(*inputs(2, 129), interpreter, None), expected(*inputs(2, 129)), 2, 129)
    with pytest.raises(ValueError, match="must fit"):
        router(jnp.zeros((2, 192)), jnp.zeros(192), jnp.zeros((32, 128)), jnp.ones(2, bool))


@pytest.mark.quick("32-16")
@pytest.mark.parametrize("M", [1, 16, 64])
@pytest.mark.parametrize("E", [32, 128])
def test_compiled_for_a_hopper(M, E, compile_for_hopper):
    args = jax.eval_shape(lambda: tuple(map(jnp.asarray, inputs(M, E))))
    report = compile_for_hopper(functools.partial(route, num_active=A, width=2880, eps=EPS), *args)
    (kernel,) = report.kernels
    assert (report.launches, kernel.pallas) == ((kernel.name,), True)
    assert (kernel.spill_bytes, kernel.stack_bytes) == (0, 0)
