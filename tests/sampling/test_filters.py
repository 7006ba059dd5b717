"""Top-k and top-p masks without a sort against oracles that sort, ties and the full vocabulary included."""

import math

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptoss_jax.sampling import filters

V = 37
FULL_VOCAB = 201_088


def ranked(logits):
    """Token ids [V], most probable first, of equals the lowest first."""
    return np.lexsort((np.arange(len(logits)), -logits.astype(np.float64)))


def softmax(logits):
    weights = np.exp(logits.astype(np.float64) - np.max(logits))
    return weights / weights.sum()


@jax.jit
def top_k_mask(logits, k):
    return filters.keep_top_k(filters.rank_keys(logits), k)


@jax.jit
def top_p_mask(logits, p):
    return filters.keep_top_p(filters.rank_keys(logits), logits - jnp.max(logits, axis=-1, keepdims=True), p)


def top_k_oracle(logits, k):
    mask = np.zeros(len(logits), bool)
    mask[ranked(logits)[:k]] = True
    return mask


def check_top_p(mask, logits, p, slack=2e-6):
    """The mask is a prefix of the ranking, reaches p, and would not without its last token (up to float32's rounding)."""
    order, probs = ranked(logits), softmax(logits)
    count = int(mask.sum())
    np.testing.assert_array_equal(mask, top_k_oracle(logits, count))
    assert count >= 1
    assert probs[order[:count]].sum() >= p - slack
    assert p == 1 or probs[order[: count - 1]].sum() < p + slack


# Few distinct values, so that ties at the threshold are the rule; infinities and both zeros among them.
tied_values = st.sampled_from([0.0, -0.0, 1.0, 1 + 2.0**-23, -1.0, 2.5, -7.0, 30.0, -(2.0**127), -math.inf])
any_values = st.floats(-(2.0**127), 2.0**127, width=32, allow_subnormal=False)


@hypothesis.given(
    logits=hypothesis.extra.numpy.arrays(np.float32, (3, V), elements=tied_values | any_values),
    k=st.lists(st.integers(1, V), min_size=3, max_size=3),
)
@hypothesis.settings(deadline=None, max_examples=200)
def test_top_k_keeps_exactly_what_a_sort_keeps(logits, k):
    mask = np.asarray(top_k_mask(jnp.asarray(logits), jnp.asarray(k, jnp.int32)))
    np.testing.assert_array_equal(mask, [top_k_oracle(row, n) for row, n in zip(logits, k, strict=True)])


@hypothesis.given(
    logits=hypothesis.extra.numpy.arrays(
        np.float32, (3, V), elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, -7.0, -math.inf]) | st.floats(-9, 9, width=32)
    ),
    p=st.lists(st.floats(1e-6, 1.0), min_size=3, max_size=3),
)
@hypothesis.settings(deadline=None, max_examples=200)
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(logits, p):
    hypothesis.assume(np.isfinite(logits).any(axis=-1).all())
    logits = np.where(np.abs(logits) < 1e-30, np.float32(0), logits)  # XLA on CPUs flushes subnormals
    mask = np.asarray(top_p_mask(jnp.asarray(logits), jnp.asarray(p, jnp.float32)))
    for row in range(3):
        check_top_p(mask[row], logits[row], np.float32(p[row]))


@pytest.mark.parametrize(
    ("p", "count"), [(1e-60, 1), (1e-9, 1), (0.125, 1), (0.1251, 2), (0.5, 4), (0.500001, 5), (0.875, 7), (0.99, 8), (1.0, 8)]
)
def test_top_p_of_equal_tokens_counts_them_by_id(p, count):
    mask = top_p_mask(jnp.full((1, 8), 1.5, jnp.float32), jnp.asarray([p], jnp.float32))
    np.testing.assert_array_equal(mask[0], np.arange(8) < count)


def test_top_p_of_one_keeps_tokens_of_no_measurable_mass():
    mask = top_p_mask(jnp.asarray([[0, -50, 1, -math.inf]] * 2, jnp.float32), jnp.asarray([1, 0.999], jnp.float32))
    np.testing.assert_array_equal(mask, [[True] * 4, [True, False, True, False]])


@pytest.mark.thorough
def test_filters_at_the_full_vocabulary_with_many_ties():
    logits = np.round(np.random.default_rng(0).normal(0, 3, (3, FULL_VOCAB)).astype(np.float32) * 8) / 8  # about 200 distinct values
    k = [1, 50_000, FULL_VOCAB]
    mask = np.asarray(top_k_mask(jnp.asarray(logits), jnp.asarray(k, jnp.int32)))
    np.testing.assert_array_equal(mask, [top_k_oracle(row, n) for row, n in zip(logits, k, strict=True)])
    p = np.float32([0.01, 0.9, 0.99999])
    mask = np.asarray(top_p_mask(jnp.asarray(logits), jnp.asarray(p)))
    for row in range(3):
        check_top_p(mask[row], logits[row], p[row])
    flat = np.asarray(top_p_mask(jnp.zeros((1, FULL_VOCAB), jnp.float32), jnp.asarray([0.75], jnp.float32)))[0]
    assert flat.sum() == FULL_VOCAB * 3 // 4 and flat[: FULL_VOCAB * 3 // 4].all()
