"""Many tokens through experts in tiles: how rows are grouped, the kernels against the formula, and what a Hopper makes of them."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from pallas_kernels import hopper, mxfp4
from pallas_kernels.moe import grouping, moe, mosaic, mosaic_grouped, reference, tuning
from pallas_kernels.moe.tuning import Grouped, Step
from pallas_kernels.mxfp4.tiles import Tiles, tiled_shapes, to_tiles

LIMIT = 1.5  # near the inputs' scale, so that both clamps are seen
A = 3
SMALL = Grouped(0, 8, Step(2, 1, 2), Step(3, 3, 2))  # blocks so small that an expert has several

group = jax.jit(lambda experts, E, block: vars(grouping.group(experts, E, block)), static_argnums=(1, 2))


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.sampled_from([(1, 1, 1, 8), (7, 3, 5, 4), (33, 2, 4, 8), (40, 4, 128, 16), (150, 4, 6, 2)]), st.integers(0, 99))
def test_every_routed_pair_has_one_row_in_a_block_of_its_expert(shape, seed):
    M, A, E, block = shape
    rng = np.random.default_rng(seed)
    few = rng.integers(0, E + 2, rng.integers(1, 4))
    check_groups(np.where(rng.random((M, A)) < rng.random(), rng.choice(few, (M, A)), rng.integers(0, E + 3, (M, A))), E, block)


@pytest.mark.parametrize("experts", [0, 5, 6, 2**31 - 1])
def test_all_to_one_expert_or_none_at_all(experts):
    check_groups(np.full((150, 4), experts), 6, 2)


def test_the_most_blocks_that_there_can_be():
    experts = np.repeat(np.arange(4), [9, 9, 9, 37])  # of 4 each: every expert has one row in its last block
    check_groups(experts.reshape(16, 4), 4, 4)
    assert np.all(np.asarray(group(experts.reshape(16, 4), 4, 4)["expert"]) < 4)


def check_groups(experts, E, block):
    M, A = experts.shape
    got = {name: np.asarray(a) for name, a in group(experts.astype(np.int32), E, block).items()}
    of_block, token, place = got["expert"], got["token"], got["place"]
    assert len(of_block) == grouping.most_blocks(M * A, E, block) and len(token) == len(of_block) * block
    routed = experts < E
    counts = np.bincount(experts[routed], minlength=E)
    used = np.repeat(np.arange(E), -(-counts // block))
    np.testing.assert_array_equal(of_block, np.r_[used, np.full(len(of_block) - len(used), E)])
    assert token.min() >= 0 and token.max() < M and place.min() >= 0 and place.max() < len(token)
    np.testing.assert_array_equal(token[place[routed]], np.nonzero(routed)[0])
    for e in np.nonzero(counts)[0]:  # without gaps, and in the pairs' order
        first = np.nonzero(of_block == e)[0][0] * block
        np.testing.assert_array_equal(place[experts == e], first + np.arange(counts[e]))


@functools.cache
def weights(E, D, F):
    """gate_up, its bias, down, its bias."""
    rng = np.random.default_rng(0)
    draw = lambda *shape, scale=1.0: rng.normal(0, scale, shape).astype(np.float32)
    tiles = jax.jit(lambda w, interleaved: to_tiles(mxfp4.quantize(w), interleaved), static_argnums=1)
    return tiles(draw(E, 2 * F, D, scale=0.1), 2), draw(E, 2 * F), tiles(draw(E, D, F, scale=0.1), 1), draw(E, D)


def tokens(M, E, D, seed=1):
    rng = np.random.default_rng(seed)
    experts = np.stack([rng.permutation(E)[:A] for _ in range(M)]).astype(np.int32)
    return rng.normal(0, 1, (M, D)).astype(np.float32), experts, rng.dirichlet(np.ones(A), M).astype(np.float32)


def run(args, *others, form=mosaic.many, detect_races=False):
    """What the form makes of args; of several, a list."""
    jitted = jax.jit(functools.partial(form, limit=LIMIT))
    with hopper.interpret(detect_races=detect_races):
        got = [np.asarray(jitted(*a)) for a in (args, *others)]
    return got if others else got[0]


exact, plain = (jax.jit(functools.partial(reference.moe, limit=LIMIT, dtype=dtype)) for dtype in (jnp.float32, jnp.bfloat16))


def check(args, got):
    """The kernel's error to float32 is at most twice that of XLA's form in bfloat16."""
    wanted = exact(*args)
    assert got.shape == wanted.shape and got.dtype == np.float32
    assert oracle.error(got, wanted) <= 2 * oracle.error(plain(*args), wanted)


# Tiles of 64 rows: of h 3 and 5, of the result 1 to 3; odd for two warpgroups, and no multiple of three.
@pytest.mark.quick("0-5-sizes1")
@pytest.mark.parametrize("row, M, sizes", [
    (SMALL, 7, (3, 128, 192)), (0, 5, (4, 64, 320)), (5, 40, (3, 192, 192)), (6, 50, (3, 128, 192))
])  # fmt: skip
def test_kernels_are_the_formula(row, M, sizes, monkeypatch):
    row = tuning.GROUPED[row] if isinstance(row, int) else row
    monkeypatch.setattr(tuning, "grouped", lambda pairs: row)
    args = *tokens(M, *sizes[:2]), *weights(*sizes)
    check(args, run(args, detect_races=row is SMALL))


@pytest.mark.thorough
@pytest.mark.parametrize("M, sizes", [(5, (32, 64, 64)), (4, (128, 64, 128)), (9, (7, 64, 64)), (5, (96, 64, 64))])
def test_many_experts(M, sizes):
    args = *tokens(M, *sizes[:2]), *weights(*sizes)
    check(args, run(args))


@pytest.mark.thorough
@pytest.mark.parametrize("form", [mosaic.many, mosaic.few])
def test_tokens_and_entries_that_are_not_routed_cost_nothing_and_add_zero(form):
    """Nobody is routed to expert 1, whose weights are not numbers; nor is token 2, which is none either."""
    (x, experts, gates), (gate_up, gate_up_bias, down, down_bias) = tokens(6, 4, 64), weights(4, 64, 64)
    experts[experts == 1] = 5
    experts[2] = 4
    spoil = lambda w: Tiles(w.words, w.scales.at[1].set(0xFFFFFFFF))
    rest = gates, spoil(gate_up), gate_up_bias, spoil(down), down_bias
    x2 = np.where(np.arange(6)[:, None] == 2, np.float32(np.nan), x)
    some, none = run((x2, experts, *rest), (x, np.full_like(experts, 4), *rest), form=form)
    check((x, experts, gates, gate_up, gate_up_bias, down, down_bias), some)
    np.testing.assert_array_equal(some[2], 0)
    np.testing.assert_array_equal(none, 0)


@pytest.mark.thorough
def test_a_token_does_not_depend_on_the_others_nor_on_their_number(monkeypatch):
    monkeypatch.setattr(tuning, "grouped", lambda pairs: SMALL)
    (x, experts, gates), rest = tokens(6, 3, 128), weights(3, 128, 64)
    x2 = np.where(np.arange(6)[:, None] == 4, x, np.float32(np.nan))
    some = slice(3, 5)
    together, alone, fewer = run((x, experts, gates, *rest), (x2, experts, gates, *rest), (x[some], experts[some], gates[some], *rest))
    np.testing.assert_array_equal(alone[4], together[4])
    np.testing.assert_array_equal(fewer, together[some])


@pytest.mark.thorough
@pytest.mark.parametrize("M, name", [(3, "moe_gate_up"), (tuning.MOST_DECODED + 1, "moe_gate_up_grouped")])
def test_the_op_takes_the_kernels_on_a_hopper(M, name):
    args = *tokens(M, 4, 64), *weights(4, 64, 64)
    check(args, run(args, form=moe))
    with hopper.interpret():
        assert f"kernel_name='{name}'" in str(jax.make_jaxpr(functools.partial(moe, limit=LIMIT))(*args))


def test_what_the_kernels_do_not_cover():
    E, D, F = 4, 64, 64
    gate_up, gate_up_bias, down, down_bias = weights(E, D, F)
    args, one = tokens(3, E, D), jax.tree.map(lambda a: a.reshape(E, 2, 1, 1, -1), gate_up)
    with pytest.raises(NotImplementedError, match="computed in bfloat16, not float32"):
        moe(*args, gate_up, gate_up_bias, down, down_bias, limit=LIMIT, dtype=jnp.float32, implementation="mosaic")
    with pytest.raises(NotImplementedError, match="weights must be in tiles"):
        moe(*args, np.zeros(gate_up.shape), gate_up_bias, down, down_bias, limit=LIMIT, implementation="mosaic")
    with pytest.raises(ValueError, match=r"gate_up's tiles must interleave 2 matrices, not 1; use to_tiles\(w, 2\)"):
        moe(*args, one, gate_up_bias, down, down_bias, limit=LIMIT)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "E, M", [(32, 256), pytest.param(32, 8192, marks=pytest.mark.slow), pytest.param(128, 1024, marks=pytest.mark.slow), (128, 8192)]
)
def test_compiled_for_a_hopper(E, M, compile_for_hopper):
    D, F, A = 2880, 2880, 4
    low, exact, index = (functools.partial(jax.ShapeDtypeStruct, dtype=dtype) for dtype in (jnp.uint32, jnp.float32, jnp.int32))
    tiles = lambda shape, interleaved: Tiles(*map(low, tiled_shapes(shape, interleaved)))
    matrices = tiles((E, 2 * F, D), 2), exact((E, 2 * F)), tiles((E, D, F), 1), exact((E, D))
    report = compile_for_hopper(functools.partial(moe, limit=7.0), exact((M, D)), index((M, A)), exact((M, A)), *matrices)
    assert [k.name for k in report.pallas_kernels] == ["moe_gate_up_grouped", "moe_down_grouped"]
    for kernel in report.pallas_kernels:
        assert (kernel.spill_bytes, kernel.stack_bytes) == (0, 0)
        assert kernel.wgmma > 0 and kernel.ctas_per_sm == 1
        groups = kernel.threads // 128 - 1
        memory = mosaic_grouped.MEMORY_REGISTERS[groups]
        multiplying = (512 - memory) // groups // 8 * 8  # what Mosaic's pipeline gives each warpgroup
        assert memory + groups * multiplying <= (groups + 1) * kernel.registers, "a warpgroup would wait for registers for ever"
        assert kernel.sass["WARPGROUP"] < 2 * kernel.wgmma, "the compiler lacks registers, and waits for each product"
    block = tuning.grouped(M * A / E).block
    rows = grouping.most_blocks(M * A, E, block) * block
    # x in bfloat16, its rows and h; the rows give way to the results, float32; and what the grouping takes.
    assert report.temporary_bytes < rows * (2 + 4) * D + M * 2 * D + 2**21
