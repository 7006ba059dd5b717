"""What a hook may be, and what of it makes another program."""

import dataclasses
import functools

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

import gptoss_jax as gj
from gptoss_jax.engine.hooks.hook import hook_of
from gptoss_jax.engine.hooks.kinds import inside_of, shape_of
from gptoss_jax.engine.hooks.looking import Looking, reads
from gptoss_jax.engine.hooks.looking import given as given_rows
from gptoss_jax.model.hooks import add, replace, scale
from gptoss_jax.model.sites import SITES, sites

CONTEXT = 64
D = gj.TINY.hidden_size
VECTOR = np.arange(D, dtype=np.float32)
POST = "layers.0.residual_post"


def inside(hook):
    return inside_of(hook, gj.TINY, CONTEXT)


def double(value):
    return value * 2


def scaling(by):
    return lambda self, value: value * by  # each with the same name


class Feature:
    up, down = scaling(2), scaling(0.5)
    more, less = functools.partialmethod(scaling(3)), functools.partialmethod(scaling(0.3))


class Programs:
    serial = 3


FEATURE = Feature()


@pytest.mark.parametrize(
    "one, other",
    [
        (gj.steering({POST: VECTOR}), gj.steering({POST: -VECTOR}, scale=3, tokens="generated")),
        (gj.steering({POST: VECTOR}), gj.patching({POST: add(VECTOR)}, tokens=7)),
        (
            gj.patching({"layers.*.attention.heads": scale(0, np.s_[:, :, 2])}),
            gj.patching({"layers.*.attention.heads": scale(0.5, np.s_[:, :, 2])}),
        ),
        (gj.patching({POST: 0.0}), gj.patching({POST: replace(1)})),
        (gj.patching({POST: double}), gj.patching({POST: double}, tokens="prompt")),
        (gj.patching({POST: FEATURE.up}), gj.patching({POST: FEATURE.up})),
        (gj.capturing("layers.0.*", tokens="prompt"), gj.capturing("layers.0.*", tokens=9)),
        (gj.capturing("embedding", "norm"), gj.capturing("norm") | gj.capturing("embedding", to=[].append and None)),
        (gj.capturing("layers.*.residual_post"), gj.capturing(f"layers.{i}.residual_post" for i in range(gj.TINY.num_hidden_layers))),
    ],
    ids=["vectors", "steering", "numbers", "constants", "one function", "one method", "tokens", "order of captures", "a pattern's names"],
)
def test_what_is_data_makes_no_other_program(one, other):
    assert inside(one).kind == inside(other).kind and hash(inside(one).kind) == hash(inside(other).kind)


@pytest.mark.parametrize(
    "one, other",
    [
        (gj.steering({POST: VECTOR}), gj.steering({"layers.1.residual_post": VECTOR})),
        (gj.patching({POST: add(1)}), gj.patching({POST: scale(1)})),
        (gj.patching({POST: add(1)}), gj.patching({POST: add(VECTOR)})),
        (gj.patching({POST: add(1, np.s_[:, :, 1])}), gj.patching({POST: add(1, np.s_[:, :, 2])})),
        (gj.patching({POST: double}), gj.patching({POST: lambda value: value * 2})),
        (gj.patching({POST: FEATURE.up}), gj.patching({POST: FEATURE.down})),
        (gj.patching({POST: FEATURE.up}), gj.patching({POST: Feature().up})),
        (gj.patching({POST: FEATURE.more}), gj.patching({POST: FEATURE.less})),
        (gj.patching({POST: double}) | gj.steering({POST: VECTOR}), gj.steering({POST: VECTOR}) | gj.patching({POST: double})),
        (gj.capturing(POST), gj.capturing(POST) | gj.steering({POST: VECTOR})),
    ],
    ids=["sites", "operations", "shapes", "places", "functions", "methods", "owners", "partial methods", "order of changes", "captures"],
)
def test_what_is_static_does(one, other):
    assert inside(one).kind != inside(other).kind


def test_an_empty_hook_is_none():
    for hook in (None, gj.Hook(), gj.capturing(), gj.steering({}), gj.patching({}) | gj.capturing([])):
        assert hook_of(hook) is None


def test_a_vector_is_taken_as_it_is_now():
    vector = VECTOR.copy()
    hook = gj.steering({POST: vector}, scale=2)
    vector[:] = 0
    np.testing.assert_array_equal(inside(hook).data[0], 2 * VECTOR)


def test_an_index_is_taken_as_it_is_now():
    array, listed = np.array([1, 2]), [1, 2]
    hooks = [gj.patching({POST: scale(0, np.s_[:, :, at])}) for at in (array, listed)]
    array[0] = listed[0] = 3
    for hook, at in zip(hooks, (np.array([1, 2]), [1, 2]), strict=True):
        assert inside(hook).kind == inside(gj.patching({POST: scale(0, np.s_[:, :, at])})).kind
        assert list(inside(hook).kind.steps[0].at[2]) == [1, 2]


def test_shapes_of_a_token_follow_from_the_sites():
    for name in sites(gj.TINY, on_request=True):
        assert all(n > 0 for n in shape_of(gj.TINY, name, CONTEXT))
    assert shape_of(gj.TINY, "layers.0.attention.pattern", CONTEXT) == (gj.TINY.num_attention_heads, CONTEXT)
    assert len(SITES) == len({site.rpartition(".")[2] if "{" not in site else site for site in SITES})


REFUSED = {
    "a function of forward": (lambda: hook_of(lambda name, value: value), "hook must be made by"),
    "a dict": (lambda: hook_of({POST: 0}), "hook must be made by"),
    "no name": (lambda: gj.capturing(3), "names must be names of sites"),
    "no name among names": (lambda: gj.patching({3: 0.0}), "names must be names of sites"),
    "no dict of changes": (lambda: gj.patching([POST]), "changes must be a dict"),
    "no dict of vectors": (lambda: gj.steering(VECTOR), "vectors must be a dict"),
    "a function to steer by": (lambda: gj.steering({POST: double}), "is steered by a vector"),
    "a text": (lambda: gj.steering({POST: "up"}), "takes numbers that are known"),
    "truth": (lambda: gj.steering({POST: [True]}), "takes numbers that are known"),
    "complex numbers": (lambda: gj.steering({POST: [1j]}), "takes numbers that are known"),
    "no number": (lambda: gj.patching({POST: object()}), "takes numbers that are known"),
    "ragged": (lambda: gj.patching({POST: [[1], [1, 2]]}), "takes numbers that are known"),
    "a scale that is none": (lambda: gj.steering({POST: VECTOR}, scale=float("nan")), "scale must be a finite number"),
    "a scale beyond all numbers": (lambda: gj.steering({POST: VECTOR}, scale=10**400), "scale must be a finite number"),
    "a complex scale": (lambda: gj.steering({POST: VECTOR}, scale=np.complex64(1)), "scale must be a finite number"),
    "a scale of text": (lambda: gj.steering({POST: VECTOR}, scale="2"), "scale must be a finite number"),
    "tokens of no kind": (lambda: gj.capturing(POST, tokens="answer"), 'tokens must be "all"'),
    "tokens before the first": (lambda: gj.capturing(POST, tokens=-1), 'tokens must be "all"'),
    "tokens, true": (lambda: gj.capturing(POST, tokens=True), 'tokens must be "all"'),
    "nowhere to write": (lambda: gj.capturing(POST, to="here"), "to must have write"),
    "a class to write to": (lambda: gj.capturing(POST, to=type("Sink", (), {"write": print})), "to must have write"),
    "no such site": (
        lambda: inside(gj.capturing("layers.0.residual")),
        "no site is named 'layers.0.residual'; similar names are layers.0.residual",
    ),
    "no such layer": (lambda: inside(gj.capturing("layers.77.residual_post")), "no site is named"),
    "on request by a star": (lambda: inside(gj.capturing("layers.9?.*")), "no site is named"),
    "a huge name": (lambda: inside(gj.capturing("x" * 10**6)), "names must be names of sites"),
    "captured twice": (lambda: inside(gj.capturing(POST) | gj.capturing("layers.*.residual_post")), "a site can be captured once"),
    "only to be looked at": (lambda: inside(gj.patching({"layers.0.attention.scores_max": 0.0})), "can be looked at, not patched"),
    "a vector too short": (lambda: inside(gj.steering({POST: VECTOR[:3]})), "a change must fit its value"),
    "a vector a token": (lambda: inside(gj.steering({POST: np.ones((5, D))})), "a change must fit its value"),
    "a head that is not": (
        lambda: inside(gj.patching({"layers.0.attention.heads": scale(0, np.s_[:, :, 999])})),
        "a change must fit its value",
    ),
    "an index of text": (lambda: inside(gj.patching({POST: scale(0, np.s_[:, :, "a"])})), "a change must fit its value"),
    "a position": (lambda: inside(gj.patching({POST: scale(0, np.s_[:, 7])})), "must leave rows and tokens whole"),
    "a row": (lambda: inside(gj.patching({POST: scale(0, 0)})), "must leave rows and tokens whole"),
    "the last ones": (lambda: inside(gj.patching({POST: scale(0, np.s_[..., 0, 0])})), "must leave rows and tokens whole"),
    "experts by halves": (lambda: inside(gj.patching({"layers.0.moe.experts": 0.5})), "holds integers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_with_a_sentence(case):
    call, words = REFUSED[case]
    with pytest.raises(ValueError, match="^[^\n]{20,500}$") as error:
        call()
    assert words in str(error.value)


def test_other_things_are_not_combined():
    with pytest.raises(TypeError):
        gj.capturing(POST) | 3


@pytest.mark.parametrize(
    "hook, read, salted, shared",
    [
        (gj.capturing(POST), True, False, False),
        (gj.capturing(POST, tokens="generated"), False, False, True),
        (gj.capturing(POST, tokens=19), False, False, True),  # the last token of the prompt goes through the model with the first step
        (gj.capturing(POST, tokens=18), True, False, False),
        (gj.steering({POST: VECTOR}), True, True, True),
        (gj.steering({POST: VECTOR}, tokens="generated"), False, False, True),
        (gj.steering({POST: VECTOR}) | gj.capturing(POST, tokens="generated"), True, True, True),
        (gj.patching({"logits": 0.0}), False, False, True),
        (gj.capturing("logits"), True, False, False),
    ],
)
def test_a_prompt_is_read_with_a_hook_where_that_has_a_say_in_it(hook, read, salted, shared):
    one = Looking(inside(hook), Programs, 20)
    assert (one.reads, bool(one.salt), one.shares) == (read, salted, shared) and reads(inside(hook), 20) == read


def test_prefixes_are_of_one_hook_and_its_values():
    salt = lambda hook, prompt=20: Looking(inside(hook), Programs, prompt).salt
    hooks = [
        gj.steering({POST: VECTOR}),
        gj.steering({POST: -VECTOR}),
        gj.steering({POST: VECTOR}, tokens=3),
        gj.steering({POST: VECTOR}, tokens="prompt"),
    ]
    assert len({salt(hook) for hook in hooks}) == len(hooks)
    assert salt(hooks[0]) == salt(gj.steering({POST: VECTOR.copy()}), 50)
    other = type("Programs", (), {"serial": 4})
    assert Looking(inside(hooks[0]), other, 20).salt != salt(hooks[0])


def test_rows_are_given_their_own():
    kind = [Looking(inside(gj.steering({POST: i * VECTOR}, tokens=i)), Programs, 20) for i in (1, 2)]
    spans, (new,) = given_rows({3: kind[0], 1: kind[1]}, 4)
    np.testing.assert_array_equal(new, np.stack([0 * VECTOR, 2 * VECTOR, 0 * VECTOR, VECTOR]))
    assert spans[:, 0, 0].tolist() == [0, 2, 0, 1] and (spans[[0, 2]] == 0).all()


@given(data=st.data())
def test_what_is_kept_is_told_once_and_in_order_whatever_is_read_again(data):
    """A request loses its pages at any time, is read again, and its tokens are forced again: nothing comes twice, nothing is left out."""
    prompt, drawn = data.draw(st.integers(1, 30)), data.draw(st.integers(0, 20))
    tokens = data.draw(st.sampled_from(["all", "prompt", "generated"]) | st.integers(0, 60))
    one = Looking(inside(gj.capturing("embedding", tokens=tokens)), Programs, prompt)
    length, told = prompt - 1 + drawn, []
    values = np.arange(length, dtype=np.float32)[:, None]
    for _ in range(data.draw(st.integers(1, 4))):
        at = 0 if one.reads else prompt - 1
        end = data.draw(st.integers(at, length)) if at <= length else at
        while at < end:
            step = data.draw(st.integers(1, 9))
            told.append(one.take(at, {"embedding": values[at : at + step]}))
            at = min(at + step, length)
    told.append(one.take(0, {"embedding": values}) if one.reads else one.take(prompt - 1, {"embedding": values[prompt - 1 :]}))
    parts = [part["embedding"] for part in told if part is not None]
    first, last = {"all": (0, length), "prompt": (0, min(prompt, length)), "generated": (prompt, length)}.get(tokens, (tokens, length))
    got = np.concatenate([array for _, array in parts])[:, 0] if parts else np.zeros(0)
    np.testing.assert_array_equal(got, np.arange(first, max(first, last)))
    at = first
    for start, array in parts:
        assert start == at or len(array) == 0
        at += len(array)


def test_a_hook_is_of_several_models():
    hook, wider = gj.capturing(POST) | gj.steering({POST: 1.0}), dataclasses.replace(gj.TINY, hidden_size=2 * D)
    assert inside(hook) is inside(hook) is not inside_of(hook, wider, CONTEXT)
