"""Room for adapters side by side: what fits, what is refused, and which names are known."""

import functools

import numpy as np
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax import adapters
from gptoss_jax.adapters.factors import shape


def small(**options):
    options = {"adapters": 1, "adapter_rank": 2, "adapter_targets": ["q_proj", "o_proj"]} | options
    return gj.LLM(small_model(), slots=2, context=64, **options)


def of_zeros(rank=2, targets=("q_proj",), layer=0):
    """Factors that NumPy makes, so that nothing is compiled."""
    found = {}
    for name in (f"layers.{layer}.{target}" for target in targets):
        *experts, out, width = shape(small_model().config, name)
        found[name] = adapters.Factors(np.zeros((*experts, rank, width), np.float32), np.zeros((*experts, out, rank), np.float32))
    return found


@functools.cache
def narrow():
    return small()


def test_what_does_not_fit_is_refused_and_disturbs_nothing():
    llm = narrow()
    fits = of_zeros()
    llm.attach("a", fits)
    attached = dict(llm.adapters)
    wrong = {"layers.0.q_proj": adapters.Factors(np.zeros((2, 5), np.float32), np.zeros((7, 2), np.float32))}
    whole = {name: f.replace(a=f.a.astype(np.int32)) for name, f in fits.items()}
    for adapter, words in (
        (of_zeros(rank=4), "rank must be at most the room's, 2; got 4; make the LLM with adapter_rank=4"),
        (of_zeros(targets=["q_proj", "down_proj"]), "on matrices that have room, q_proj, o_proj; got down_proj; make the LLM"),
        (wrong, "the adapter must be one of this model; layers.0.q_proj needs a .* it was made for another geometry"),
        ({"layers.9.q_proj": fits["layers.0.q_proj"]}, "the adapter has names layers.0 to layers.1"),
        ({}, "an adapter must have factors of a matrix at least; got none"),
        (None, "an adapter must be a dictionary of names and Factors; got a NoneType"),
        ([1], "an adapter must be a dictionary of names and Factors; got a list"),
        (whole, "an adapter's factors must be floating-point; a of layers.0.q_proj is int32"),
        ({name: f.replace(scale="x") for name, f in fits.items()}, "scale must be a number, 1e.09 at most; that of layers.0.q_proj is 'x'"),
        ({name: f.replace(scale=10**400) for name, f in fits.items()}, "scale must be a number, .* is a whole number of some 401 digits"),
        ({name: f.replace(scale=float("nan")) for name, f in fits.items()}, "an adapter's scale must be a number, .* is nan"),
        ({"layers.0.q_proj": adapters.Factors([[1.0]], None)}, "factors must be arrays of two dimensions, .*; a of 'layers.0.q_proj' is"),
        ({"layers.0.q_proj": adapters.Factors(np.zeros(3), np.zeros((3, 3)))}, "factors must be arrays of two dimensions"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            llm.attach("b", adapter)
        assert "\n" not in str(error.value) and len(str(error.value)) < 600
    with pytest.raises(FileNotFoundError):
        llm.attach("b", "/no/such/adapter")
    with pytest.raises(ValueError, match="an adapter's name must be a text"):
        llm.attach("", fits)
    assert dict(llm.adapters) == attached


def test_names_that_are_not_attached():
    llm = narrow()
    llm.attach("a", of_zeros())
    for name in ("b", 5, ["a"], b"a", "a" * 10_000):
        calls = [
            lambda name=name: llm.generate([1], adapter=name),
            lambda name=name: llm.score([1], [2], adapter=name),
            lambda name=name: llm.prompt_logprobs([1, 2], adapter=name),
            lambda name=name: llm.replay([1], [2], adapter=name),
            lambda name=name: llm.detach(name),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="must be the name of one that is attached; got .*; pass one of 'a', or attach") as error:
                call()
            assert len(str(error.value)) < 400
    llm.detach("a")
    with pytest.raises(ValueError, match="got 'a'; there is none: attach it first"):
        llm.generate([1], adapter="a")
    without = gj.LLM(small_model(), slots=2, context=64)
    with pytest.raises(ValueError, match="this LLM has no room for any: make it with adapters=1 or more"):
        without.generate([1], adapter="a")
    with pytest.raises(ValueError, match="this one has none; make one with adapters=1 or more"):
        without.attach("a", of_zeros())
    assert not without.adapters


@pytest.mark.parametrize(
    "options, words",
    [
        ({"adapters": -1}, "adapters must be a whole number, 0 to 65,536; got -1"),
        ({"adapters": True}, "adapters must be a whole number"),
        ({"adapters": 2.0}, "adapters must be a whole number"),
        ({"adapters": "4"}, "adapters must be a whole number, .*; got '4'"),
        ({"adapters": 10**9}, "adapters must be a whole number"),
        ({"adapter_rank": 0}, "adapter_rank must be a whole number, 1 to 65,536; got 0"),
        ({"adapter_rank": None}, "adapter_rank must be a whole number"),
        ({"adapter_targets": "q_proj"}, "adapter_targets must be some of q_proj, .*; got 'q_proj'; pass a list"),
        ({"adapter_targets": []}, "adapter_targets must be some of"),
        ({"adapter_targets": ["router"]}, "adapter_targets must be some of"),
        ({"adapter_targets": [5]}, "adapter_targets must be some of"),
        ({"adapters": 60_000, "adapter_rank": 60_000}, "the room for adapters must fit into memory; it takes .* GB of"),
    ],
)
def test_room_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        small(**options)


def test_weights_with_an_adapter_of_their_own_have_no_room():
    model = small_model()
    own = gj.Model(model.config, adapters.attach(model.params, model.config, of_zeros()), None)
    with pytest.raises(ValueError, match="must have weights without one; these have one beside them; merge it first"):
        gj.LLM(own, slots=2, context=64, adapters=1)
