"""Lenses against plain formulas on the small model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import LAYERS, small_model

import gptoss_jax as gj
from gptoss_jax.model.hooks import layers_of
from gptoss_jax.research import lenses

B, T = 2, 12
TOKENS = np.random.default_rng(1).integers(0, 320, (B, T), np.int32)
NAMES = [
    "layers.*.residual_post",
    "layers.*.moe.experts",
    "layers.*.moe.gates",
    "layers.*.moe.router_logits",
    "layers.*.attention.sink_mass",
]


@functools.cache
def seen():
    model = small_model()
    return jax.jit(gj.capture(gj.forward, NAMES), static_argnames="config")(model.params, model.config, TOKENS)


def kept(site: str) -> np.ndarray:
    return np.asarray(layers_of(seen()[1], site))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@functools.cache
def lens(**options):
    model = small_model()
    return jax.jit(functools.partial(lenses.logit_lens, **options), static_argnames="config")(
        model.params, model.config, kept("residual_post")
    )


# The logit lens


def test_the_last_layer_s_lens_is_the_logits():
    got = np.asarray(lens())
    assert got.shape == (LAYERS, B, T, small_model().config.vocab_size) and got.dtype == np.float32
    np.testing.assert_allclose(got[-1], seen()[0], rtol=0, atol=1e-5)


def test_an_earlier_layer_s_lens_is_norm_and_unembedding_of_its_residual_stream():
    params, eps = small_model().params, small_model().config.rms_norm_eps
    x = kept("residual_post")[0].astype(np.float64)
    x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * np.asarray(params.norm, np.float64)
    wanted = np.einsum("btd,vd->btv", x, np.asarray(params.unembedding, np.float64))
    np.testing.assert_allclose(lens()[0], wanted, rtol=0, atol=1e-4)
    assert np.abs(np.asarray(lens()[0]) - np.asarray(lens()[-1])).max() > 0.1


def test_what_is_kept_of_each_layer_s_logits():
    got = lens(keep=lambda logits: (lenses.token_logprobs(logits, TOKENS), jnp.argmax(logits, -1)))
    assert got[0].shape == (LAYERS, B, T - 1)
    for layer in range(LAYERS):
        np.testing.assert_allclose(got[0][layer], lenses.token_logprobs(lens()[layer], TOKENS), atol=1e-5)
        assert np.array_equal(got[1][layer], np.argmax(lens()[layer], -1))


# Distributions


def test_log_probabilities_of_the_following_tokens():
    got = np.asarray(lenses.token_logprobs(seen()[0], TOKENS))
    wanted = log_softmax(np.asarray(seen()[0]))
    assert got.shape == (B, T - 1) and got.dtype == np.float32
    for b, t in np.ndindex(got.shape):
        assert got[b, t] == pytest.approx(wanted[b, t, TOKENS[b, t + 1]], abs=1e-5)


def test_log_probabilities_of_large_logits_are_finite():
    logits = jnp.array([[[1000.0, 999.0], [0.0, 0.0]]])
    np.testing.assert_allclose(lenses.token_logprobs(logits, jnp.array([[0, 1]], jnp.int32)), [[-1 - np.log1p(np.exp(-1.0))]], atol=1e-4)


def test_entropy():
    p = np.exp(log_softmax(np.asarray(seen()[0])))
    np.testing.assert_allclose(lenses.entropy(seen()[0]), -(p * np.log(p)).sum(-1), atol=1e-5)
    some = jnp.array([[0.0, 0.0, -jnp.inf, -jnp.inf], [5.0, -jnp.inf, -jnp.inf, -jnp.inf], [3.0, 3.0, 3.0, 3.0]])
    np.testing.assert_allclose(lenses.entropy(some), [np.log(2), 0, np.log(4)], atol=1e-6)


# Experts and sinks


def test_weights_by_expert_are_the_softmax_over_the_chosen():
    c = small_model().config
    got = np.asarray(lenses.expert_gates(kept("moe.experts"), kept("moe.gates"), c.num_local_experts))
    router = kept("moe.router_logits").astype(np.float64)
    least = np.sort(router, -1)[..., -c.num_experts_per_tok, None]
    weights = np.where(router >= least, np.exp(router), 0)
    np.testing.assert_allclose(got, weights / weights.sum(-1, keepdims=True), atol=1e-5)


def test_no_expert_has_no_weight():
    got = lenses.expert_gates(jnp.array([[2, 3], [4, 0]]), jnp.array([[0.75, 0.25], [0.5, 0.5]]), 3)
    np.testing.assert_array_equal(got, [[0, 0, 0.75], [0.5, 0, 0]])


def test_the_load_is_each_expert_s_share_of_the_tokens():
    c, experts = small_model().config, kept("moe.experts")
    valid = np.arange(T)[None, :] < np.array([[T], [5]])
    for mask in (None, valid):
        tokens = experts[:, np.ones((B, T), bool) if mask is None else mask]  # [L, tokens, A]
        wanted = [[(layer == e).any(-1).mean() for e in range(c.num_local_experts)] for layer in tokens]
        got = lenses.expert_load(experts, c.num_local_experts, valid=mask)
        assert got.shape == (LAYERS, c.num_local_experts)
        np.testing.assert_allclose(got, wanted, atol=1e-6)
        np.testing.assert_allclose(got.sum(1), c.num_experts_per_tok, rtol=1e-6)


def test_the_load_leaves_out_padding_and_counts_a_token_once():
    experts = jnp.array([[[[0, 2], [3, 3], [1, 1], [7, 0]]]])  # [1, 1, 4, 2]; three experts: 3 and 7 are none
    np.testing.assert_allclose(lenses.expert_load(experts, 3), [[0.5, 0.25, 0.25]])
    np.testing.assert_allclose(lenses.expert_load(experts, 3, valid=jnp.zeros((1, 4), bool)), [[0, 0, 0]])


def test_sink_mass_by_head():
    mass = kept("attention.sink_mass")
    valid = np.arange(T)[None, :] < np.array([[3], [7]])
    np.testing.assert_allclose(lenses.sink_mass_by_head(mass), mass.reshape(LAYERS, B * T, -1).mean(1), rtol=1e-5)
    np.testing.assert_allclose(lenses.sink_mass_by_head(mass, valid=valid), mass[:, valid].mean(1), rtol=1e-5)
    assert mass.std() > 0.01


def test_shapes_that_are_no_lens_are_named():
    model = small_model()
    for residuals in (None, np.zeros((2, 3)), np.zeros((1, 1, 2, 7))):
        with pytest.raises(ValueError, match=r"residuals must be \[layers, B, T, 96\]; got .*; pass layers_of"):
            lenses.logit_lens(model.params, model.config, residuals)
    with pytest.raises(ValueError, match=r"logits must be \[B, T, V\] and tokens \[B, T\]; got \(1, 3, 9\) and \(1, 4\)"):
        lenses.token_logprobs(np.zeros((1, 3, 9)), np.zeros((1, 4), int))
