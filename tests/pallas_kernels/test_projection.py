"""The projections of a decode step: kernels against formulas, rows that nobody may see or write, and what a Hopper makes of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from pallas_kernels import aot, hopper, projection
from pallas_kernels.projection import mosaic_qkv, reference

EPS = 1e-5
D, K, G, H = 192, 2, 2, 64  # 32 groups of 8 pairs: 11 blocks of 3, the last one with 2
P, PAGE = 20, 16
OUT = 128  # 6 blocks of 24, or 3 of 48, the last one a part


def qkv_inputs(M, seed=0, D=D, K=K, G=G):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    low = lambda *shape: jnp.asarray(draw(*shape), jnp.bfloat16)
    x, angle = draw(M, D), rng.uniform(0, 6, (M, H // 2)).astype(np.float32)
    return dict(
        x=jnp.asarray(x, jnp.bfloat16),
        square_sum=np.sum(x * x, -1),
        w=low(K, G + 2, H, D),
        bias=draw(K, G + 2, H),
        cos=1.3 * np.cos(angle),
        sin=1.3 * np.sin(angle),
        k_pages=low(P, K, PAGE, H),
        v_pages=low(P, K, PAGE, H),
        page=np.arange(M, dtype=np.int32) % P,
        offset=(3 + np.arange(M, dtype=np.int32) + np.arange(M, dtype=np.int32) // P) % PAGE,  # no two rows of a page in one place
    )


def out_inputs(M, seed=0, D=D, OUT=OUT):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    low = lambda *shape: jnp.asarray(draw(*shape), jnp.bfloat16)
    return dict(x=low(M, D), w=low(OUT, D), bias=draw(OUT), residual=draw(M, OUT), gain=draw(OUT))


def unembed_inputs(M, seed=0, D=D, OUT=OUT):
    x = np.random.default_rng(seed).standard_normal((M, D)).astype(np.float32)
    return dict(x=jnp.asarray(x, jnp.bfloat16), square_sum=np.sum(x * x, -1), w=out_inputs(M, seed, D, OUT)["w"])


def few(op, M):
    """Inputs with fewer heads, where their number does not matter."""
    return qkv_inputs(M, K=1, G=1) if op == "qkv" else OPS[op][2](M)


OPS = {
    "qkv": (functools.partial(projection.project_qkv, eps=EPS), functools.partial(reference.project_qkv, eps=EPS), qkv_inputs),
    "out": (projection.project_out, reference.project_out, out_inputs),
    "unembed": (functools.partial(projection.unembed, eps=EPS), functools.partial(reference.unembed, eps=EPS), unembed_inputs),
}


def run(op, args, implementation="mosaic"):
    function = jax.jit(functools.partial(OPS[op][0], implementation=implementation))
    with hopper.interpret():
        return [np.asarray(out.astype(jnp.float32)) for out in jax.tree.leaves(function(**args))]


def exact(op, args):
    """The formula in float32 on the same operands."""
    wide = {name: a.astype(jnp.float32) for name, a in args.items() if a.dtype == jnp.bfloat16}
    return [np.asarray(out) for out in jax.tree.leaves(OPS[op][1](*(args | wide).values()))]


@pytest.mark.quick("out-5", "unembed-5")
@pytest.mark.parametrize("M", [1, 5, 16, 64])
@pytest.mark.parametrize("op", OPS)
def test_kernel_is_the_formula(op, M):
    check(op, OPS[op][2](M))


@pytest.mark.thorough
@pytest.mark.parametrize("M", [3, 64])
@pytest.mark.parametrize("op, sizes", [("qkv", dict(D=1728, K=1, G=1)), ("out", dict(D=4096, OUT=64)), ("unembed", dict(D=2880, OUT=64))])
def test_stages_are_filled_many_times_over(op, sizes, M):
    check(op, OPS[op][2](M, **sizes))


def check(op, args):
    """The kernel's error to float32 is at most twice that of the plain form."""
    for got, plain, wanted in zip(run(op, args), run(op, args, "xla"), exact(op, args), strict=True):
        assert got.shape == wanted.shape
        assert oracle.error(got, wanted) <= max(2 * oracle.error(plain, wanted), 1e-6)  # sums of float32 differ by their order


@pytest.mark.parametrize("implementation", ["xla", "mosaic"])
def test_active_rows_alone_reach_the_cache_each_in_its_place(implementation):
    args = qkv_inputs(6)
    args["page"][[1, 3, 5]] = [P, P + 7, 2**30]
    _, k, v = run("qkv", args, implementation)
    for name, pages in (("k_pages", k), ("v_pages", v)):
        before = np.asarray(args[name], np.float32)
        written = np.zeros(before.shape, bool)
        for m in (0, 2, 4):
            written[args["page"][m], :, args["offset"][m]] = True
        np.testing.assert_array_equal(pages[~written], before[~written])
        assert np.mean(pages[written] != before[written]) > 0.9
    args["page"][:] = P
    q, k, v = run("qkv", args, implementation)
    assert np.all(np.isfinite(q))
    np.testing.assert_array_equal(k, np.asarray(args["k_pages"], np.float32))
    np.testing.assert_array_equal(v, np.asarray(args["v_pages"], np.float32))


@pytest.mark.parametrize("implementation", ["xla", "mosaic"])
def test_a_quarter_turn_moves_the_second_half_to_the_first(implementation):
    args = few("qkv", 2)
    still, turned = args | dict(cos=np.ones((2, H // 2), np.float32), sin=np.zeros((2, H // 2), np.float32)), dict(args)
    turned |= dict(cos=still["sin"], sin=still["cos"])
    (q, k, v), (q2, k2, v2) = run("qkv", still, implementation), run("qkv", turned, implementation)
    half = H // 2
    rows = lambda pages: np.stack([pages[args["page"][m], :, args["offset"][m]] for m in range(2)])  # [2, K, H]
    for before, after in ((q, q2), (rows(k), rows(k2))):
        np.testing.assert_array_equal(after[..., :half], -before[..., half:])
        np.testing.assert_array_equal(after[..., half:], before[..., :half])
    np.testing.assert_array_equal(v2, v)  # values do not turn


@pytest.mark.parametrize("op", OPS)
def test_a_row_does_not_depend_on_the_others_nor_on_their_number(op):
    args, m = few(op, 16), 12
    by_row = {"x", "square_sum", "cos", "sin", "page", "offset", "residual"}
    together = run(op, args)
    alone = run(op, {name: a[m : m + 1] if name in by_row else a for name, a in args.items()})
    place = [(m,), (0,)]  # of the row in each run's outputs
    if op == "qkv":
        np.testing.assert_array_equal(alone[0][0], together[0][m])
        place, alone, together = [(args["page"][m], slice(None), args["offset"][m])] * 2, alone[1:], together[1:]
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a[place[1]], b[place[0]])


@pytest.mark.parametrize("op", OPS)
def test_a_row_that_is_not_a_number_harms_no_other(op):
    args = few(op, 5)
    before = run(op, args)
    args["x"] = args["x"].at[2].set(jnp.nan)
    after = run(op, args)
    others = [0, 1, 3, 4]
    np.testing.assert_array_equal(after[0][others], before[0][others])
    assert np.all(np.isnan(after[0][2]))


@pytest.mark.parametrize("op", OPS)
def test_rows_need_not_be_a_multiple_of_anything(op):
    check(op, few(op, 11))


def test_what_the_kernels_do_not_cover():
    args = out_inputs(65)
    with pytest.raises(NotImplementedError, match="at most 64 rows"):
        run("out", args)
    assert run("out", args, None)[0].shape == (65, OUT)
    with pytest.raises(NotImplementedError, match="bfloat16"):
        run("out", out_inputs(2) | dict(w=jnp.zeros((OUT, D))))
    with pytest.raises(NotImplementedError, match="multiple of 64"):
        run("unembed", dict(x=args["x"][:2, :96], square_sum=np.ones(2, np.float32), w=args["w"][:, :96]))
    args = qkv_inputs(2)
    with pytest.raises(NotImplementedError, match="64 wide"):
        narrow = dict(w=args["w"][:, :, :32], bias=args["bias"][:, :, :32], cos=args["cos"][:, :16], sin=args["sin"][:, :16])
        run("qkv", args | narrow | dict(k_pages=args["k_pages"][..., :32], v_pages=args["v_pages"][..., :32]))
    with pytest.raises(NotImplementedError, match="pages must be bfloat16"):
        run("qkv", args | {name: args[name].astype(jnp.float32) for name in ("k_pages", "v_pages")})


def test_float32_weights_are_multiplied_in_full():
    args = out_inputs(3) | dict(w=out_inputs(3)["w"].astype(jnp.float32))
    y, scaled = projection.project_out(**args)
    assert scaled.dtype == jnp.float32
    assert oracle.error(np.asarray(y), exact("out", args)[0]) < 1e-6


@pytest.mark.parametrize(
    "op, wrong, message",
    [
        ("out", dict(bias=np.zeros(OUT + 1, np.float32)), "bias must be"),
        ("out", dict(residual=np.zeros((1, OUT), np.float32)), "residual must be"),
        ("out", dict(w=jnp.zeros((OUT, D + 64), jnp.bfloat16)), "w must be"),
        ("unembed", dict(square_sum=np.zeros(2, np.float16)), "square_sum must be float32"),
        ("unembed", dict(x=jnp.zeros((0, D), jnp.bfloat16)), "at least one row"),
        ("qkv", dict(page=np.zeros(2, np.int16)), "page must be int32"),
        ("qkv", dict(cos=np.zeros((2, H), np.float32)), "cos must be"),
        ("qkv", dict(w=jnp.zeros((K, 2, H, D), jnp.bfloat16)), "w must be"),
        ("qkv", dict(v_pages=jnp.zeros((P + 1, K, PAGE, H), jnp.bfloat16)), "k_pages and v_pages"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(op, wrong, message):
    with pytest.raises(ValueError, match=message):
        run(op, OPS[op][2](2) | wrong)


# Registers allowed, and blocks on a multiprocessor, that the tuning table counts on.
PLAN = {
    "qkv": {1: (96, 1), 16: (96, 1), 64: (96, 1)},
    "out": {1: (64, 1), 16: (64, 1), 64: (96, 1)},
    "unembed": {1: (72, 2), 16: (72, 2), 64: (128, 1)},
}


def full_size(op, M):
    """Arguments of gpt-oss' shapes, without values."""
    D, N, H, pages = 2880, 64, 64, (256, 8, 64, 64)
    low, exact, index = (functools.partial(jax.ShapeDtypeStruct, dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32, jnp.int32))
    if op == "qkv":
        tables = [exact((8, 10, H)), exact((M, H // 2)), exact((M, H // 2))]
        return [low((M, D)), exact((M,)), low((8, 10, H, D)), *tables, low(pages), low(pages), index((M,)), index((M,))]
    if op == "out":
        return [low((M, N * H)), low((D, N * H)), exact((D,)), exact((M, D)), exact((D,))]
    return [low((M, D)), exact((M,)), low((201_088, D))]


@pytest.mark.quick("unembed-1")
@pytest.mark.skipif(aot.unavailable() is not None, reason=str(aot.unavailable()))
@pytest.mark.parametrize("M", [1, 16, 64])
@pytest.mark.parametrize("op", OPS)
def test_compiled_for_a_hopper(op, M):
    args = full_size(op, M)
    donated = (6, 7) if op == "qkv" else ()  # the pages
    report = aot.compile(OPS[op][0], *args, donate_argnums=donated)
    (kernel,) = report.kernels
    registers, blocks = PLAN[op][M]
    assert (report.launches, kernel.pallas, kernel.wgmma > 0) == ((kernel.name,), True, True)
    assert (kernel.spill_bytes, kernel.stack_bytes) == (0, 0)
    assert kernel.registers <= registers and kernel.ctas_per_sm >= blocks
    assert report.temporary_bytes < 1024  # no copy of anything
    assert report.alias_bytes == sum(args[i].size * 2 for i in donated)


def test_groups_of_pairs_are_a_head():
    assert mosaic_qkv.GROUPS * mosaic_qkv.PAIRS * 2 == mosaic_qkv.H
