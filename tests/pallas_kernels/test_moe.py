"""The routed experts against the float64 formula: any routing, any form of the weights; what is read, what is unpacked."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from pallas_kernels import hopper, mxfp4
from pallas_kernels.low_rank import LowRank
from pallas_kernels.moe import moe, mosaic
from pallas_kernels.mxfp4 import Mxfp4
from pallas_kernels.mxfp4.tiles import Tiles, to_tiles

E, D, F, A = 6, 64, 64, 3
LIMIT = 1.5  # near the inputs' scale, so that both clamps and the lack of a third are seen
EXACT = 2e-6  # sums of up to 64 float32 products, each rounded to 6e-8


def draw(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


@functools.cache
def packed_weights():
    """gate_up and down, both as MXFP4 and as the float64 values that these stand for."""
    quantize = jax.jit(mxfp4.quantize)
    packed = [quantize(draw(E, *shape, seed=seed, scale=0.25)) for seed, shape in enumerate(((2 * F, D), (D, F)))]
    return packed, [oracle.unpack(np.asarray(w.blocks), np.asarray(w.scales)) for w in packed]


def weights(form):
    packed, values = packed_weights()
    values = [w.astype(np.float32) for w in values]
    if form == "tiles":
        gate_up, down = (jax.jit(to_tiles, static_argnums=1)(w, interleaved) for w, interleaved in zip(packed, (2, 1), strict=True))
        return gate_up, draw(E, 2 * F, seed=2), down, draw(E, D, seed=3)
    gate_up, down = {"packed": packed, "stacked": values, "split": [tuple(w) for w in values]}[form]
    return gate_up, draw(E, 2 * F, seed=2), down, draw(E, D, seed=3)


def route(tokens, kind="random"):
    rng = np.random.default_rng(tokens)
    experts = np.stack([rng.permutation(E)[:A] for _ in range(tokens)]).astype(np.int32)
    if kind == "one":
        experts = np.full((tokens, A), E, np.int32)
        experts[:, 1] = 4
    elif kind == "few":  # experts 0, 3 and 5 get nothing
        experts = np.broadcast_to(np.array([4, 1, 2], np.int32), (tokens, A)).copy()
    elif kind == "some":
        experts[rng.random((tokens, A)) < 0.4] = E + rng.integers(3)
        experts[-1] = E
    elif kind == "many":  # three experts get one row more than a block holds: the most blocks that there can be
        full = {7: 7, 40: 32, 300: 256}[tokens]
        experts = np.where(np.arange(tokens)[:, None] <= full, np.array([[0, 1, 2]]), np.array([[3, 4, 5]])).astype(np.int32)
    elif kind == "none":
        experts[:] = E
    return experts, rng.dirichlet(np.ones(A), tokens).astype(np.float32)


def expected(x, experts, gates, gate_up_bias, down_bias):
    gate_up, down = packed_weights()[1]
    x, gates, gate_up_bias, down_bias = (np.asarray(value, np.float64) for value in (x, gates, gate_up_bias, down_bias))
    return oracle.moe(x, experts, gates, gate_up, gate_up_bias, down, down_bias, LIMIT)


run = jax.jit(functools.partial(moe, limit=LIMIT, dtype=jnp.float32))


def check(tokens, form, kind="random"):
    gate_up, gate_up_bias, down, down_bias = weights(form)
    x, (experts, gates) = draw(tokens, D, seed=5), route(tokens, kind)
    got = run(x, experts, gates, gate_up, gate_up_bias, down, down_bias)
    wanted = expected(x, experts, gates, gate_up_bias, down_bias)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(got)[~wanted.any(1)], 0)
    assert not wanted.any() or oracle.error(got, wanted) < EXACT


FORMS = [(1, "packed"), (1, "split"), (7, "stacked"), (7, "tiles"), (17, "packed"), (40, "split"), (300, "stacked")]


@pytest.mark.parametrize("tokens, form", FORMS)
def test_moe_is_the_formula(tokens, form):
    check(tokens, form)


@pytest.mark.quick("xla")
@pytest.mark.parametrize("form", ["xla", "few", "many"])
def test_alpha_is_the_sigmoids(form):
    """Of XLA's form, of a decode step's kernels, of the grouped ones."""
    gate_up, gate_up_bias, down, down_bias = weights("tiles")
    x, (experts, gates) = draw(7, D, seed=5), route(7)
    op = functools.partial(moe, dtype=jnp.float32) if form == "xla" else getattr(mosaic, form)
    with hopper.interpret() if form != "xla" else contextlib.nullcontext():
        got = jax.jit(functools.partial(op, limit=LIMIT, alpha=1.1))(x, experts, gates, gate_up, gate_up_bias, down, down_bias)
    values = packed_weights()[1]
    wanted, other = (oracle.moe(x, experts, gates, values[0], gate_up_bias, values[1], down_bias, LIMIT, a) for a in (1.1, 1.702))
    assert oracle.error(got, wanted) < (EXACT if form == "xla" else 2.0**-7)
    assert oracle.error(other, wanted) > 2.0**-5, "another alpha would be seen"


@pytest.mark.parametrize("kind", ["one", "few", "some", "many", "none"])
@pytest.mark.parametrize("tokens, form", [(7, "stacked"), (40, "split"), (300, "stacked")])
def test_any_routing(tokens, form, kind):
    """All tokens to one expert, no tokens for some, entries that are not routed: nothing is dropped."""
    check(tokens, form, kind)


@pytest.mark.parametrize("form", ["packed", "tiles", "stacked", "split"])
def test_only_routed_experts_are_read(form):
    tokens = {"packed": 17, "tiles": 17, "stacked": 7, "split": 40}[form]
    gate_up, gate_up_bias, down, down_bias = weights(form)
    x, (experts, gates) = draw(tokens, D, seed=5), route(tokens, "few")
    unrouted = [0, 3, 5]

    def spoil(w):
        if isinstance(w, Mxfp4):
            return Mxfp4(w.blocks, np.where(np.isin(np.arange(E), unrouted)[:, None, None], np.uint8(255), np.asarray(w.scales)))
        if isinstance(w, Tiles):
            return Tiles(w.words, w.scales.at[np.array(unrouted)].set(0xFFFFFFFF))
        if isinstance(w, tuple):
            return tuple(np.full_like(one, np.nan) if e in unrouted else one for e, one in enumerate(w))
        return np.where(np.isin(np.arange(E), unrouted).reshape(E, *[1] * (w.ndim - 1)), np.float32(np.nan), w)

    whole = run(x, experts, gates, gate_up, gate_up_bias, down, down_bias)
    spoiled = run(x, experts, gates, spoil(gate_up), spoil(gate_up_bias), spoil(down), spoil(down_bias))
    np.testing.assert_array_equal(whole, spoiled)


@pytest.mark.parametrize("tokens, form", [(1, "packed"), (32, "packed"), (32, "tiles")])
def test_one_expert_is_unpacked_at_a_time(tokens, form):
    e, d = 32, 2880
    u8, f32 = (functools.partial(jax.ShapeDtypeStruct, dtype=dtype) for dtype in (jnp.uint8, jnp.float32))
    packed = lambda rows: Mxfp4(u8((e, rows, d // 32, 16)), u8((e, rows, d // 32)))
    matrix = lambda rows: packed(rows) if form == "packed" else jax.eval_shape(lambda w: to_tiles(w, rows // d), packed(rows))
    shapes = (
        f32((tokens, d)), jax.ShapeDtypeStruct((tokens, 4), jnp.int32), f32((tokens, 4)),
        matrix(2 * d), f32((e, 2 * d)), matrix(d), f32((e, d)),
    )  # fmt: skip
    compiled = jax.jit(functools.partial(moe, limit=7.0)).lower(*shapes).compile()
    expert = 2 * 3 * d * d  # bytes of both matrices in bfloat16; all 32 would be 1.6 GB
    assert compiled.memory_analysis().temp_size_in_bytes < (3 if form == "tiles" else 2) * expert  # tiles become packed first


def test_gradients_are_those_of_the_formula():
    tokens = 20
    (gate_up, gate_up_bias, down, down_bias), (experts, gates) = weights("stacked"), route(tokens, "some")
    args = [draw(tokens, D, seed=5), gates, gate_up, gate_up_bias, down, down_bias]
    way, weigh = [draw(*x.shape, seed=20 + i) for i, x in enumerate(args)], draw(tokens, D, seed=9)
    loss = lambda x, gates, *rest: jnp.sum(moe(x, experts, gates, *rest, limit=LIMIT) * weigh)
    grads = jax.jit(jax.grad(loss, argnums=tuple(range(6))))(*args)

    def exact(args):
        x, gates, *rest = args
        return np.sum(oracle.moe(x, experts, gates, *rest, LIMIT) * weigh)

    step = 1e-7  # small, so that few of the inputs to the clamps cross them
    for i in range(6):
        ends = [[x.astype(np.float64) + (sign * step * way[j] if i == j else 0) for j, x in enumerate(args)] for sign in (1, -1)]
        slope = (exact(ends[0]) - exact(ends[1])) / (2 * step)
        assert np.sum(np.asarray(grads[i], np.float64) * way[i]) == pytest.approx(slope, rel=1e-4)


@pytest.mark.thorough
def test_gradients_around_the_kernels_are_those_of_the_xla_form():
    """A kernel has no derivative of its own; in bfloat16 both are the same computation."""
    gate_up, gate_up_bias, down, down_bias = jax.tree.map(jnp.asarray, weights("tiles"))
    (experts, gates), weigh = (jnp.asarray(x) for x in route(7)), draw(7, D, seed=9)

    def loss(x, gates, down_bias, implementation):
        y = moe(x, experts, gates, gate_up, gate_up_bias, down, down_bias, limit=LIMIT, implementation=implementation)
        return jnp.sum(y * weigh)

    args = (draw(7, D, seed=5), gates, down_bias)
    named, plain = (jax.jit(jax.grad(functools.partial(loss, implementation=name), argnums=(0, 1, 2)))(*args) for name in ("mosaic", "xla"))
    for a, b in zip(named, plain, strict=True):
        assert np.any(b) and np.array_equal(a, b)


@pytest.mark.parametrize("form", ["packed", "stacked", "split", "tiles"])
def test_a_low_rank_term_beside_the_weights_is_part_of_them(form):
    tokens, r = 20, 3
    gate_up, gate_up_bias, down, down_bias = weights(form)
    a1, b1 = draw(E, r, D, seed=30, scale=0.2), draw(E, 2 * F, r, seed=31, scale=0.2)
    a2, b2 = draw(E, r, F, seed=32, scale=0.2), draw(E, D, r, seed=33, scale=0.2)
    (experts, gates), x = route(tokens, "some"), draw(tokens, D, seed=5)
    run = jax.jit(functools.partial(moe, limit=LIMIT, dtype=jnp.float32))
    got = run(x, experts, gates, LowRank(gate_up, a1, b1), gate_up_bias, LowRank(down, a2, b2), down_bias)
    whole = [w + b.astype(np.float64) @ a for w, a, b in zip(packed_weights()[1], (a1, a2), (b1, b2), strict=True)]
    wanted = oracle.moe(x, experts, gates, whole[0], gate_up_bias, whole[1], down_bias, LIMIT)
    assert oracle.error(got, wanted) < EXACT
    only = run(x, experts, gates, gate_up, gate_up_bias, LowRank(down, a2, b2), down_bias)
    assert oracle.error(only, oracle.moe(x, experts, gates, packed_weights()[1][0], gate_up_bias, whole[1], down_bias, LIMIT)) < EXACT


def test_no_kernel_takes_a_low_rank_term():
    gate_up, gate_up_bias, down, down_bias = weights("tiles")
    low = LowRank(down, draw(E, 2, F), draw(E, D, 2))
    with pytest.raises(NotImplementedError, match="weights must be in tiles"):
        moe(draw(7, D), *route(7), gate_up, gate_up_bias, low, down_bias, limit=LIMIT, implementation="mosaic")


def test_vmap_is_a_loop():
    x, routes, rest = draw(2, 7, D, seed=5), [route(7), route(7, "some")], [jnp.asarray(w) for w in weights("stacked")]
    experts, gates = (np.stack(pair) for pair in zip(*routes, strict=True))
    got = jax.jit(jax.vmap(lambda *args: moe(*args, *rest, limit=LIMIT)))(x, experts, gates)
    for i in range(2):
        assert oracle.error(got[i], expected(x[i], experts[i], gates[i], rest[1], rest[3])) < EXACT


def test_packed_weights_are_multiplied_in_the_given_dtype():
    rest, x, (experts, gates) = weights("packed"), draw(7, D, seed=5), route(7)
    got = jax.jit(functools.partial(moe, limit=LIMIT))(x, experts, gates, *rest)  # bfloat16
    error = oracle.error(got, expected(x, experts, gates, rest[1], rest[3]))
    assert EXACT < error < 2**-7  # two products, whose inputs are rounded to 8 bits


def test_named_implementations_run_or_raise():
    args = draw(7, D, seed=5), *route(7), *weights("stacked")
    with pytest.raises(NotImplementedError, match="no 'mosaic' implementation for this call: weights must be in tiles"):
        moe(*args, limit=LIMIT, implementation="mosaic")
    with pytest.raises(ValueError, match="implementation must be None, 'xla' or 'mosaic'; got 'triton'"):
        moe(*args, limit=LIMIT, implementation="triton")


def test_impossible_shapes_are_refused():
    x, (experts, gates) = draw(7, D, seed=5), route(7)
    gate_up, gate_up_bias, down, down_bias = weights("stacked")
    with pytest.raises(ValueError, match="down must have shape"):
        moe(x, experts, gates, gate_up, gate_up_bias, down[:, :32], down_bias, limit=LIMIT)
    with pytest.raises(ValueError, match="gate_up must have shape"):
        moe(x, experts, gates, gate_up[:5], gate_up_bias, down, down_bias, limit=LIMIT)
    with pytest.raises(ValueError, match="experts and gates must be"):
        moe(x, experts, gates[:, :2], gate_up, gate_up_bias, down, down_bias, limit=LIMIT)
