"""The mixture of experts of a decode step: formula against NumPy, kernels against the formula, what no token may do to another."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from pallas_kernels import hopper
from pallas_kernels.moe import decode, tuning
from pallas_kernels.mxfp4 import Mxfp4
from pallas_kernels.mxfp4.tiles import Tiles, tiled_shapes, to_tiles
from pallas_kernels.routing import Routing, of_experts

LIMIT = 0.7  # small, so that many values reach it
cut = jax.jit(to_tiles, static_argnums=1)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A call's arguments, and what they were made of."""

    rows: jax.Array
    experts: np.ndarray
    gates: np.ndarray
    scale: np.ndarray
    packed: tuple[Mxfp4, Mxfp4]
    biases: tuple[np.ndarray, np.ndarray]
    A: int

    @property
    def E(self) -> int:
        return len(self.biases[0])

    def some(self, tokens) -> "Inputs":
        """Of these tokens only."""
        tokens = np.array(tokens)
        return dataclasses.replace(self, **{name: getattr(self, name)[tokens] for name in ("rows", "experts", "gates", "scale")})


@functools.cache
def weights(E, D, F):
    rng = np.random.default_rng(E + D)

    def draw(*shape):
        blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // 32, 16), np.uint8)
        return Mxfp4(blocks, rng.integers(119, 124, blocks.shape[:-1]).astype(np.uint8))

    bias = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return (draw(E, 2 * F, D), draw(E, D, F)), (bias(E, 2 * F), bias(E, D))


def inputs(M, E=4, D=128, F=128, A=2, seed=0, among=None):
    """Random tokens, each routed to A experts of those in `among`."""
    rng = np.random.default_rng(seed)
    among = np.arange(E) if among is None else np.array(among)
    experts = np.stack([rng.permutation(among)[:A] for _ in range(M)]).astype(np.int32)
    gates, scale = (rng.uniform(low, high, shape).astype(np.float32) for low, high, shape in ((0.1, 1, (M, A)), (0.05, 0.2, M)))
    rows = jnp.asarray(5 * rng.standard_normal((M, D)), jnp.bfloat16)
    return Inputs(rows, experts, gates, scale, *weights(E, D, F), A)


@functools.cache
def compiled(A, E, implementation, table):
    """The two ops; traced again for another tuning table."""

    def both(rows, experts, gates, scale, tiles, biases, h):
        scale = jnp.pad(scale, (0, 64 - len(scale)), constant_values=jnp.nan)
        routing = of_experts(experts, gates, E).replace(scale=scale)
        options = {"num_active": A, "implementation": implementation}
        made = decode.gate_up(rows, routing, tiles[0], biases[0], limit=LIMIT, **options)
        return made, decode.down(made if h is None else h, routing, tiles[1], biases[1], **options)

    return jax.jit(both)


def run(x, implementation="mosaic", dtype=jnp.bfloat16, h=None, detect_races=False):
    """h and the terms. Where `h` is given, the terms are of that."""
    tiles = cut(x.packed[0], 2), cut(x.packed[1], 1)
    with hopper.interpret(detect_races=detect_races):
        ops = compiled(x.A, x.E, implementation, (tuple(tuning.DECODE.values()), detect_races))
        out = ops(x.rows.astype(dtype), x.experts, x.gates, x.scale, tiles, x.biases, h)
        return [np.asarray(a).astype(np.float64) for a in out]


def slots(x):
    """The experts that some token is routed to."""
    return sorted(set(x.experts[x.experts < x.E].tolist()))


def planes(x):
    """Where each token's terms are: [A, M], the place among its experts of the one that has rank r; and whether there is one."""
    order = np.argsort(x.experts, axis=1, kind="stable").T
    return order, np.take_along_axis(x.experts.T, order, 0) < x.E


def real(x, h, terms):
    """What means something: h of the slots in use, terms of experts that there are."""
    return h[: len(slots(x))], terms[planes(x)[1]]


def dense(x, h=None):
    """The same in float64 NumPy, one expert or token after the other."""
    (up, down), (b1, b2) = (oracle.unpack(w.blocks, w.scales) for w in x.packed), x.biases
    rows, (order, there), used = np.asarray(x.rows, np.float64) * x.scale[:, None], planes(x), slots(x)
    exact = np.zeros((len(used), len(rows), up.shape[1] // 2))
    for s, e in enumerate(used):
        y = rows @ up[e].T + b1[e]
        gate, linear = np.minimum(y[:, 0::2], LIMIT), np.clip(y[:, 1::2], -LIMIT, LIMIT)
        exact[s] = gate / (1 + np.exp(-1.702 * gate)) * (linear + 1)
    h, terms = exact if h is None else h, []
    for r, m in np.argwhere(there):
        e = x.experts[m, order[r, m]]
        terms.append(x.gates[m, order[r, m]] * (down[e] @ h[used.index(e), m] + b2[e]))
    return exact, np.array(terms)


def check(x, **options):
    """The kernels' errors to float64 are at most twice those of the plain form in bfloat16."""
    plain = run(x, "xla")  # whose terms are of its h, which the others are given
    got, wanted = run(x, h=jnp.asarray(plain[0], jnp.bfloat16), **options), dense(x, plain[0])
    for g, p, w in zip(real(x, *got), real(x, *plain), wanted, strict=True):
        assert g.shape == w.shape
        assert oracle.error(g, w) <= max(2 * oracle.error(p, w), 1e-6)
    return got


@pytest.mark.parametrize("M, E, A", [(1, 32, 2), (5, 128, 3), (33, 32, 4)])
def test_formula_is_the_sum_over_experts(M, E, A):
    x = inputs(M, E, A=A)
    x.experts[M // 2, 1] = E  # not routed
    for got, wanted in zip(real(x, *run(x, "xla", jnp.float32)), dense(x), strict=True):
        assert oracle.error(got, wanted) < 1e-6


@pytest.mark.quick("20-4-128-192")
@pytest.mark.parametrize("M, E, D, F", [
    (1, 32, 192, 128), (5, 128, 128, 192), (16, 32, 192, 192), (20, 4, 128, 192), (64, 4, 128, 64), (3, 7, 64, 128), (2, 96, 64, 64)
])  # fmt: skip
def test_kernels_are_the_formula(M, E, D, F):
    check(inputs(M, E, D, F, A=1 + (M < 16), among=[2, E - 1]))


@pytest.mark.thorough
def test_stages_are_filled_many_times_over():
    check(inputs(3, E=2, D=1280, F=64, A=1, among=[1]), detect_races=True)


@pytest.mark.thorough
def test_all_tokens_to_one_expert():
    check(inputs(11, A=1, among=[3]))


@pytest.mark.thorough
def test_tokens_that_are_not_routed_change_nothing():
    x = inputs(5, among=[0, 1, 3])
    x.experts[1] = x.experts[4] = x.E
    x.experts[2, 0] = x.E
    x.gates[1] = np.nan
    (exact, wanted), got, there = dense(x), run(x), planes(x)[1]
    for g, w in zip(real(x, *got), (exact, wanted), strict=True):
        assert oracle.error(g, w) < 2.0**-8
    after = run(dataclasses.replace(x, rows=x.rows.at[np.array([1, 4])].set(jnp.nan)))
    np.testing.assert_array_equal(after[0][:3, [0, 2, 3]], got[0][:3, [0, 2, 3]])
    np.testing.assert_array_equal(after[1][there], got[1][there])
    x.experts[:] = x.E
    assert [out.shape for out in run(x)] == [(4, 5, 128), (2, 5, 128)]


@pytest.mark.thorough
def test_a_token_does_not_depend_on_the_others_nor_on_their_number():
    x = inputs(5, among=[0, 1, 3])  # 8 would be as wide: XLA's products, the interpreter's, may differ with the width
    together = run(x)
    for m in (2, 4):
        h, terms = run(x.some([m]))
        np.testing.assert_array_equal(h[:, 0], together[0][[slots(x).index(e) for e in sorted(x.experts[m].tolist())], m])
        np.testing.assert_array_equal(terms[:, 0], together[1][:, m])


@pytest.mark.thorough
@pytest.mark.parametrize("M", [5, 16])
def test_a_token_that_is_not_a_number_harms_no_other(M):
    x = inputs(M, among=[0, 3])
    before, others = run(x), [m for m in range(M) if m != 2]
    h, terms = run(dataclasses.replace(x, rows=x.rows.at[2].set(jnp.nan)))
    np.testing.assert_array_equal(h[:2, others], before[0][:2, others])
    np.testing.assert_array_equal(terms[:, others], before[1][:, others])
    assert np.all(np.isnan(terms[:, 2]))


@pytest.mark.thorough
@pytest.mark.parametrize("units, chunks, stages", [(1, 1, 2), (4, 2, 3)])
def test_tuning_changes_no_bit(units, chunks, stages, monkeypatch):
    x = inputs(16, among=[0, 3])
    before = run(x)
    for op in tuning.DECODE:
        monkeypatch.setitem(tuning.DECODE, op, (tuning.Decode(64, units, chunks, stages),))
    for a, b in zip(real(x, *before), real(x, *run(x)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_refused():
    x, options = inputs(2), {"num_active": 2}
    routing, up, down = of_experts(x.experts, x.gates, x.E), cut(x.packed[0], 2), cut(x.packed[1], 1)
    h = jnp.zeros((4, 2, 128), jnp.bfloat16)
    gate_up = functools.partial(decode.gate_up, limit=LIMIT, **options)
    with pytest.raises(NotImplementedError, match="bfloat16"):
        gate_up(x.rows.astype(jnp.float32), routing, up, x.biases[0], implementation="mosaic")
    with pytest.raises(NotImplementedError, match="bfloat16"):
        decode.down(h.astype(jnp.float32), routing, down, x.biases[1], implementation="mosaic", **options)
    with pytest.raises(ValueError, match="1 to 64 tokens"):
        gate_up(jnp.zeros((65, 192), jnp.bfloat16), routing, up, x.biases[0])
    with pytest.raises(ValueError, match="2 interleaved"):
        gate_up(x.rows, routing, cut(x.packed[0], 1), x.biases[0])
    with pytest.raises(ValueError, match="weights must be"):
        gate_up(x.rows[:, :64], routing, up, x.biases[0])
    with pytest.raises(ValueError, match="float32 with a row per expert"):
        gate_up(x.rows, routing, up, x.biases[0].astype(np.float16))
    with pytest.raises(ValueError, match="of the bias' 3 experts"):
        gate_up(x.rows, routing, up, x.biases[0][:3])
    with pytest.raises(ValueError, match="as `gate_up` gives it"):
        decode.down(h[:3], routing, down, x.biases[1], **options)
    with pytest.raises(ValueError, match="1 <= num_active"):
        decode.down(h, routing, down, x.biases[1], num_active=0)


# Registers allowed, and blocks on a multiprocessor, that the tuning table counts on.
PLAN = {
    "gate_up": {1: (72, 3), 16: (80, 3), 32: (128, 2), 64: (200, 2)},
    "down": {1: (72, 3), 16: (80, 3), 32: (120, 3), 64: (168, 2)},
}


def full_size(op, E, M, A=4, D=2880):
    """Arguments of gpt-oss' shapes, without values."""
    low, exact, index, word = (functools.partial(jax.ShapeDtypeStruct, dtype=d) for d in (jnp.bfloat16, jnp.float32, jnp.int32, jnp.uint32))
    routing = Routing(exact((E, 64)), index((E, 64)), index((-(-E // 64) * 64,)), exact((64,)))
    tiles = lambda shape, interleaved: Tiles(*map(word, tiled_shapes(shape, interleaved)))
    if op == "gate_up":
        return low((M, D)), routing, tiles((E, 2 * D, D), 2), exact((E, 2 * D))
    return low((min(M * A, E), M, D)), routing, tiles((E, D, D), 1), exact((E, D))


@pytest.mark.quick("gate_up-32-1", "down-32-1")
@pytest.mark.parametrize("E, M", [(32, 1), (32, 16), (32, 32), (32, 64), (128, 64)])
@pytest.mark.parametrize("op", PLAN)
def test_compiled_for_a_hopper(op, E, M, compile_for_hopper):
    function = functools.partial(getattr(decode, op), num_active=4, **({"limit": 7.0} if op == "gate_up" else {}))
    report = compile_for_hopper(function, *full_size(op, E, M))
    (kernel,) = report.kernels
    registers, blocks = PLAN[op][M]
    assert (report.launches, kernel.pallas) == ((kernel.name,), True)
    assert (kernel.spill_bytes, kernel.stack_bytes) == (0, 0)
    assert kernel.registers <= registers and kernel.ctas_per_sm >= blocks
    # Where ptxas cannot keep products apart it waits for each instruction: two of these for every HGMMA.
    assert kernel.wgmma and kernel.sass["WARPGROUP"] <= kernel.wgmma
    assert report.temporary_bytes < 1024  # no copy of anything
