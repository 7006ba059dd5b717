"""Attention over arrays and over pages against the float64 formula: sinks, windows, groups, segments, blocks, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from pallas_kernels.attention import attention, paged_attention, reference

T, N, K, H = 40, 6, 2, 8
EXACT = 2e-6  # sums of up to 40 float32 products, each rounded to 6e-8


def draw(*shape, seed=0, scale=1.5):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def inputs(batch=2, length=T):
    q, k, v = (draw(batch, length, heads, H, seed=seed) for seed, heads in enumerate((N, K, K)))
    return q, k, v, draw(N, seed=3)


def expected(q, k, v, sinks, window=None, segments=None):
    age = np.arange(q.shape[1])[:, None] - np.arange(q.shape[1])[None, :]
    seen = np.broadcast_to((age >= 0) & (age < (window or age.size)), (len(q), *age.shape))
    if segments is not None:
        seen = seen & (segments[:, :, None] == segments[:, None, :])
    q, k, v, sinks = (np.asarray(x, np.float64) for x in (q, k, v, sinks))
    return np.stack([oracle.attention(q[b], k[b], v[b], sinks, seen[b]) for b in range(len(q))])


def compiled(**options):
    """A new function each time: block sizes may have been changed since the last."""
    return jax.jit(lambda *args: attention(*args, **options))


run = functools.cache(compiled)


@pytest.fixture
def small_blocks(monkeypatch):
    """Five blocks of keys and three of queries for T = 40."""
    monkeypatch.setattr(reference, "KEY_BLOCK", 8)
    monkeypatch.setattr(reference, "SCORES", 1)


@pytest.mark.parametrize("window", [None, 1, 5])
def test_attention_is_the_formula(window):
    args = inputs()
    assert oracle.error(run(window=window)(*args), expected(*args, window)) < EXACT


@pytest.mark.parametrize("window", [None, 5])
def test_blocks_change_nothing(small_blocks, window):
    args = inputs()
    segments = np.array([[0] * 11 + [1] * 29, [3] * 40], np.int32)
    got = jax.jit(lambda *args: attention(*args[:-1], window=window, segment_ids=args[-1]))(*args, segments)
    assert oracle.error(got, expected(*args, window, segments)) < EXACT


@pytest.mark.parametrize("scale", [-200, 200])
def test_sinks_count_in_the_maximum_and_in_the_denominator(scale):
    q, k, v, sinks = inputs()
    sinks = sinks + np.float32(scale)
    got = np.asarray(run(window=None)(q, k, v, sinks))
    wanted = expected(q, k, v, sinks)
    assert np.isfinite(got).all()
    if scale < 0:  # the plain softmax: weights add up to 1
        assert oracle.error(got, wanted) < EXACT
        np.testing.assert_allclose(run(window=None)(q, k, np.ones_like(v), sinks), 1, rtol=1e-6)
    else:
        assert np.abs(got).max() < 1e-30 and np.abs(wanted).max() < 1e-30


def test_sinks_and_scores_may_both_be_large():
    """exp(100) is no float32: the maximum must be taken over scores and sinks before anything is raised."""
    q, k, v, sinks = inputs()
    q[..., 0], k[..., 0] = 30, 100 * H**0.5 / 30  # every score is near 100
    sinks = sinks + np.float32(100)
    assert oracle.error(run(window=None)(q, k, v, sinks), expected(q, k, v, sinks)) < 100 * EXACT  # of scores, 1e-5 absolute


def test_each_query_head_has_its_own_sink_and_its_group_s_keys():
    q, k, v, sinks = inputs()
    before = np.asarray(run(window=None)(q, k, v, sinks))
    other_sink, other_key = sinks.copy(), k.copy()
    other_sink[4] += 1
    other_key[:, :, 1] += 1
    for args, heads in (((q, k, v, other_sink), [4]), ((q, other_key, v, sinks), [3, 4, 5])):
        changed = np.any(np.asarray(run(window=None)(*args)) != before, (0, 1, 3))
        assert np.flatnonzero(changed).tolist() == heads


@pytest.mark.parametrize("window", [1, 5, None])
def test_a_key_is_seen_at_distances_below_the_window_and_no_further(window):
    q, k, v, sinks = inputs(1)
    before = np.asarray(run(window=window)(q, k, v, sinks))
    for at in (0, 7):
        other_k, other_v = k.copy(), v.copy()
        other_k[:, at], other_v[:, at] = 1, 2
        changed = np.any(np.asarray(run(window=window)(q, other_k, other_v, sinks)) != before, (0, 2, 3))
        assert np.flatnonzero(changed).tolist() == list(range(at, min(T, at + (window or T))))


def test_segments_see_themselves_only():
    args = inputs(1)
    segments = np.array([[0] * 13 + [1] * 27], np.int32)
    packed = jax.jit(lambda *args: attention(*args, window=5, segment_ids=segments))(*args)
    assert oracle.error(packed, expected(*args, 5, segments)) < EXACT
    alone = expected(*(x[:, 13:] for x in args[:3]), args[3], 5)
    assert oracle.error(packed[:, 13:], alone) < EXACT


def test_bfloat16_inputs_are_accumulated_in_float32():
    q, k, v, sinks = inputs()
    q, k, v = (jnp.asarray(x).astype(jnp.bfloat16) for x in (q, k, v))
    got = run(window=None)(q, k, v, sinks)
    assert got.dtype == jnp.bfloat16
    # Weights are rounded to 8 bits before they meet the values, and the result is.
    assert oracle.error(np.asarray(got, np.float32), expected(q, k, v, sinks)) < 2**-8


@pytest.mark.parametrize("window", [None, 5])
def test_gradients_are_those_of_the_formula(small_blocks, window):
    args = inputs(1)
    way = [draw(*x.shape, seed=9 + i, scale=1) for i, x in enumerate(args)]
    weigh = draw(1, T, N, H, seed=8)
    loss = lambda *args: jnp.sum(attention(*args, window=window) * weigh)
    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*args)
    step = 1e-5
    for i in range(4):  # along a random way in each argument, in float64
        ends = [[x.astype(np.float64) + (sign * step * way[j] if i == j else 0) for j, x in enumerate(args)] for sign in (1, -1)]
        slope = sum(sign * np.sum(expected(*end, window) * weigh) for sign, end in zip((1, -1), ends, strict=True)) / (2 * step)
        assert np.sum(np.asarray(grads[i], np.float64) * way[i]) == pytest.approx(slope, rel=1e-4)


def test_vmap_is_a_loop():
    q, k, v, sinks = (np.stack([x, 2 * x]) for x in inputs(1))
    got = jax.jit(jax.vmap(lambda *args: attention(*args, window=5)))(q, k, v, sinks)
    for i in range(2):
        assert oracle.error(got[i], expected(q[i], k[i], v[i], sinks[i], 5)) < EXACT


def width_of_20b(length):
    half = lambda heads: jax.ShapeDtypeStruct((1, length, heads, 64), jnp.bfloat16)
    return half(64), half(8), half(8), jax.ShapeDtypeStruct((64,), jnp.float32)


@pytest.mark.parametrize("window", [None, 128])
def test_no_array_is_quadratic_in_a_long_prompt(window):
    loss = lambda *args: jnp.sum(attention(*args, window=window))
    for function in (loss, jax.grad(loss)):
        assert "8192,8192" not in str(jax.make_jaxpr(function)(*width_of_20b(8192)))


def test_memory_of_a_long_prompt():
    memory = compiled(window=None).lower(*width_of_20b(8192)).compile().memory_analysis()
    block, out = 4 * reference.SCORES, 4 * 8192 * 64 * 64
    assert memory.temp_size_in_bytes < 4 * block + 3 * out  # 670 MB; [64, 8192, 8192] in float32 would be 17 GB


def paged(k, pages, page, table, lengths):
    """Pages [P, K, page, H] with each row's keys [B, T, K, H] up to its length, written in order, as a ring where the table is short."""
    out = np.full((pages, K, page, H), 1e3, np.float32)  # never to be seen
    for row, length in enumerate(lengths):
        for at in range(length):
            out[table[row, at // page % table.shape[1]], :, at % page] = k[row, at]
    return out


@pytest.mark.parametrize("window, entries, key_block", [(None, 10, 512), (None, 10, 8), (9, 5, 8), (9, 5, 512)])
def test_pages_hold_what_arrays_hold(monkeypatch, window, entries, key_block):
    """Permuted tables, a ring that has wrapped, rows of several lengths, one of them empty, padded queries."""
    monkeypatch.setattr(reference, "KEY_BLOCK", key_block)
    page, queries = 4, 3
    q, k, v, sinks = inputs(5)
    lengths = np.array([T, 37, 5, 3, 0], np.int32)
    table = np.random.default_rng(0).permutation(5 * entries).astype(np.int32).reshape(5, entries)
    pools = [paged(x, 5 * entries, page, table, lengths) for x in (k, v)]
    positions = lengths[:, None] - queries + np.arange(queries, dtype=np.int32)[None, :]
    new = np.take_along_axis(q, np.maximum(positions, 0)[:, :, None, None], 1)
    got = jax.jit(lambda *args: paged_attention(*args, window=window))(new, *pools, table, positions, lengths, sinks)
    wanted = expected(q, k, v, sinks, window)
    for row in range(4):
        assert oracle.error(got[row], wanted[row, positions[row]]) < EXACT
    np.testing.assert_array_equal(got[4], 0)  # nothing to see: all weight is on the sink


def test_named_implementations_run_or_raise():
    args = inputs(1)
    assert oracle.error(run(window=5, implementation="xla")(*args), expected(*args, 5)) < EXACT
    with pytest.raises(NotImplementedError, match="attention has no kernel; pass None or 'xla'"):
        attention(*args, window=5, implementation="mosaic")
    with pytest.raises(ValueError, match="got 'triton'"):
        attention(*args, window=5, implementation="triton")


def test_impossible_calls_are_refused():
    q, k, v, sinks = inputs(1)
    for window in (0, -1):
        with pytest.raises(ValueError, match="window must be at least 1"):
            attention(q, k, v, sinks, window=window)
    with pytest.raises(ValueError, match="one sink per query head"):
        attention(q, k, v, sinks[:4], window=None)  # not one of H
    with pytest.raises(ValueError, match="multiple of kv heads"):
        attention(q[:, :, :5], k, v, sinks[:5], window=None)
    with pytest.raises(ValueError, match="batch and length"):
        attention(q, k[:, 1:], v[:, 1:], sinks, window=None)
    with pytest.raises(ValueError, match="segment_ids must have shape"):
        attention(q, k, v, sinks, window=None, segment_ids=np.zeros((1, 3), np.int32))
