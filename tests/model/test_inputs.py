"""The door of forward: what it is given and cannot take is named in a sentence; under a trace nothing is looked at but shapes."""

import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.model import hooks
from gptoss_jax.model.params import init_params

TOKENS = np.array([[5, 6, 7]], np.int32)


@functools.cache
def model():
    return small_model()


def other(**changes):
    return dataclasses.replace(model().config, **changes)


BAD = {
    "a list": (lambda m: (m.params, m.config, [[5, 6]]), r"must be an array \[rows, tokens\]; got list \[\[5, 6\]\]; pass jnp\.array"),
    "text": (lambda m: (m.params, m.config, "hello"), "tokens must be an array .* got str 'hello'"),
    "None": (lambda m: (m.params, m.config, None), "tokens must be an array .* got NoneType None"),
    "one row": (lambda m: (m.params, m.config, TOKENS[0]), r"two dimensions, .* got shape \(3,\); pass tokens\[None\] for one"),
    "no dimension": (lambda m: (m.params, m.config, jnp.array(5)), r"two dimensions, .* got shape \(\); reshape it"),
    "three": (lambda m: (m.params, m.config, TOKENS[None]), r"two dimensions, .* got shape \(1, 1, 3\); reshape it"),
    "floats": (lambda m: (m.params, m.config, jnp.array([[5.0]])), r"array of integers; got float32; convert it with \.astype"),
    "bools": (lambda m: (m.params, m.config, np.array([[True]])), "array of integers; got bool"),
    "no token": (lambda m: (m.params, m.config, np.zeros((1, 0), int)), r"a row and a token; got shape \(1, 0\); pass at least one"),
    "no row": (lambda m: (m.params, m.config, np.zeros((0, 4), int)), r"a row and a token; got shape \(0, 4\)"),
    "an id too high": (lambda m: (m.params, m.config, jnp.array([[5, 320]])), r"token ids must lie in 0 \.\.\. 319; got 320; pass"),
    "a negative id": (lambda m: (m.params, m.config, np.array([[-1]])), r"token ids must lie in 0 \.\.\. 319; got -1"),
    "a model": (lambda m: (m, m.config, TOKENS), "params must be Params; got Model; pass model.params"),
    "swapped": (lambda m: (m.config, m.params, TOKENS), "params must be Params; got Config"),
    "no config": (lambda m: (m.params, TOKENS, TOKENS), "config must be a Config; got ndarray; pass model.config"),
    "another depth": (lambda m: (m.params, other(num_hidden_layers=1, layer_types=m.config.layer_types[:1]), TOKENS), "got 2 layers for 1"),
    "another vocabulary": (lambda m: (m.params, other(vocab_size=400), TOKENS), r"one model's; got embedding \(320, 96\) for \(400, 96\)"),
    "other experts": (lambda m: (m.params, other(num_local_experts=5), TOKENS), "one model's; got router"),
    "a row past the model": (lambda m: (m.params, m.config, np.zeros((1, 1025), int)), "at most the model's 1,024 positions; got 1,025"),
    "parameters in NumPy": (lambda m: (jax.tree.map(np.asarray, m.params), m.config, TOKENS), "params must be JAX's arrays; got NumPy's"),
    "other heads": (lambda m: (m.params, other(head_dim=m.config.head_dim * 2), TOKENS), "one model's; got qkv"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_named_in_a_sentence(name):
    arguments, words = BAD[name]
    with pytest.raises(ValueError, match=words) as error:
        gj.forward(*arguments(model()))
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "segments, words",
    [([[0, 0, 1]], "segment_ids must be an array"), (np.zeros((1, 2), int), r"have the shape of tokens, \(1, 3\); got \(1, 2\)"),
     (np.zeros((1, 3)), "segment_ids must be an array of integers")],
)  # fmt: skip
def test_segments_too(segments, words):
    with pytest.raises(ValueError, match=words):
        gj.forward(model().params, model().config, TOKENS, segment_ids=segments)


def test_a_hook_is_a_function_and_what_is_computed_with_lies_together():
    with pytest.raises(ValueError, match=r"hook must be a function \(name, value\) -> value; got 5; leave it out for none"):
        gj.forward(model().params, model().config, TOKENS, hook=5)
    (gone := jnp.array([[1]])).delete()
    with pytest.raises(ValueError, match="tokens must be there; got a deleted array"):
        gj.forward(model().params, model().config, gone)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda m: gj.capture(gj.forward, None), "names must be at least one name of a site; got None"),
        (lambda m: gj.capture(gj.forward, 5), "names must be at least one name of a site; got 5"),
        (lambda m: gj.capture(m, "norm"), "a function of the model must be passed, such as forward; got a Model"),
        (lambda m: gj.patch(gj.forward, None), "names must be at least one name"),
        (lambda m: gj.patch(gj.forward, {"norm": "x"}), "norm takes numbers, an array, .* got 'x'"),
        (lambda m: gj.patch(gj.forward, {"norm": hooks.scale(0, "q")}), "must fit its value, .* got 0 at 'q'"),
        (lambda m: gj.patch(gj.forward, {"norm": hooks.add(np.ones(7))}), "a change must fit its value"),
        (lambda m: gj.patch(gj.forward, {"norm": hooks.scale(0, np.s_[:, 99])}), "must fit its value, .* index 99 is out of bounds"),
        (lambda m: gj.patch(gj.forward, {"norm": hooks.replace(0, jnp.array([7]))}), "must fit its value, .* out of bounds"),
        (lambda m: hooks.force_experts("x"), "experts takes numbers"),
        (lambda m: gj.sites(m), "config must be a Config; got a Model; pass model.config"),
        (lambda m: gj.select(m.params, None), "patterns must be names of weights, or patterns; got None"),
        (lambda m: gj.select(m.params, [5]), r"patterns must be .* got \[5\]"),
        (lambda m: gj.substitute(m.params, None), "weights must be a dict of names and arrays; got None"),
        (lambda m: gj.substitute(m.params, {"embedding": "x"}), "weights must be a dict of names and arrays"),
    ],
)
def test_names_and_changes_that_are_none(make, words):
    with pytest.raises(ValueError, match=words) as error:
        if callable(made := make(model())):
            jax.eval_shape(lambda params: made(params, model().config, TOKENS), model().params)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_names_come_in_whatever_holds_them():
    for names in (["norm", "logits"], {"norm": 0, "logits": 0}, np.array(["norm", "logits"]), (name for name in ("norm", "logits"))):
        fn = gj.capture(gj.forward, names)
        assert jax.eval_shape(lambda params, fn=fn: fn(params, model().config, TOKENS), model().params)[1].keys() == {"norm", "logits"}
    for names in (np.array(["embedding", "norm"]), iter(["embedding", "norm"])):
        assert gj.select(model().params, names).keys() == {"embedding", "norm"}


def test_under_a_trace_shapes_are_checked_and_values_are_not():
    params, config = model().params, model().config
    run = lambda tokens: gj.forward(params, config, tokens)
    assert jax.eval_shape(run, np.array([[320, -1]])).shape == (1, 2, 320)
    assert jax.eval_shape(lambda: gj.forward(params, config, jnp.array([[5]]))).shape == (1, 1, 320)
    assert jax.eval_shape(jax.vmap(lambda row: run(row[None])), np.zeros((3, 4), np.uint16)).shape == (3, 1, 4, 320)
    drawn = lambda key: gj.forward(init_params(key, config, "float32"), config, TOKENS)
    assert jax.eval_shape(drawn, jax.random.key(0)).shape == (1, 3, 320)
    with pytest.raises(ValueError, match=r"pass tokens\[None\] for one row"):
        jax.eval_shape(run, TOKENS[0])
    with pytest.raises(ValueError, match=r"got 320"):  # known, though a trace is under way
        jax.eval_shape(lambda p: gj.forward(p, config, np.array([[320]])), params)


def test_a_model_and_its_parts_travel_to_other_processes():
    """An LLM does not, and says that these are made into one there."""
    again = pickle.loads(pickle.dumps(model()))
    assert again.config == model().config and jax.tree.structure(again.params) == jax.tree.structure(model().params)
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (again.params, model().params)), strict=True))
