"""The model through Hopper kernels, held against the plain layers and against the float64 oracle, on nano."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import gptoss_jax as gj
from gptoss_jax.model import fused
from gptoss_jax.model.cache import init_cache
from gptoss_jax.model.transformer import decode_step, prefill
from gptoss_jax.weights import locate
from pallas_kernels import hopper

pytestmark = pytest.mark.thorough

EXACT = 1e-5  # as in test_goldens
GOLDEN_BF16 = 0.0336  # the better reference's distance from float32 on the tiny checkpoint, in bfloat16
LENGTHS = (150, 33, 64)  # past a ring, inside a page, at its end
STEPS = 2
PROMPT = 96  # tokens at most: more rows of queries than the kernel for few takes, more tokens than a decode step's experts


@functools.cache
def model(dtype, experts, layers=4):
    whole = gj.load("nano", dtype=dtype, experts=experts, progress=False)
    config = dataclasses.replace(whole.config, num_hidden_layers=layers, layer_types=whole.config.layer_types[:layers])
    return config, whole.params.replace(layers=whole.params.layers[:layers])


def sequences():
    rng = np.random.default_rng(0)
    return [rng.integers(20, 600, n + STEPS, np.int32) for n in LENGTHS]


def filled(config, params, rows=sequences):
    """A cache that holds all but the last STEPS tokens of each row."""
    rows = rows()
    cache = init_cache(config, len(rows), 256, chunk=160, dtype=params.embedding.dtype)
    tokens = np.stack([np.pad(row[:-STEPS], (0, 160 + STEPS - len(row))) for row in rows])
    counts = np.array([len(row) - STEPS for row in rows], np.int32)
    return jax.jit(prefill, static_argnums=1)(params, config, cache, tokens, counts)[1]


def steps(config, params, cache, active=None):
    """Logits [STEPS, B, V] of the rows' last tokens, and the cache."""
    rows = sequences()
    active = np.ones(len(rows), bool) if active is None else active
    step = jax.jit(decode_step, static_argnums=1)
    out = []
    for i in range(STEPS):
        logits, cache = step(params, config, cache, np.array([row[i - STEPS] for row in rows]), active=active)
        out.append(np.asarray(logits))
    return np.stack(out), cache


@functools.cache
def wanted(layers):
    config, _ = model("float32", "packed", layers)
    weights = oracle.tensors(locate.checkpoint("nano"))
    return np.stack([oracle.forward(weights, config, row)[-STEPS:] for row in sequences()], 1)


def test_fused_steps_in_float32_are_the_plain_ones():
    config, tiled = model("float32", "tiled")
    _, packed = model("float32", "packed")
    assert fused.covers(tiled, 3) and not fused.covers(packed, 3) and not fused.covers(tiled, fused.ROWS + 1)
    got, cache = steps(config, tiled, filled(config, tiled))
    plain, plain_cache = steps(config, packed, filled(config, packed))
    assert oracle.error(got, plain) < EXACT and oracle.error(got, wanted(4)) < EXACT
    for a, b in zip(jax.tree.leaves(cache), jax.tree.leaves(plain_cache), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layers", [2])
def test_kernels_are_as_close_to_float32_as_plain_bfloat16(layers):
    """Every kernel of a step in the interpreter, through a sliding and a full layer."""
    config, tiled = model("bfloat16", "tiled", layers)
    cache = filled(config, tiled)
    plain, _ = steps(config, model("bfloat16", "packed", layers)[1], cache)
    with hopper.interpret():
        got, _ = steps(config, tiled, cache)
    error, plain_error = oracle.error(got, wanted(layers)), oracle.error(plain, wanted(layers))
    assert error <= 2 * plain_error and error <= GOLDEN_BF16


def test_prompts_through_kernels_are_as_close_to_float32_as_plain_bfloat16():
    """Attention over pages for many queries, and experts for many tokens, in the interpreter."""
    config, tiled = model("bfloat16", "tiled", 2)
    tokens = [row[:PROMPT] for row in sequences()]

    def last(params):
        cache = init_cache(config, len(tokens), PROMPT, chunk=PROMPT)
        counts = np.array([len(row) for row in tokens], np.int32)
        padded = np.stack([np.pad(row, (0, PROMPT - len(row))) for row in tokens])
        return np.asarray(jax.jit(prefill, static_argnums=1)(params, config, cache, padded, counts)[0])

    plain = last(model("bfloat16", "packed", 2)[1])
    with hopper.interpret():
        got = last(tiled)
    weights = oracle.tensors(locate.checkpoint("nano"))
    exact = np.stack([oracle.forward(weights, config, row)[-1] for row in tokens])
    error, plain_error = oracle.error(got, exact), oracle.error(plain, exact)
    assert error <= 2 * plain_error and error <= GOLDEN_BF16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_of_nan_reaches_no_other(dtype):
    """In bfloat16 every kernel of a step in the interpreter, beside pages that hold NaN where nothing was written."""
    config, tiled = model(dtype, "tiled", 2)
    bad = sequences()[1][-STEPS]
    nan = tiled.replace(embedding=tiled.embedding.at[bad].set(np.nan))
    assert not any(bad in sequences()[row][-STEPS:] for row in (0, 2))
    cache = filled(config, tiled)
    left = dataclasses.replace(
        cache, **{name: tuple(_filled(p, cache, config.window(i)) for i, p in enumerate(getattr(cache, name))) for name in "kv"}
    )
    with hopper.interpret() if dtype == "bfloat16" else contextlib.nullcontext():
        got, wanted = steps(config, nan, left)[0], steps(config, tiled, cache)[0]
    np.testing.assert_array_equal(got[:, [0, 2]], wanted[:, [0, 2]])
    assert np.isfinite(wanted).all() and np.isnan(got[:, 1]).all()


def _filled(pages, cache, window):
    """Pages with NaN from each row's length on, and in pages of nobody."""
    table, size = np.asarray(cache.table(window)), pages.shape[2]
    held = np.zeros((pages.shape[0], size), bool)
    for row, length in enumerate(np.asarray(cache.length)):
        for at in range(max(0, length - table.shape[1] * size), length):
            held[table[row, at // size % table.shape[1]], at % size] = True
    return jnp.where(held[:, None, :, None], pages, jnp.asarray(np.nan, pages.dtype))


def test_rows_that_are_not_active_leave_their_cache_alone():
    config, tiled = model("bfloat16", "tiled", 2)
    cache, active = filled(config, tiled), np.array([True, False, True])
    logits, after = steps(config, tiled, cache, active)
    every, _ = steps(config, tiled, cache)
    np.testing.assert_array_equal(logits[:, active], every[:, active])
    assert np.asarray(after.length).tolist() == [LENGTHS[0] + STEPS, LENGTHS[1], LENGTHS[2] + STEPS]
    for pages, before, table in ((after.k[1], cache.k[1], cache.full_table), (after.k[0], cache.k[0], cache.ring_table)):
        np.testing.assert_array_equal(pages[table[1]], before[table[1]])
        assert np.any(np.asarray(pages[table[0]] != before[table[0]]))
