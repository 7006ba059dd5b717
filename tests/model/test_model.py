"""The model as a pure function: hooks, derivatives, vmap, RoPE's numbers, the router's, the table of weights."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from small_model import DIRECTORY, small_model

import gptoss_jax as gj
from gptoss_jax.model import rope
from gptoss_jax.model.layers import rms_norm
from gptoss_jax.model.params import abstract_params, is_spec, param_bytes
from gptoss_jax.model.transformer import forward

EXACT = 1e-5  # as in test_goldens
T = 24
TOKENS = np.random.default_rng(0).integers(0, 320, (3, T), np.int32)


@pytest.fixture(scope="module")
def model():
    return small_model()


@functools.cache
def run():
    return jax.jit(forward, static_argnames="config")


def traced(model, hook, tokens=TOKENS):
    return jax.eval_shape(lambda params: forward(params, model.config, tokens, hook=hook), model.params)


# Transformations


@pytest.mark.thorough
def test_gradients_are_those_of_the_oracle(model):
    weights, tokens = oracle.tensors(DIRECTORY), TOKENS[0]
    weigh = np.random.default_rng(1).normal(size=(T, 320)).astype(np.float32)
    loss = lambda params: jnp.sum(forward(params, model.config, tokens[None])[0] * weigh)
    grads = jax.jit(jax.grad(loss))(model.params)
    for at, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.any(grad) and np.all(np.isfinite(grad)), jax.tree_util.keystr(at)
    ways = {
        "model.embed_tokens.weight": grads.embedding,
        "model.layers.0.self_attn.sinks": grads.layers[0].attention.sinks,
        "model.layers.0.mlp.router.weight": grads.layers[0].moe.router,
        "model.layers.1.mlp.experts.down_proj_bias": grads.layers[1].moe.down_bias,
    }
    for name, grad in ways.items():
        way = np.random.default_rng(2).normal(size=grad.shape)
        ends = [weights | {name: weights[name] + sign * 1e-6 * way} for sign in (1, -1)]
        slope = np.sum((oracle.forward(ends[0], model.config, tokens) - oracle.forward(ends[1], model.config, tokens)) * weigh) / 2e-6
        assert np.sum(np.asarray(grad, np.float64) * way) == pytest.approx(slope, rel=3e-4), name


def test_vmap_is_a_batch(model):
    got = jax.jit(jax.vmap(lambda tokens: forward(model.params, model.config, tokens[None])[0]))(TOKENS)
    assert oracle.error(got, run()(model.params, model.config, TOKENS)) < EXACT


def test_packed_rows_keep_their_sequences_apart(model):
    """Positions run on through a row, and RoPE is relative: a segment's logits are those of the sequence alone."""
    tokens = np.concatenate([TOKENS[0], TOKENS[1]])[None]
    segments = np.repeat(np.array([[0, 1]], np.int32), T, axis=1)
    got = jax.jit(lambda params: forward(params, model.config, tokens, segment_ids=segments))(model.params)
    wanted = run()(model.params, model.config, TOKENS)
    assert oracle.error(got[0, :T], wanted[0]) < EXACT
    assert oracle.error(got[0, T:], wanted[1]) < EXACT


# Numbers


def test_yarn_s_range_is_not_rounded():
    config = gj.GPT_OSS_20B
    plain = config.rope_theta ** -(np.arange(32) / 32)
    ramp = (1 - rope.inverse_frequencies(config) / plain) / (1 - 1 / config.rope_factor)  # 0: kept, 1: slowed by the factor
    slope = (ramp[16] - ramp[10]) / 6
    assert 10 - ramp[10] / slope == pytest.approx(8.0928, abs=1e-3)
    assert 10 + (1 - ramp[10]) / slope == pytest.approx(17.398, abs=1e-3)
    np.testing.assert_allclose(ramp[:9], 0, atol=1e-6)
    np.testing.assert_allclose(ramp[18:], 1, atol=1e-6)
    assert rope.concentration(config) == pytest.approx(1.34657, abs=5e-6)


def test_positions_past_the_original_context_turn_on():
    """Angles up to 131,072 carry the rounding of float32, at most p * 2**-23, and no more."""
    config = gj.GPT_OSS_20B
    positions = np.array([0, 1, 4095, 4096, 8191, 131071], np.int32)
    got = rope.tables(config, positions[None])
    for table, exact in zip(got, oracle.rope_tables(config, positions), strict=True):
        allowed = 1.35 * (positions[:, None] * 2.0**-23 * rope.inverse_frequencies(config)[None, :] + 2**-22)
        assert np.all(np.abs(np.asarray(table[0], np.float64) - exact) <= allowed)


def test_gates_are_a_softmax_over_the_chosen_logits_alone(model):
    seen = {}

    def watched(params):
        caught = {}
        hook = lambda name, value: caught.setdefault(name, value)
        forward(params, model.config, TOKENS, hook=hook)
        return {name: value for name, value in caught.items() if "moe" in name}

    seen = jax.jit(watched)(model.params)
    for layer in range(2):
        logits = np.asarray(seen[f"layers.{layer}.moe.router_logits"], np.float64).reshape(3 * T, -1)
        experts, gates = oracle.route(logits, model.config.num_experts_per_tok)
        np.testing.assert_array_equal(np.asarray(seen[f"layers.{layer}.moe.experts"]).reshape(3 * T, -1), experts)
        np.testing.assert_allclose(np.asarray(seen[f"layers.{layer}.moe.gates"]).reshape(3 * T, -1), gates, rtol=1e-5)
        over_all = np.exp(logits - logits.max(-1, keepdims=True))
        over_all /= over_all.sum(-1, keepdims=True)
        assert np.abs(np.take_along_axis(over_all, experts, -1) - gates).max() > 0.05  # a softmax before the choice would be seen


def test_rms_norm_is_computed_and_scaled_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(0, 3, (5, 96))).astype(jnp.bfloat16)
    gain = np.random.default_rng(1).normal(1, 0.3, 96).astype(np.float32)
    got = rms_norm(x, gain, 1e-5)
    assert got.dtype == jnp.float32
    assert oracle.error(got, oracle.rms_norm(np.asarray(x, np.float64), gain, gj.TINY)) < 1e-6


# The table of weights


def test_the_published_models_have_their_published_sizes():
    for config, billions, gigabytes in ((gj.GPT_OSS_20B, 20.9, 13.76), (gj.GPT_OSS_120B, 116.8, 65.25)):
        specs = jax.tree.leaves(abstract_params(config, experts="stacked"), is_leaf=is_spec)
        assert sum(math.prod(spec.shape) for spec in specs) / 1e9 == pytest.approx(billions, abs=0.05)
        assert param_bytes(config) == param_bytes(config, experts="tiled")
        assert param_bytes(config) / 1e9 == pytest.approx(gigabytes, rel=2e-3)  # biases and router, bfloat16 there, are float32 here


@pytest.mark.parametrize("experts", ["packed", "tiled", "stacked", "split"])
def test_every_dimension_has_a_logical_axis(experts):
    config = gj.GPT_OSS_20B if experts == "tiled" else gj.TINY  # TINY's sizes cannot be cut into tiles
    specs = jax.tree.leaves(abstract_params(config, experts=experts), is_leaf=is_spec)
    assert all(len(spec.axes) == len(spec.shape) for spec in specs)


def test_an_unknown_form_of_experts_is_refused():
    with pytest.raises(ValueError, match="experts must be 'packed', 'tiled', 'stacked' or 'split'; got 'dense'"):
        abstract_params(gj.TINY, experts="dense")


def test_tiny_has_no_two_equal_dimensions():
    c = gj.TINY
    sizes = [c.vocab_size, c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.group, c.head_dim, c.num_local_experts]
    sizes += [c.num_experts_per_tok, c.num_hidden_layers, c.sliding_window, 2 * c.intermediate_size, c.num_attention_heads * c.head_dim]
    assert len(set(sizes)) == len(sizes)
