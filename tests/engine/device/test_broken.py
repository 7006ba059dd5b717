"""A row whose logits are not finite ends at that step, without a token; no other row notices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.engine.device import decode
from gptoss_jax.engine.device.state import init_state, plain_orders
from gptoss_jax.model.cache import init_cache
from gptoss_jax.sampling import state as sampling_state
from gptoss_jax.sampling.draw import finite

BAD, B, STEPS, CONTEXT = 319, 4, 6, 32
GREEDY = gj.Sampling(temperature=0, ignore_eos=True, max_tokens=STEPS, logprobs=2)


def chunk(params, config, token, *, forced=None, sampling=GREEDY, remaining=STEPS, guided=(), steps=STEPS, state=None):
    """The state and the chunk after steps of rows that begin with `token` [B]."""
    if state is None:
        cache = init_cache(config, B, CONTEXT, chunk=8, dtype="float32", partition=params.partition)
        settings = sampling_state.stack([sampling] * B, vocab_size=config.vocab_size, partition=params.partition)
        state = init_state(cache, settings, partition=params.partition)
        state = state.replace(token=jnp.asarray(token, jnp.int32), remaining=jnp.full(B, remaining, jnp.int32), done=jnp.zeros(B, bool))
        state = state.replace(guided=jnp.zeros(B, bool).at[np.array(guided, int)].set(True))
    orders = plain_orders(B, steps, steps=STEPS, vocab_size=config.vocab_size, partition=params.partition)
    if forced is not None:
        orders = orders.replace(forced=jnp.asarray(forced, jnp.int32))
    state, chunk = decode.decode_chunk(params, config, state, orders, steps=STEPS, top_logprobs=2)
    return state, jax.device_get(chunk)


@functools.cache
def poisoned(value=np.nan):
    small = small_model("float32", "packed")
    return small.params.replace(embedding=small.params.embedding.at[BAD, 0].set(value)), small.config


def force(row, tokens):
    forced = np.full((B, STEPS), -1, np.int32)
    forced[row, : len(tokens)] = tokens
    return forced


@pytest.mark.quick("nan")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_ends_where_its_logits_are_not_finite(value):
    """At its first step, and at a later one: after a forced token that brings it about."""
    params, config = poisoned(value)
    state, got = chunk(params, config, [3, BAD, 7, 9], forced=force(2, [5, BAD, 6, 6]))
    _, wanted = chunk(params, config, [3, 4, 7, 9], forced=force(2, [5, 4, 6, 6]))
    assert got.broken.tolist() == [False, True, True, False] and not wanted.broken.any()
    assert got.count.tolist() == [STEPS, 0, 2, STEPS] and got.done.all() and not got.stopped.any() and not got.paused.any()
    assert got.sampled.tokens[2, :2].tolist() == [5, BAD] and np.isfinite(got.sampled.logprobs[2, :2]).all()
    assert np.asarray(state.remaining).tolist() == [0, STEPS, STEPS - 2, 0] and np.asarray(state.token)[[1, 2]].tolist() == [BAD, BAD]
    assert np.asarray(state.sampling.counts).sum(1).tolist() == [STEPS, 0, 2, STEPS]
    for a, b in zip(jax.tree.leaves(got.sampled), jax.tree.leaves(wanted.sampled), strict=True):
        np.testing.assert_array_equal(a[[0, 3]], b[[0, 3]])
    assert ((got.sampled.tokens >= 0) & (got.sampled.tokens < config.vocab_size)).all()


def test_it_is_told_once_and_the_others_go_on():
    params, config = poisoned()
    state, first = chunk(params, config, [3, BAD, 7, 9], steps=2)
    _, second = chunk(params, config, None, steps=4, state=state)
    assert first.broken.tolist() == [False, True, False, False] and first.done.tolist() == [False, True, False, False]
    assert not second.broken.any() and second.count.tolist() == [4, 0, 4, 4] and second.done.all()


def test_neither_its_input_nor_its_last_token_makes_it_a_stop():
    """Nor does a guided row wait there, nor is it at its limit."""
    params, config = poisoned()
    stops = gj.Sampling(temperature=0, stop_token_ids=[BAD], max_tokens=STEPS)
    _, got = chunk(params, config, [BAD] * B, sampling=stops, remaining=1, guided=[1, 2])
    assert got.broken.all() and got.done.all() and not got.stopped.any() and not got.paused.any() and not got.count.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_logit_is_enough(value):
    logits = np.random.default_rng(0).normal(0, 1e4, (3, 1000)).astype(np.float32)
    logits[1, 777] = value
    logits[0, 3], logits[0, 4] = np.finfo(np.float32).max, np.finfo(np.float32).min
    assert np.asarray(jax.jit(finite)(logits)).tolist() == [True, False, True]


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(1, 8), (2, 4)], ids=str)
def test_on_a_mesh_whichever_device_has_the_logit(shape):
    """One row of the unembedding is not finite: one device sees it, all rows end."""
    model = gj.load("nano", dtype="float32", mesh=gj.mesh(*shape), progress=False)
    for token in (0, model.config.vocab_size - 1):
        params = model.params.replace(unembedding=model.params.unembedding.at[token, 3].set(np.nan), layers=model.params.layers[:1])
        config = gj.Config(**{**vars(model.config), "num_hidden_layers": 1, "layer_types": model.config.layer_types[:1]})
        _, got = chunk(params, config, [3, 4, 7, 9])
        assert got.broken.all() and got.done.all() and not got.count.any()
