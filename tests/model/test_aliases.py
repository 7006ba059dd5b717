"""TransformerLens' names: each leads to a site, to the value that it keeps there (benchmarks/peers/lens_golden.py), and back."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from recorded_pass import TOKENS, seen
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.model import aliases
from gptoss_jax.model.aliases import ABSENT, TRANSFORMER_LENS
from gptoss_jax.model.hooks import add, capture, layers_of, patch, scale
from gptoss_jax.model.sites import SITES, sites
from gptoss_jax.model.transformer import forward

EXACT = 1e-5  # as in test_goldens
T = 5


@pytest.fixture(scope="module")
def golden(tiny):
    return dict(np.load(tiny / "transformer_lens.npz"))


@pytest.fixture(scope="module")
def model():
    return small_model()


def traced(fn, model, tokens=TOKENS):
    return jax.eval_shape(lambda params: fn(params, model.config, tokens), model.params)


def test_every_name_leads_to_a_site(model):
    assert set(TRANSFORMER_LENS.values()) <= SITES.keys()
    listed = sites(model.config, on_request=True, names="transformer_lens")
    assert {re.sub(r"^blocks\.\d+", "blocks.{i}", name) for name in listed} == TRANSFORMER_LENS.keys()
    assert set(sites(model.config, names="transformer_lens")) < set(listed)
    _, got = traced(capture(forward, listed), model)
    assert sorted(got) == sorted(listed)


def test_no_site_of_ours_is_taken_for_one_of_theirs():
    assert not [name for name in SITES if aliases.is_alias(name)]
    assert all(aliases.is_alias(name) or name in ("embed.hook_out",) for name in TRANSFORMER_LENS)


def test_every_value_that_transformer_lens_keeps_is_here_or_is_said_not_to_be(golden, model):
    listed = sites(model.config, on_request=True, names="transformer_lens")
    others = golden.keys() - set(listed) - {"tokens", "logits"}
    assert len(others) > 20
    assert not [name for name in others if not aliases.why_absent(name)]
    assert set(listed) <= golden.keys()


@pytest.mark.thorough
def test_values_are_those_of_transformer_lens(golden, model):
    values = seen()[1]
    assert np.array_equal(golden["tokens"], TOKENS[:1, :T])
    for alias in sites(model.config, on_request=True, names="transformer_lens"):
        kind, _, rest = alias.partition(".")
        layer = rest.partition(".")[0]
        site = TRANSFORMER_LENS[f"blocks.{{i}}.{rest.partition('.')[2]}" if kind == "blocks" else alias].replace("{i}", layer)
        ours = np.asarray(aliases.there(alias, values[site][:1, :T, ..., :T] if site.endswith("pattern") else values[site][:1, :T]))
        assert ours.shape == golden[alias].shape, alias
        assert oracle.error(ours, golden[alias]) < EXACT, alias


def test_a_capture_answers_under_the_names_that_were_asked_for(model):
    names = ["blocks.*.hook_resid_post", "layers.1.residual_post", "blocks.1.attn.hook_pattern", "hook_embed", "ln_final.hook_out"]
    _, got = traced(capture(forward, names), model)
    assert got.keys() == {*names[1:], "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"}
    c = model.config
    assert got["blocks.1.attn.hook_pattern"].shape == (3, c.num_attention_heads, TOKENS.shape[1], TOKENS.shape[1])


def test_patterns_are_of_one_kind(model):
    """A pattern of theirs brings no name of ours, and the other way round; what is on request must be named."""
    _, got = traced(capture(forward, "*"), model)
    assert got.keys() == set(sites(model.config))
    _, got = traced(capture(forward, "blocks.0.*"), model)
    assert got.keys() == {name for name in sites(model.config, names="transformer_lens") if name.startswith("blocks.0.")}
    _, got = traced(capture(forward, "*.attn.hook_[zv]"), model)
    assert got.keys() == {f"blocks.{i}.attn.hook_{what}" for i in (0, 1) for what in "vz"}


def test_layers_of_either_name():
    values = {f"blocks.{i}.hook_resid_post": jnp.full(2, i) for i in (2, 0, 1)} | {"blocks.0.attn.hook_z": jnp.zeros(2)}
    assert layers_of(values, "hook_resid_post")[:, 0].tolist() == [0, 1, 2]
    assert layers_of(values, "attn.hook_z").shape == (1, 2)
    with pytest.raises(ValueError, match="no layer's 'residual_post' is among the values"):
        layers_of(values, "residual_post")


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ({"blocks.*.hook_resid_post": add(0.1)}, {"layers.*.residual_post": add(0.1)}),
        ({"blocks.0.hook_attn_out": 0.0}, {"layers.0.attention.out": 0.0}),
        ({"blocks.*": lambda value: value}, {"embedding": lambda value: value}),
    ],
)
def test_a_patch_by_their_name_is_the_patch_of_the_site(model, theirs, ours):
    run = lambda changes: lambda params: patch(forward, changes)(params, model.config, TOKENS)
    one, other = (str(jax.make_jaxpr(run(changes))(model.params)) for changes in (theirs, ours))
    assert one == other


@pytest.mark.thorough
def test_a_patch_finds_axes_as_they_are_there(model):
    """A head's pattern, [:, head] there: the head reads half of what it read."""
    changes = {"blocks.1.attn.hook_pattern": scale(0.5, np.s_[:, 3])}
    _, got = jax.jit(capture(patch(forward, changes), "blocks.1.attn.hook_z"), static_argnums=1)(model.params, model.config, TOKENS)
    wanted = np.array(seen()[1]["layers.1.attention.heads"])
    wanted[:, :, 3] /= 2
    assert oracle.error(got["blocks.1.attn.hook_z"], wanted) < EXACT


def test_a_patch_through_turned_axes_must_fit(model):
    for change in (lambda pattern: pattern[:, :1], lambda pattern: None, np.ones((3, 2, 2))):
        with pytest.raises(ValueError, match="a hook must return an array like the one it got|which cannot be broadcast to it"):
            traced(patch(forward, {"blocks.0.attn.hook_pattern": change}), model)


@pytest.mark.parametrize(
    "name, words",
    [
        ("blocks.0.attn.hook_q", "behind RoPE only, as attn.hook_rot_q"),
        ("blocks.*.attn.hook_attn_scores", "scores are never held"),
        ("blocks.1.mlp.hook_post", "experts have no hidden layer in common"),
        ("ln_final.hook_normalized", "with its gain, as ln_final.hook_out"),
        ("blocks.0.mlp.hook_expert_weights", "layers.N.moe.router_logits"),
        ("hook_pos_embed", "behind RoPE only"),
    ],
)
def test_names_without_a_counterpart_say_so(model, name, words):
    for wrap in (lambda: capture(forward, name), lambda: patch(forward, {name: 0.0})):
        with pytest.raises(ValueError, match="a name of TransformerLens must be that of a site; got .*; .*" + re.escape(words)):
            traced(wrap(), model)


@pytest.mark.parametrize("name", ["blocks.9.hook_resid_post", "blocks.0.hook_resid_pst", "hook_embd", "blocks.x.*", "hook_"])
def test_unknown_names_are_told_similar_ones(model, name):
    with pytest.raises(ValueError, match="no site that was passed is named .* similar names are .*hook_"):
        traced(capture(forward, name), model)


def test_what_is_absent_is_in_no_table():
    whole = [name.replace("{i}", "3") for name in TRANSFORMER_LENS]
    for pattern in ABSENT:
        plain = pattern.replace("*", "blocks.3", 1) if pattern.startswith("*.") else pattern
        assert plain not in whole


def test_sites_refuses_other_conventions(model):
    for names in ("nnsight", None, 3, "x" * 5000):
        with pytest.raises(ValueError, match="names must be 'own' or 'transformer_lens'"):
            gj.sites(model.config, names=names)
