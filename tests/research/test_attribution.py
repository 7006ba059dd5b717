"""Direct logit attribution: parts add up to logits, each is what taking it away takes, and what a patch changed is seen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.model.hooks import add
from gptoss_jax.research import lenses

B, T = 2, 6
EXACT = 1e-5  # of the largest logit
DRAWN = np.random.default_rng(3)
TOKENS, OTHERS, MINUS = DRAWN.integers(0, 320, (3, B, T), np.int32)
PATCHED = {"layers.0.attention.out": 0.0, "layers.1.moe.out": 0.0, "layers.0.residual_mid": add(0.3)}


def captured(model, inputs, changes=None):
    """Logits and values of one pass."""
    forward = gj.patch(gj.forward, changes) if changes else gj.forward
    look = gj.capture(forward, lenses.attributed_sites(model.config))
    return jax.device_get(jax.jit(look, static_argnums=1)(model.params, model.config, inputs))


def attributed(model, values, tokens, **options):
    """The parts, and their sums."""

    @jax.jit
    def run(params, values):
        found = lenses.direct_logit_attribution(params, model.config, values, tokens, **options)
        return found, {"total": found.total, "attention": found.attention, "moe": found.moe}

    return jax.device_get(run(model.params, values))


@functools.cache
def plain():
    logits, values = captured(small_model(), TOKENS)
    return logits, values, *attributed(small_model(), values, OTHERS)


def of(logits, tokens):
    return np.take_along_axis(logits, tokens[..., None], 2)[..., 0]


def parts(found) -> np.ndarray:
    return found.embedding + found.heads.sum((0, 3)) + found.attention_rest.sum(0) + found.experts.sum((0, 3))


@pytest.mark.thorough
def test_parts_add_up_to_the_logit():
    """Without the rests, which are rounding: a part that were left out would be in them."""
    logits, _, found, sums = plain()
    wanted, most = of(logits, OTHERS), np.abs(logits).max()
    assert np.abs(sums["total"] - wanted).max() < EXACT * most
    assert np.abs(parts(found) - wanted).max() < EXACT * most
    assert max(np.abs(found.moe_rest).max(), np.abs(found.residual_rest).max()) < EXACT * most
    c = small_model().config
    assert found.heads.shape == (2, B, T, c.num_attention_heads) and found.experts.shape == (2, B, T, c.num_local_experts)
    assert ((found.experts != 0).sum(-1) == c.num_experts_per_tok).all()
    assert np.abs(found.heads.sum(-1) + found.attention_rest - sums["attention"]).max() < EXACT * most


@pytest.mark.thorough
def test_parts_are_the_formula_s():
    """In float64, from the captured values: a part, times the norm's gain over its scale, times the unembedding's row."""
    params, eps = small_model().params, small_model().config.rms_norm_eps
    _, values, found, _ = plain()
    last = values["layers.1.residual_post"].astype(np.float64)
    scale = 1 / np.sqrt((last**2).mean(-1, keepdims=True) + eps)
    direction = np.asarray(params.unembedding, np.float64)[OTHERS] * np.asarray(params.norm, np.float64) * scale
    off = lambda got, part: np.abs(got - (part * direction).sum(-1)).max()
    assert off(found.embedding, values["embedding"]) < 1e-5
    assert off(found.heads[1, :, :, 3], values["layers.1.attention.head_outputs"][:, :, 3]) < 1e-5
    assert off(found.attention_rest[0], np.asarray(params.layers[0].attention.out_bias, np.float64)) < 1e-5
    own = values["layers.0.moe.experts"] == 2
    outputs = values["layers.0.moe.expert_outputs"] * np.where(own, values["layers.0.moe.gates"], 0)[..., None]
    assert own.any() and off(found.experts[0, :, :, 2], outputs.sum(2)) < 1e-5


@pytest.mark.thorough
def test_a_difference_of_two_logits_at_some_positions():
    model, where = small_model(), np.s_[-2:]
    logits, values, *_ = plain()
    found, sums = attributed(model, values, OTHERS[:, where], minus=MINUS[:, where], positions=where)
    wanted = (of(logits, OTHERS) - of(logits, MINUS))[:, where]
    assert found.heads.shape[:3] == (2, B, 2)
    assert np.abs(sums["total"] - wanted).max() < EXACT * np.abs(logits).max()
    _, sums = attributed(model, values, OTHERS[:, -1:], positions=-1)
    assert np.abs(sums["total"] - of(logits, OTHERS)[:, -1:]).max() < EXACT * np.abs(logits).max()


@pytest.mark.thorough
def test_what_patches_changed_is_in_the_rests():
    logits, values = captured(small_model(), TOKENS, PATCHED)
    found, sums = attributed(small_model(), values, OTHERS)
    assert np.abs(sums["total"] - of(logits, OTHERS)).max() < EXACT * np.abs(logits).max()
    assert np.abs(sums["attention"][0]).max() < 1e-6 < np.abs(sums["attention"][1]).max()
    assert np.abs(sums["moe"][1]).max() < 1e-6 < np.abs(sums["moe"][0]).max()
    assert np.abs(found.residual_rest).max() > 0.01


@pytest.mark.thorough
def test_nano_s_logits_are_the_sums_of_their_parts():
    llm = gj.LLM(gj.load("nano", dtype="float32", progress=False), slots=1, context=128)
    prompt = llm.render("What is 27 + 58?", reasoning_effort="low")
    tokens, following = np.array([prompt]), np.array([[*prompt[1:], prompt[0]]])
    logits, values = captured(llm.model, tokens)
    found, sums = attributed(llm.model, values, following)
    wanted, most = of(logits, following), np.abs(logits).max()
    assert np.abs(sums["total"] - wanted).max() < EXACT * most and np.abs(parts(found) - wanted).max() < EXACT * most


def values_of(config):
    names = [name.replace("*", str(i)) for name in lenses.attributed_sites(config) for i in range(config.num_hidden_layers)]
    c = config
    shapes = {
        "head_outputs": (c.num_attention_heads, c.hidden_size), "experts": (c.num_experts_per_tok,), "gates": (c.num_experts_per_tok,),
        "expert_outputs": (c.num_experts_per_tok, c.hidden_size),
    }  # fmt: skip
    shape = lambda name: (B, T, *shapes.get(name.rpartition(".")[2], (c.hidden_size,)))
    return {name: np.zeros(shape(name), np.int32 if name.endswith("experts") else np.float32) for name in names}


@pytest.mark.parametrize(
    "change, tokens, options, words",
    [
        (lambda v: v.pop("layers.1.moe.gates"), OTHERS, {}, r"values must be .*; layers\.\*\.moe\.gates absent; capture these names"),
        (lambda v: v.clear(), OTHERS, {}, "values must be those of attributed_sites"),
        (lambda v: None, OTHERS[:, :2], {}, r"tokens must be ids, one for each of the positions, \(2, 6\); got \(2, 2\) of int32"),
        (lambda v: None, OTHERS[:, :2], {"positions": np.s_[-3:]}, r"one for each of the positions, \(2, 3\)"),
        (lambda v: None, OTHERS.astype(np.float32), {}, r"got \(2, 6\) of float32"),
        (lambda v: None, 7, {}, "tokens must be ids, .*got int"),
        (lambda v: None, None, {}, "tokens must be ids, .*got NoneType"),
        (lambda v: None, OTHERS + 320, {}, r"tokens must be ids of the vocabulary, 0 \.\.\. 319; got"),
        (lambda v: None, OTHERS[:, :1], {"positions": 6}, r"positions must be some of the 6 captured ones; got 6"),
        (lambda v: None, OTHERS[:, :2], {"positions": [0, -7]}, r"positions must be some of the 6 captured ones; got \[0, -7\]"),
        (lambda v: None, OTHERS[:, :1], {"positions": 1.5}, "positions must be some of"),
        (lambda v: None, OTHERS[:, :1], {"positions": [[0]]}, "positions must be some of"),
        (lambda v: None, OTHERS, {"positions": None}, "positions must be some of"),
        (lambda v: v.update(embedding=v["embedding"][0]), OTHERS, {}, r"values must be those of a batch, .* got \(6, 96\)"),
        (lambda v: None, OTHERS, {"minus": -OTHERS - 1}, r"minus must be ids of the vocabulary"),
        (lambda v: None, OTHERS, {"minus": jnp.zeros((1, 6), jnp.int32)}, r"minus must be ids, one for each of the positions"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(change, tokens, options, words):
    model = small_model()
    values = values_of(model.config)
    change(values)
    with pytest.raises(ValueError, match=words) as caught:
        lenses.direct_logit_attribution(model.params, model.config, values, tokens, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
