"""What is masked and rows that are not there contribute nothing, to the bit, even where they hold NaN or infinities (0 x NaN is NaN)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.model import fused
from gptoss_jax.model.cache import Cache, init_cache
from gptoss_jax.model.transformer import decode_step, forward, prefill
from pallas_kernels.attention import Fp8Pages

BAD = 319  # a token whose embedding is not finite
CONTEXT, CHUNK, PAGE = 64, 24, 8
FORMS = ["packed", "stacked", "split"]  # tiles are of sizes in multiples of 64: see the last test
LENGTHS = np.array([40, 3, 17, 33], np.int32)
BEYOND = pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])

jitted = {f: jax.jit(f, static_argnums=1) for f in (prefill, decode_step)}


@functools.cache
def model(value, dtype="float32", experts="packed"):
    """The small model in which one number of one token's embedding is `value`."""
    small = small_model(dtype, experts)
    return small.params.replace(embedding=small.params.embedding.at[BAD, 0].set(value)), small.config


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, BAD, shape).astype(np.int32)


def same(got, wanted):
    """To the bit, and numbers."""
    assert np.isfinite(wanted).all()
    np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))


def poisoned(cache: Cache, value: float, windows) -> Cache:
    """The cache with `value` wherever its rows hold nothing: pages of nobody, the rest of the newest page, what a ring no longer needs."""

    def filled(pages, window):
        table = np.asarray(cache.table(window))
        held = np.zeros((pages.shape[0], PAGE), bool)
        for row, length in enumerate(np.asarray(cache.length)):
            first = 0 if window is None else max(0, length - window + 1)
            for at in range(first, length):
                held[table[row, at // PAGE % table.shape[1]], at % PAGE] = True
        if isinstance(pages, Fp8Pages):
            return pages.replace(bits=jnp.where(held[:, None, :, None], pages.bits, jnp.uint8(0x7F if value else 0)))
        return jnp.where(held[:, None, :, None], pages, jnp.asarray(value, pages.dtype))

    k, v = (tuple(filled(*layer) for layer in zip(all, windows, strict=True)) for all in (cache.k, cache.v))
    return cache.replace(k=k, v=v)


def held(params, config, cache_dtype, value):
    """A cache in which rows hold `LENGTHS` tokens, poisoned."""
    cache = init_cache(config, 2 * len(LENGTHS), CONTEXT, chunk=CHUNK, page_size=PAGE, dtype=cache_dtype)
    cache = cache.replace(**{name: getattr(cache, name)[: len(LENGTHS)] for name in ("full_table", "ring_table", "length")})
    left, ids = LENGTHS.copy(), tokens(len(LENGTHS), CONTEXT)
    while left.any():
        count = np.minimum(left, CHUNK)
        at = np.minimum((LENGTHS - left)[:, None] + np.arange(CHUNK), CONTEXT - 1)
        _, cache = jitted[prefill](params, config, cache, np.take_along_axis(ids, at, 1), count)
        left = left - count
    return poisoned(cache, value, [config.window(i) for i in range(config.num_hidden_layers)])


@pytest.mark.quick("float32-float32-packed-nan")
@BEYOND
@pytest.mark.parametrize(
    "dtype, cache_dtype, experts",
    [
        *(("float32", "float32", form) for form in FORMS),
        *(("bfloat16", "bfloat16", form) for form in FORMS),
        ("float32", "float8_e4m3fn", "packed"),
        ("bfloat16", "float8_e4m3fn", "split"),
    ],
)
def test_what_a_cache_does_not_hold_may_be_anything(dtype, cache_dtype, experts, value):
    """Of the next chunk, which pads, and of the next steps, in which one row does nothing: full and sliding layer."""
    params, config = model(value, dtype, experts)

    def run(filler, padding):
        cache = held(params, config, cache_dtype, filler)
        count = np.array([CHUNK, 5, 0, 1], np.int32)
        new = np.where(np.arange(CHUNK) < count[:, None], tokens(len(count), CHUNK, seed=1), padding).astype(np.int32)
        prompt, cache = jitted[prefill](params, config, cache, new, count)
        cache = poisoned(cache, filler, [config.window(i) for i in range(config.num_hidden_layers)])
        steps, active = [], np.array([False, True, True, True])
        for step in range(9):  # into the next page
            logits, cache = jitted[decode_step](params, config, cache, np.array([padding, step, 7, 300], np.int32), active=active)
            steps.append(np.asarray(logits)[active])
        return np.asarray(prompt)[count > 0], np.stack(steps)

    for got, wanted in zip(run(value, BAD), run(0, 5), strict=True):
        same(got, wanted)


@pytest.mark.quick("nan-packed-3")
@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("experts", FORMS)
@BEYOND
def test_a_row_that_is_not_finite_keeps_it_to_itself(experts, rows, value):
    """Beside others in the experts' blocks: prompts, and steps of few and of many rows."""
    params, config = model(value, "bfloat16", experts)
    ids = tokens(rows, CHUNK)

    def run(bad):
        cache = init_cache(config, rows, CONTEXT, chunk=CHUNK, page_size=PAGE)
        prompts = ids.copy()
        prompts[1, 2] = bad
        prompt, cache = jitted[prefill](params, config, cache, prompts, np.full(rows, CHUNK, np.int32))
        step, _ = jitted[decode_step](params, config, cache, ids[:, 0], active=np.ones(rows, bool))
        return np.asarray(prompt), np.asarray(step)

    others = np.arange(rows) != 1
    for got, wanted in zip(run(BAD), run(5), strict=True):
        same(got[others], wanted[others])
        assert not np.isfinite(got[1]).all()


@pytest.mark.quick("nan")
@BEYOND
def test_forward_keeps_rows_segments_and_what_comes_before_apart(value):
    params, config = model(value)
    ids, segments = tokens(2, 48), np.repeat(np.array([[0, 1], [0, 0]], np.int32), 24, 1)
    run = jax.jit(lambda tokens: forward(params, config, tokens, segment_ids=segments))
    got, wanted = (np.asarray(run(jnp.asarray(ids).at[0, 30].set(token).at[1, 40].set(token))) for token in (BAD, 5))
    same(got[0, :30], wanted[0, :30])
    same(got[1, :40], wanted[1, :40])
    assert not np.isfinite(got[0, 30]).all() and not np.isfinite(got[1, 40]).all()
    back = np.asarray(run(jnp.asarray(ids).at[0, 3].set(BAD)))
    same(back[0, 24:], np.asarray(run(jnp.asarray(ids).at[0, 3].set(5)))[0, 24:])


def test_a_pattern_that_a_hook_makes_takes_nothing_of_what_it_leaves_out():
    params, config = model(np.nan)
    ids, segments = tokens(1, 48), np.repeat(np.array([[0, 1]], np.int32), 24, 1)
    hook = lambda name, value: value * 1 if name.endswith("pattern") else value
    run = jax.jit(lambda tokens: forward(params, config, tokens, segment_ids=segments, hook=hook))
    got, wanted = (np.asarray(run(jnp.asarray(ids).at[0, 3].set(token))) for token in (BAD, 5))
    same(got[0, 24:], wanted[0, 24:])


@pytest.mark.thorough
def test_gradients_of_those_that_see_nothing_of_it_are_numbers():
    """Of what is put in place of embeddings: of rows beside one that is not finite, and of another segment."""
    params, config = model(np.nan)
    ids, segments = tokens(2, 48), np.repeat(np.array([[0, 1], [0, 0]], np.int32), 24, 1)

    def loss(embedding, tokens):
        logits = forward(params.replace(embedding=embedding), config, tokens, segment_ids=segments)
        return jnp.sum(jnp.tanh(logits[1]))

    bad, good = (jnp.asarray(ids).at[0, 3].set(token) for token in (BAD, 5))
    got, wanted = (np.asarray(jax.jit(jax.grad(loss))(params.embedding, tokens)) for tokens in (bad, good))
    seen = np.setdiff1d(ids[1], ids[0])
    same(got[seen], wanted[seen])


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(1, 8), (2, 4)], ids=str)
@pytest.mark.parametrize("experts", ["packed", "tiled"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_on_a_mesh(experts, shape, value):
    """Where parts are added up over devices."""
    whole = gj.load("nano", dtype="float32", experts=experts, mesh=gj.mesh(*shape), progress=False)
    config, bad = whole.config, 600
    params = whole.params.replace(embedding=whole.params.embedding.at[bad, 0].set(value), layers=whole.params.layers[:2])
    config = gj.Config(**{**vars(config), "num_hidden_layers": 2, "layer_types": config.layer_types[:2]})
    assert fused.covers(params, 4) == (experts == "tiled")

    def run(token):
        cache = init_cache(config, 4, 32, chunk=16, dtype="float32", partition=params.partition)
        ids = np.random.default_rng(0).integers(20, bad, (4, 16)).astype(np.int32)
        ids[1, 3] = token
        prompt, cache = jitted[prefill](params, config, cache, ids, np.full(4, 16, np.int32))
        step, _ = jitted[decode_step](params, config, cache, np.array([30, token, 31, 32], np.int32), active=np.ones(4, bool))
        return np.asarray(prompt), np.asarray(step)

    for got, wanted in zip(run(bad), run(25), strict=True):
        same(got[[0, 2, 3]], wanted[[0, 2, 3]])
        assert not np.isfinite(got[1]).all()
