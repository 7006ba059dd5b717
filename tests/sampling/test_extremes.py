"""Settings of any size, masks and temperatures: a draw is still one among the tokens that they leave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptoss_jax.sampling import draw
from gptoss_jax.sampling import state as sampling_state
from gptoss_jax.sampling.options import Sampling

V = 37
run = jax.jit(draw.sample)


def random_logits():
    return np.random.default_rng(0).normal(0, 3, (1, V)).astype(np.float32)


HUGE = float(np.finfo(np.float32).max)
FILTERS = [{"temperature": 0}, {}, {"temperature": 1e-4}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.5}]
FILTERS += [{"top_p": 0.5, "top_k": 5, "min_p": 0.1}]


def drawn_with(bias, masks=None, cold=None, repetition=1.0, **filters):
    """Tokens of many draws in which biases may be larger than `Sampling` has them; `masks`: tokens that are allowed."""
    rows = 64
    logits = np.broadcast_to(random_logits(), (rows, V))
    state = sampling_state.stack([Sampling(seed=seed, **filters) for seed in range(rows)], vocab_size=V)
    ids, values = np.full((rows, 16), V, np.int32), np.zeros((rows, 16), np.float32)
    ids[:, : len(bias)], values[:, : len(bias)] = list(bias), list(bias.values())
    state = state.replace(bias_ids=jnp.asarray(ids), bias_values=jnp.asarray(values))
    state = state.replace(repetition_penalty=jnp.full(rows, repetition, jnp.float32), in_prompt=jnp.full((rows, V), repetition != 1))
    if cold is not None:
        state = state.replace(temperature=jnp.full(rows, cold, jnp.float32))
    options = {}
    if masks is not None:
        words = np.zeros((rows, -(-V // 32)), np.uint32)
        for token in masks:
            words[:, token // 32] |= np.uint32(1 << token % 32)
        options = {"allowed": jnp.asarray(words), "masked": jnp.ones(rows, bool)}
    got = run(jnp.asarray(logits), state, jnp.zeros(rows, jnp.int32), **options)
    assert np.isfinite(got.logprobs).all()
    return set(np.asarray(got.tokens).tolist())


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_biases_of_any_size_leave_a_draw_that_means_something(filters):
    """With penalties that would overflow."""
    for repetition in (1.0, 0.01, 100.0):
        assert drawn_with({7: HUGE}, repetition=repetition, **filters) == {7}
        several = drawn_with({7: 3e38, 9: 3e38, 11: -3e38}, repetition=repetition, **filters)
        assert several == {7} if filters.get("temperature") == 0 else {7} <= several <= {7, 9}
        assert drawn_with({20: -HUGE, 7: -HUGE}, [20, 7], repetition=repetition, **filters) <= {7, 20}
        assert drawn_with({7: HUGE, 3: -HUGE}, [3], repetition=repetition, **filters) == {3}
        assert drawn_with({7: HUGE}, [12], repetition=repetition, **filters) == {12}


@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_no_mask_and_no_temperature_leads_out_of_the_vocabulary(filters):
    best = int(np.argmax(random_logits()))
    assert all(0 <= token < V for token in drawn_with({}, [], **filters))
    assert drawn_with({}, [31], **filters) == drawn_with({}, [31], cold=1e-30, **filters) == {31}
    assert drawn_with({}, cold=1e-30, **filters) == drawn_with({}, cold=1e-37, **filters) == {best}
