"""The cache in eight bits: what is lost is bounded, and a request is still the same to the bit whatever runs beside it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import mixed_requests as continuous
from mixed_requests import CONTEXT, MIXED, everything, fresh, nothing_is_held
import numpy as np
import oracle
import pytest
from small_model import DIRECTORY, small_model

import gptoss_jax as gj
from gptoss_jax.engine.engine import Engine
from gptoss_jax.engine.requests import Request
from gptoss_jax.model import fused, transformer
from gptoss_jax.model.cache import cache_axes, cache_bytes, init_cache, own_pages, pages_axes, places, write
from gptoss_jax.parallel.sharding import local
from pallas_kernels.attention import Fp8Pages, fp8_pages, paged_attention

FP8 = "float8_e4m3fn"
K, SIZE, H = 2, 4, 8
EXACT = 2e-6  # as in test_attention
HALF, SUBNORMAL = 2.0**-4, 2.0**-10  # half a step of 4 significant bits; half of the least subnormal, in units of the scale
make = functools.partial(continuous.make, cache_dtype=FP8)
put = jax.jit(write)
read_all = jax.jit(lambda pages: fp8_pages.take(pages, jnp.arange(pages.shape[0]), jnp.float32))


def draw(*shape, seed=0, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def appended(pages, table, new, start, count):
    """Pages with the first count[b] of new [B, T, K, H] at positions start[b] on."""
    positions = np.asarray(start, np.int32)[:, None] + np.arange(new.shape[1], dtype=np.int32)[None]
    valid = np.arange(new.shape[1])[None] < np.asarray(count)[:, None]
    return put(pages, *places(*map(jnp.asarray, (table, positions, valid)), pages.shape[2], pages.shape[0]), new)


def bits(pages):
    return np.asarray(pages.bits).tobytes(), np.asarray(pages.scale).tobytes()


def least_scale(values):
    """The least power of two with which values [..., size, H] are 448 at most."""
    return 2.0 ** np.ceil(np.log2(np.abs(values).max((-2, -1)).astype(np.float64) / 448))


# What is lost


@pytest.mark.parametrize("largest", [448.0, 448.00003, 449.0, 447.99997, 1.0, 0.875, 7 * 2.0**-20, 3e4, 1e-7])
def test_the_scale_is_the_least_power_of_two_that_fits(largest):
    scale = float(fp8_pages.scale_of(jnp.float32(largest)))
    assert np.log2(scale) % 1 == 0 and np.float32(largest) <= 448 * scale and np.float32(largest) > 224 * scale


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_are_near(dtype):
    """Also of zeros, and of heads whose sizes differ by far."""
    new = jnp.asarray(draw(5, SIZE, K, H) * np.array([1e-3, 50], np.float32)[None, None, :, None], dtype).at[0].set(0)
    pages = appended(fp8_pages.empty((5, K, SIZE, H)), np.arange(5, dtype=np.int32)[:, None], new, [0] * 5, [SIZE] * 5)
    wanted = np.moveaxis(np.asarray(new, np.float32), 1, 2)
    np.testing.assert_array_equal(np.asarray(pages.scale)[1:], least_scale(wanted[1:]))
    error, scale = np.abs(np.asarray(read_all(pages)) - wanted), np.asarray(pages.scale)[:, :, None, None]
    normal = np.abs(wanted) >= 2.0**-6 * scale
    assert normal[1:].mean() > 0.9 and (error <= HALF * np.abs(wanted))[normal].all() and (error <= SUBNORMAL * scale).all(where=~normal)
    in_16_bits = fp8_pages.take(pages, jnp.arange(5), jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(in_16_bits, np.float32), read_all(pages))


def test_what_a_page_holds_is_rescaled_when_its_scale_grows():
    table = np.zeros((1, 1), np.int32)
    first, second = draw(1, 1, K, H), 64 * draw(1, 1, K, H, seed=1)
    one = appended(fp8_pages.empty((1, K, SIZE, H)), table, first, [0], [1])
    two = appended(one, table, second, [1], [1])
    grown = np.asarray(two.scale) / np.asarray(one.scale)
    assert (grown >= 16).all()
    before, after = (np.asarray(read_all(pages))[0, :, 0] for pages in (one, two))
    assert np.abs(after - before).max() <= (SUBNORMAL * np.asarray(two.scale)).max()
    normal = np.abs(before) >= 2.0**-6 * np.asarray(two.scale)[0][:, None]
    np.testing.assert_array_equal(after[normal], before[normal])
    smaller = appended(two, table, first, [2], [1])
    np.testing.assert_array_equal(smaller.scale, two.scale)
    np.testing.assert_array_equal(smaller.bits[:, :, :2], two.bits[:, :, :2])


def test_a_new_owner_finds_nothing_of_the_former_one():
    new, table = draw(1, SIZE, K, H), np.zeros((1, 1), np.int32)
    never_used = fp8_pages.empty((1, K, SIZE, H))
    used = appended(never_used, table, 1e4 * draw(1, SIZE, K, H, seed=1), [0], [SIZE])
    poisoned = appended(used, table, np.full((1, SIZE, K, H), np.nan, np.float32), [0], [SIZE])
    for count in (1, 3, SIZE):
        wanted = appended(never_used, table, new, [0], [count])
        assert bits(appended(used, table, new, [0], [count])) == bits(appended(poisoned, table, new, [0], [count])) == bits(wanted)
        for pages in (wanted, used):
            one_by_one = functools.reduce(lambda pages, t: appended(pages, table, new[:, t : t + 1], [t], [1]), range(count), pages)
            np.testing.assert_array_equal(one_by_one.scale, wanted.scale)


@pytest.mark.parametrize("steps", [[(13, 11, 0)], [(3, 1, 2), (10, 10, 4)], [(5, 3, 0), (5, 0, 2), (5, 5, 5)], [(1, 1, 1)] * 9])
def test_rows_write_several_pages_and_no_other(steps):
    """Each row its own number of tokens, from the middle of pages on; untouched pages keep their bits."""
    table = np.array([[9, 0, 5, 2], [1, 3, 8, 4], [7, 6, 11, 10]], np.int32)
    new, held = draw(3, 16, K, H), np.zeros(3, int)
    pages = Fp8Pages(jnp.full((13, K, SIZE, H), 3, jnp.uint8), jnp.full((13, K), 0.25))
    for counts in steps:
        T = max(counts)
        part = np.stack([np.pad(new[b], ((0, T), (0, 0), (0, 0)))[held[b] : held[b] + T] for b in range(3)])
        pages = appended(pages, table, part, held, counts)
        held = held + counts
    got = np.asarray(read_all(pages))
    for b in range(3):
        for block, page in enumerate(table[b]):
            own = np.moveaxis(new[b, block * SIZE : min(held[b], (block + 1) * SIZE)], 0, 1)
            if own.size:
                scale = least_scale(own)
                np.testing.assert_array_equal(np.asarray(pages.scale)[page], scale)
                error = np.abs(got[page, :, : own.shape[1]] - own)
                assert (error <= np.maximum(HALF * np.abs(own), 2 * SUBNORMAL * scale[:, None, None])).all()
                assert not got[page, :, own.shape[1] :].any()
            else:
                assert (np.asarray(pages.bits)[page] == 3).all() and (np.asarray(pages.scale)[page] == 0.25).all()
    assert (np.asarray(pages.bits)[12] == 3).all()


# Attention


def attended(dtype=np.float32):
    """Queries, exact pages and the same in eight bits, of two rows."""
    lengths, table = np.array([15, 9], np.int32), np.array([[3, 1, 4, 0], [6, 2, 7, 5]], np.int32)
    exact, small = [], []
    for seed in (1, 2):
        new = draw(2, 16, K, H, seed=seed)
        plain = put(jnp.zeros((8, K, SIZE, H)), *_all_places(table, lengths, 8), new)
        exact.append(plain.astype(dtype))
        small.append(appended(fp8_pages.empty((8, K, SIZE, H)), table, new, [0, 0], lengths))
    q = jnp.asarray(draw(2, 3, 4, H, scale=0.3), dtype)
    positions = jnp.asarray(lengths[:, None] - 3 + np.arange(3, dtype=np.int32)[None])
    return q, exact, small, (jnp.asarray(table), positions, jnp.asarray(lengths), jnp.asarray(draw(4, seed=3)))


def _all_places(table, lengths, pages):
    positions = np.broadcast_to(np.arange(16, dtype=np.int32), (2, 16))
    return places(jnp.asarray(table), jnp.asarray(positions), jnp.asarray(positions < lengths[:, None]), SIZE, pages)


@pytest.mark.parametrize("window", [None, 5])
def test_attention_reads_what_the_pages_stand_for(window):
    q, exact, small, rest = attended()
    got = paged_attention(q, *small, *rest, window=window)
    same = paged_attention(q, *map(read_all, small), *rest, window=window)
    assert oracle.error(got, same) < EXACT


@pytest.mark.parametrize("window", [None, 5])
def test_attention_is_near_that_of_exact_pages(window):
    """With scores off by e at most, weights are by a factor of exp(2e), their mean of values by that much of the mean of magnitudes."""
    q, exact, small, rest = attended()
    off = [HALF * jnp.abs(x) + 2 * SUBNORMAL * pages.scale[:, :, None, None] for x, pages in zip(exact, small, strict=True)]
    wanted, got = (paged_attention(q, *pages, *rest, window=window) for pages in (exact, small))
    magnitudes = paged_attention(q, exact[0], jnp.abs(exact[1]), *rest, window=window)
    largest = jnp.max(jnp.abs(q).reshape(2, 3, K, -1, H), (0, 1, 3))  # [K, H]
    e = jnp.max(jnp.einsum("kh,pksh->pks", largest, off[0])) * H**-0.5
    bound = jnp.max(off[1]) * jnp.exp(2 * e) + (jnp.exp(2 * e) - 1) * magnitudes
    assert float(jnp.exp(2 * e)) < 2
    assert (jnp.abs(got - wanted) <= bound).all() and oracle.error(got, wanted) > 1e-3


def test_no_kernel_covers_it():
    q, _, small, rest = attended(jnp.bfloat16)
    assert paged_attention(q, *small, *rest, window=None).dtype == jnp.bfloat16
    with pytest.raises(NotImplementedError, match="queries and pages must be bfloat16; got bfloat16, float8_e4m3fn, float8_e4m3fn"):
        paged_attention(q, *small, *rest, window=None, implementation="mosaic")


def test_the_fused_step_stands_aside():
    model = small_model("bfloat16")
    caches = [init_cache(model.config, 2, 64, chunk=8, dtype=dtype) for dtype in ("bfloat16", FP8)]
    tiled = gj.load("nano", experts="tiled", progress=False).params
    assert [fused.covers(tiled, 2, cache) for cache in caches] == [True, False]


# The engine


@pytest.mark.thorough
def test_it_is_another_cache():
    """Or tests/engine/test_continuous.py would not test it: log-probabilities differ from those of an exact one, by little."""
    many = [everything(continuous.make(cache_dtype=dtype), fresh(MIXED[:8])) for dtype in (FP8, None)]
    first = np.array([[one[1][0] for one in results] for results in many])
    assert 1e-5 < np.abs(first[0] - first[1]).max() < 0.5


@pytest.mark.thorough
def test_scores_are_of_the_same_cache():
    model = small_model()
    ids = continuous.prompt(60)
    scores = [gj.LLM(model, slots=2, context=CONTEXT, chunk=32, cache_dtype=dtype).score(ids[:1], ids[1:]) for dtype in (None, FP8)]
    assert 1e-5 < np.abs(scores[0] - scores[1]).max() < 0.5


# Meshes


def shallow(shape=None):
    model = gj.load(DIRECTORY, dtype="float32", mesh=shape and gj.mesh(*shape), progress=False)
    config = dataclasses.replace(model.config, num_hidden_layers=2, layer_types=model.config.layer_types[:2])
    return model.params.replace(layers=model.params.layers[:2]), config


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(1, 8), (2, 4), (8, 1)], ids=str)
def test_pages_on_a_mesh_have_the_bits_of_one_device(shape):
    params, config = shallow(shape)
    heads, partition = config.num_key_value_heads, params.partition
    new = draw(8, 11, heads, config.head_dim)
    caches = [init_cache(config, 8, 32, chunk=11, dtype=FP8, page_size=SIZE, partition=p) for p in (None, partition)]
    positions = jnp.broadcast_to(2 + jnp.arange(11, dtype=jnp.int32), (8, 11))
    valid = jnp.broadcast_to(jnp.arange(11) < 9, (8, 11))

    def run(partition, pages, table, new):
        def run(pages, table, new, positions, valid):
            table = own_pages(partition, table, pages.shape[0])
            return write(pages, *places(table, positions, valid, SIZE, pages.shape[0]), new)

        rows, lies = ("batch", None), pages_axes(pages)
        return local(partition, run, [lies, rows, ("batch", None, "kv_heads", None), rows, rows], lies)(pages, table, new, positions, valid)

    for layer in range(2):
        one, many = (
            jax.jit(functools.partial(run, p))(cache.k[layer], cache.table(config.window(layer)), new)
            for p, cache in zip((None, partition), caches, strict=True)
        )
        assert bits(one) == bits(many)
        right = jax.tree.map(lambda x, axes: x.sharding.is_equivalent_to(partition.sharding(axes), x.ndim), many, pages_axes(many))
        assert all(jax.tree.leaves(right))


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(1, 8), (2, 4)], ids=str)
def test_logits_on_a_mesh_are_those_of_one_device(shape):
    """Sums of another order move a value by a step of eight bits where it lies between two: by far less than eight bits themselves do."""
    tokens = np.random.default_rng(1).integers(0, 300, (8, 40), np.int32)
    prefill, step = (jax.jit(f, static_argnums=1) for f in (transformer.prefill, transformer.decode_step))
    results = {}
    for name, where, dtype in (("exact", None, "float32"), ("one", None, FP8), ("many", shape, FP8)):
        params, config = shallow(where)
        cache = init_cache(config, 8, 64, chunk=39, dtype=dtype, partition=params.partition)
        first, cache = prefill(params, config, cache, tokens[:, :39], np.full(8, 39, np.int32))
        last, cache = step(params, config, cache, tokens[:, 39], active=np.ones(8, bool))
        results[name] = np.stack([first, last])
        if where:
            right = jax.tree.map(
                lambda x, a, p=params.partition: x.sharding.is_equivalent_to(p.sharding(a), x.ndim), cache, cache_axes(cache)
            )
            assert all(jax.tree.leaves(right))
    lost = oracle.error(results["one"], results["exact"])
    assert oracle.error(results["many"], results["one"]) < lost / 4


@pytest.mark.slow
def test_an_engine_on_a_mesh_is_the_same_whatever_runs_beside():
    params, config = shallow((2, 4))
    options = {"eos_token_ids": (319,), "slots": 4, "context": CONTEXT, "chunk": 32, "page": 16, "cache_dtype": FP8}
    wanted = [everything(Engine(params, config, prefix_reuse=False, **options), [Request(*one)])[0] for one in MIXED[:6]]
    engine = Engine(params, config, cache_tokens=2 * CONTEXT, **options)
    for _ in range(2):
        assert everything(engine, fresh(MIXED[:6])) == wanted
        nothing_is_held(engine)


# Its size, and what is refused


def test_it_takes_half_the_bytes():
    config = gj.load(DIRECTORY, progress=False).config
    half, whole = (cache_bytes(config, 8, 4096, chunk=64, dtype=dtype) for dtype in (FP8, "bfloat16"))
    assert half == pytest.approx(whole / 2, rel=0.01)
    state = make().programs.empty_state()
    assert isinstance(state.cache.k[0], Fp8Pages) and state.cache.v[1].bits.dtype == jnp.uint8 and state.cache.k[0].dtype == FP8


@pytest.mark.parametrize("given", ["float8_e5m2", "bfloat16", "fp8", 8, ""])
def test_another_dtype_is_refused(given):
    with pytest.raises(ValueError, match=r"cache_dtype must be None, for the params' own, or 'float8_e4m3fn'; got "):
        make(cache_dtype=given)
    with pytest.raises(ValueError, match="cache_dtype must be"):
        gj.LLM(small_model(), slots=1, context=64, cache_dtype=given)
