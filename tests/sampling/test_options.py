"""What a caller may ask of sampling: defaults, normal forms, and every value that is refused."""

import dataclasses
from fractions import Fraction
import functools
import itertools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptoss_jax.sampling import state
from gptoss_jax.sampling.ids import flat, plain
from gptoss_jax.sampling.options import Sampling

V = 37


def test_defaults_are_the_model_cards():
    options = Sampling()
    assert (options.temperature, options.top_p, options.top_k, options.min_p) == (1.0, 1.0, 0, 0.0)
    assert (options.presence_penalty, options.frequency_penalty, options.repetition_penalty) == (0.0, 0.0, 1.0)
    assert (options.logit_bias, options.stop, options.stop_token_ids) == ((), (), ())
    assert (options.seed, options.max_tokens, options.logprobs, options.ignore_eos) == (None, None, None, False)


def test_options_are_normalised_hashable_and_survive_replace():
    options = Sampling(logit_bias={9: 1, 3: -2.5}, stop="END", stop_token_ids=[np.int64(4)], top_k=np.int32(3))
    assert options.logit_bias == ((3, -2.5), (9, 1.0))
    assert options.stop == ("END",) and options.stop_token_ids == (4,) and type(options.top_k) is int
    assert hash(options) == hash(Sampling(logit_bias={3: -2.5, 9: 1}, stop=["END"], stop_token_ids=(4,), top_k=3))
    assert dataclasses.replace(options, seed=1).logit_bias == options.logit_bias
    assert Sampling(stop=None, stop_token_ids=None, logit_bias=None) == Sampling()


def test_filters_beside_greedy_and_filters_that_are_off_mean_what_they_mean_elsewhere():
    for options in ({"temperature": 0, "top_p": 0.9}, {"temperature": 0, "top_k": 5, "min_p": 0.1}, {"top_p": 0}, {"temperature": 0}):
        assert Sampling(**options).greedy
        column = state.columns([Sampling(**options)], [1], vocab_size=V)
        assert column.temperature.tolist() == [0.0] and column.top_p[0] > 0
    assert not Sampling(top_p=1e-6).greedy
    assert Sampling(top_k=-1) == Sampling(top_k=0) == Sampling()
    assert not dataclasses.replace(Sampling(top_p=0), top_p=0.5).greedy


@pytest.mark.parametrize("array", [np.array, jnp.array], ids=["numpy", "jax"])
def test_arrays_and_their_scalars_are_what_they_hold(array):
    one, ids = array(3), array([3, 5])
    counts = {"seed": one, "top_k": one, "max_tokens": one, "logprobs": one}
    options = Sampling(**counts, stop_token_ids=ids, logit_bias=[(one, array(2.5))], top_p=array(0.5))
    assert options == Sampling(seed=3, top_k=3, max_tokens=3, logprobs=3, stop_token_ids=(3, 5), logit_bias={3: 2.5}, top_p=0.5)
    assert hash(options) and type(options.seed) is int and type(options.logit_bias[0][0]) is int
    assert Sampling(stop_token_ids=list(ids)).stop_token_ids == (3, 5)
    for dtype in ("int8", "uint16", "int32", "uint32"):
        assert flat("a prompt", array([3, 5], dtype)) == [3, 5]
    assert flat("a prompt", list(ids)) == flat("a prompt", (3, one + 2)) == flat("a prompt", [np.int8(3), 5]) == [3, 5]
    for wrong in (array([3.0]), array([True]), array([[3]]), [array([3])], [array(3.0)], [3, True], [None], one, {3: 5}.values, "35"):
        with pytest.raises(ValueError, match="a prompt of token ids must be a flat sequence of integers; got "):
            flat("a prompt", wrong)


def test_what_is_under_a_trace_says_so():
    with pytest.raises(ValueError, match=r"must be known; got .*; call this outside of jax\.jit"):
        jax.jit(lambda ids: flat("a prompt", ids))(jnp.array([3]))
    (gone := jnp.array([3])).delete()
    with pytest.raises(ValueError, match="must be known; got a deleted array; pass one that was not given away"):
        flat("a prompt", gone)
    assert plain(range(3)) == range(3) and plain(None) is None


BAD_OPTIONS = [
    ({"temperature": math.nan}, "temperature must be"),
    ({"temperature": math.inf}, "temperature must be"),
    ({"temperature": -0.1}, "temperature must be"),
    ({"temperature": 1e-5}, "temperature must be 0, or"),
    ({"temperature": "1"}, "temperature must be"),
    ({"temperature": True}, "temperature must be"),
    ({"top_k": -2}, "top_k must be .* pass 0"),
    ({"top_k": 2.0}, "top_k must be a whole number"),
    ({"top_k": True}, "top_k must be a whole number"),
    ({"top_p": -0.1}, "top_p must be"),
    ({"top_p": 1.01}, "top_p must be"),
    ({"top_p": math.nan}, "top_p must be"),
    ({"min_p": -0.1}, "min_p must be"),
    ({"min_p": 1.5}, "min_p must be"),
    ({"presence_penalty": 2.1}, "presence_penalty must be"),
    ({"frequency_penalty": -2.1}, "frequency_penalty must be"),
    ({"repetition_penalty": 0}, "repetition_penalty must be"),
    ({"repetition_penalty": math.inf}, "repetition_penalty must be"),
    ({"logit_bias": {3: 101}}, "logit_bias of token 3 must be"),
    ({"logit_bias": {3: math.nan}}, "logit_bias of token 3 must be"),
    ({"logit_bias": {-1: 1}}, "logit_bias's token id must be"),
    ({"logit_bias": {"3": 1}}, r"logit_bias's token id must be .* int\(\)"),
    ({"logit_bias": [3]}, "logit_bias must map"),
    ({"logit_bias": [(3, 1), (3, 2)]}, "logit_bias must name each token once"),
    ({"seed": -1}, "seed must be"),
    ({"seed": 2**63}, "seed must be"),
    ({"seed": 1.0}, "seed must be"),
    ({"max_tokens": 0}, "max_tokens must be"),
    ({"max_tokens": 1.5}, "max_tokens must be"),
    ({"stop": ""}, "stop must not hold an empty string"),
    ({"stop": ["a", ""]}, "stop must not hold an empty string"),
    ({"stop": [3]}, "stop must be a string"),
    ({"stop": 3}, "stop must be a string"),
    ({"stop": "x" * 1025}, "at most 1,024 characters; got one of 1,025"),
    ({"stop": [f"{i}" for i in range(65)]}, "at most 64 strings; got 65"),
    ({"stop_token_ids": itertools.count()}, "stop_token_ids must name at most 65,536 tokens; got more"),
    ({"stop_token_ids": np.broadcast_to(1, 10**12)}, "stop_token_ids must name at most 65,536 tokens; got more"),
    ({"logit_bias": itertools.repeat((1, 1))}, "logit_bias must name at most 65,536 tokens; got more"),
    ({"stop_token_ids": 3}, "stop_token_ids must be a sequence"),
    ({"stop_token_ids": "ab"}, "stop_token_ids must be a sequence"),
    ({"stop_token_ids": [-1]}, "stop_token_ids's token id must be"),
    ({"stop_token_ids": [True]}, "stop_token_ids's token id must be"),
    ({"ignore_eos": 1}, "ignore_eos must be True or False"),
    ({"logprobs": -1}, "logprobs must be"),
    ({"logprobs": 21}, "logprobs must be"),
    ({"logprobs": True}, "logprobs must be"),
    ({"stop_token_ids": np.array(3)}, "stop_token_ids must be a sequence"),
    ({"stop_token_ids": np.array([1.5])}, "stop_token_ids's token id must be"),
    ({"seed": np.array([1])}, "seed must be"),
    ({"seed": jnp.array(True)}, "seed must be"),
    ({"logit_bias": [(jnp.array(1.0), 1)]}, "logit_bias's token id must be"),
    ({"ignore_eos": True}, "ignore_eos leaves nothing to end"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=lambda value: repr(value) if isinstance(value, dict) else "")
def test_bad_options_are_refused_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=message) as error:
        Sampling(**options)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


HUGE = [
    10**400,
    -(10**5000),
    2**63,
    Fraction(10**5000, 3),
    "x" * 10**7,
    ["x"] * 10**6,
    functools.reduce(lambda inner, _: [inner], range(10**5), 1),
]


@pytest.mark.parametrize("value", HUGE, ids=itertools.count())
@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Sampling)])
def test_what_is_huge_is_refused_in_a_short_sentence(name, value):
    """Also as one of several, a key and a value."""
    forms = [value, [value], (value, value)] + ([{value: 1}, {1: value}] if not isinstance(value, list) else [{1: value}])
    for form in forms:
        began = time.process_time()
        with pytest.raises(ValueError, match=r"^(stop|logprob_token_ids|\w+ must be|\w+'s token id|logit_bias)") as error:
            Sampling(**{name: form})
        assert len(str(error.value)) < 400 and time.process_time() - began < 5


def test_edges_of_the_ranges_are_accepted():
    Sampling(temperature=0, top_k=1, seed=2**63 - 1, presence_penalty=-2, frequency_penalty=2, logprobs=20)
    Sampling(stop=[f"{i:04}" * 256 for i in range(64)], top_k=2**63 - 1, max_tokens=2**63 - 1)
    Sampling(min_p=1, repetition_penalty=0.01, logit_bias={0: -100, 1: 100}, max_tokens=1, ignore_eos=True)


@pytest.mark.parametrize("options", [{"logit_bias": {V: 1.0}}, {"stop_token_ids": [V]}])
def test_token_ids_outside_the_vocabulary_are_refused(options):
    Sampling(**options).validate_for(V + 1)
    with pytest.raises(ValueError, match=f"0 to {V - 1}; got {V}"):
        Sampling(**options).validate_for(V)
