"""The flow through the cache: prefill then steps = one prefill, whatever the chunks, the pages, the padding and the neighbours."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.model.cache import cache_bytes, init_cache, places, write
from gptoss_jax.model.transformer import decode_step, extend, forward, prefill, unembed

EXACT = 1e-5  # as in test_goldens
CONTEXT = 300  # past the original context of 256
LENGTHS = (280, 33, 100)
TOKENS = [np.random.default_rng(i).integers(0, 320, n, np.int32) for i, n in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def model():
    return small_model()


@functools.partial(jax.jit, static_argnums=1)
def extend_logits(params, config, cache, tokens, counts):
    x, cache = extend(params, config, cache, tokens, counts)
    return unembed(params, config, x), cache


step = jax.jit(decode_step, static_argnames="config")


@pytest.fixture(scope="module")
def wanted(model):
    """Logits of the three sequences without a cache; padding behind a row's end is seen by none of its tokens."""
    tokens = np.stack([np.pad(row, (0, LENGTHS[0] - len(row)), constant_values=7) for row in TOKENS])
    logits = np.asarray(jax.jit(forward, static_argnums=1)(model.params, model.config, tokens))
    return [logits[row, :n] for row, n in enumerate(LENGTHS)]


def fill(model, cache, sequences, chunk, counts_of=lambda round, row: None, padding=0):
    """Feeds sequences to the cache's rows; returns every row's logits [T, V] and the cache.

    A row gets `counts_of(round, row)` tokens a round, `chunk` where that is None.
    """
    done, out, round = [0] * len(sequences), [[] for _ in sequences], 0
    while any(d < len(s) for d, s in zip(done, sequences, strict=True)):
        tokens = np.full((len(sequences), chunk), padding, np.int32)
        counts = np.zeros(len(sequences), np.int32)
        for row, sequence in enumerate(sequences):
            asked = counts_of(round, row)
            part = sequence[done[row] : done[row] + (chunk if asked is None else asked)]
            tokens[row, : len(part)], counts[row] = part, len(part)
        logits, cache = extend_logits(model.params, model.config, cache, tokens, counts)
        for row, n in enumerate(counts):
            out[row].append(np.asarray(logits)[row, :n])
            done[row] += int(n)
        round += 1
    return [np.concatenate(parts) if parts else None for parts in out], cache


@pytest.mark.parametrize("chunk, page_size", [(48, 16), (37, 5)])
def test_rows_of_any_length_in_chunks_and_pages_of_any_size(model, wanted, chunk, page_size):
    """The longest row wraps its ring several times: it has window + chunk places, and a page, for 280 tokens."""
    cache = init_cache(model.config, 3, CONTEXT, chunk=chunk, dtype="float32", page_size=page_size)
    assert cache.ring_table.shape[1] * page_size < LENGTHS[0] / 2
    got, cache = fill(model, cache, TOKENS, chunk)
    assert np.asarray(cache.length).tolist() == list(LENGTHS)
    for row in range(3):
        assert oracle.error(got[row], wanted[row]) < EXACT


def test_rows_may_pause_and_take_any_part_of_a_chunk(model, wanted):
    cache = init_cache(model.config, 3, CONTEXT, chunk=48, dtype="float32", page_size=16)
    counts = lambda round, row: (48, round % 3 * 7, 31 if round == 2 else round % 2)[row]
    got, _ = fill(model, cache, TOKENS, 48, counts, padding=319)
    for row in range(3):
        assert oracle.error(got[row], wanted[row]) < EXACT


def test_a_row_does_not_depend_on_its_neighbours(model):
    """Bit for bit, in one compiled shape: beside other rows, other lengths, other padding, or beside nothing."""
    make = lambda: init_cache(model.config, 3, CONTEXT, chunk=48, dtype="float32", page_size=16)
    together, _ = fill(model, make(), TOKENS, 48)
    alone, _ = fill(model, make(), [TOKENS[0][:0], TOKENS[1], TOKENS[0][:0]], 48, padding=5)
    np.testing.assert_array_equal(together[1], alone[1])


def test_prefill_then_steps_is_one_prefill(model, wanted):
    """Steps on from any length, past the ring's end and the original context, while row 1 waits."""
    cache = init_cache(model.config, 3, CONTEXT, chunk=48, dtype="float32", page_size=16)
    starts = (250, 33, 15)
    _, cache = fill(model, cache, [row[:n] for row, n in zip(TOKENS, starts, strict=True)], 48)
    before = cache
    for i in range(28):
        tokens = np.array([TOKENS[0][250 + i], 319, TOKENS[2][15 + i]], np.int32)
        logits, cache = step(model.params, model.config, cache, tokens, active=np.array([True, False, True]))
        assert oracle.error(logits[0], wanted[0][250 + i]) < 2 * EXACT  # one position's error, not the mean of many
        assert oracle.error(logits[2], wanted[2][15 + i]) < 2 * EXACT
    assert np.asarray(cache.length).tolist() == [278, 33, 43]
    for layer, window in enumerate((16, None)):  # what waits is not touched
        pages = np.asarray(cache.table(window))[1]
        np.testing.assert_array_equal(np.asarray(cache.k[layer])[pages], np.asarray(before.k[layer])[pages])
        np.testing.assert_array_equal(np.asarray(cache.v[layer])[pages], np.asarray(before.v[layer])[pages])


def test_prefill_gives_the_logits_after_each_row_s_last_token(model, wanted):
    cache = init_cache(model.config, 3, CONTEXT, chunk=48, dtype="float32", page_size=16)
    tokens = np.stack([row[:33] for row in TOKENS])
    logits, cache = jax.jit(prefill, static_argnums=1)(model.params, model.config, cache, tokens, np.array([20, 33, 1], np.int32))
    assert logits.shape == (3, 320) and logits.dtype == jnp.float32
    for row, n in enumerate((20, 33, 1)):
        assert oracle.error(logits[row], wanted[row][n - 1]) < 2 * EXACT


# The cache itself


def test_sliding_layers_hold_a_window_and_a_chunk_and_full_ones_the_context():
    config = gj.GPT_OSS_20B
    position = 2 * 2 * config.num_key_value_heads * config.head_dim  # bytes in bfloat16
    ring = 704  # 127 + 512 positions and a page begun, in pages of 64
    assert cache_bytes(config, 1, 131072, chunk=512) == pytest.approx(12 * position * (131072 + ring), rel=1e-3)
    assert cache_bytes(config, 3, 4096, chunk=64) < 3 * 12 * position * (4096 + 128 + 64 + 64) * 1.001


def test_writing_drops_what_is_not_valid():
    pages = jnp.zeros((3, 1, 2, 1), jnp.bfloat16)
    table, positions = np.array([[2, 0]], np.int32), np.array([[3, 4, 5]], np.int32)
    new = np.array([1, 2, 3], np.float32).reshape(1, 3, 1, 1)
    where = places(table, positions, np.array([[True, True, False]]), size=2, pages=3)
    got = write(pages, *where, new)
    assert got.dtype == jnp.bfloat16
    # Position 3 is the second of block 1, position 4 the first of block 2, which lies where block 0 was.
    assert np.asarray(got, np.float32).reshape(3, 2).tolist() == [[0, 1], [0, 0], [2, 0]]


@pytest.mark.parametrize("name", ["batch", "context", "chunk", "page_size"])
def test_an_empty_cache_needs_room(name):
    sizes = {"batch": 1, "context": 8, "chunk": 4, "page_size": 4} | {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1; got 0"):
        init_cache(gj.TINY, sizes["batch"], sizes["context"], chunk=sizes["chunk"], page_size=sizes["page_size"])
