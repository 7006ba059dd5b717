"""Values in error messages: a `repr` that is short whatever it is of, takes no time and never raises."""

import enum
import itertools
import time

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from gptoss_jax.quoting import MOST, quoted

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary()
hashed = st.recursive(scalars, lambda inner: st.tuples(inner) | st.frozensets(inner, max_size=3), max_leaves=4)
values = st.recursive(
    hashed,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(hashed, inner) | st.sets(hashed),
    max_leaves=12,
)


class Odd:
    """Has no `repr`."""

    def __repr__(self):
        raise KeyError("no")


class Color(enum.Enum):
    RED = 1


def nested(value: object, depth: int, wrap) -> object:
    for _ in range(depth):
        value = wrap(value)
    return value


@settings(max_examples=40, deadline=None)
@given(values, st.integers(0, 300))
def test_it_is_the_repr_or_its_beginning(value, most):
    whole, text = repr(value), quoted(value, most)
    assert len(text) <= most or text == "..."
    if len(whole) <= most:
        assert text == whole
    elif not isinstance(value, int):
        assert text.endswith("...") and whole.startswith(text[:-3].partition("a whole number")[0])


@pytest.mark.parametrize(
    "value, words",
    [
        (10**400, "a whole number of some 401 digits"),
        (-(10**50_000), "digits"),
        ([1, 10**5000], "[1, a whole number"),
        ("x" * 10**8, "'xxx"),
        (["x"] * 10**6, "['x', 'x'"),
        (dict.fromkeys(range(10**6)), "{0: None"),
        (nested(1, 100_000, lambda inner: [inner]), "[[[[[[[[[[[[[[[[[[[[[...]]]"),
        (nested(1, 100_000, lambda inner: {"a": inner}), "{'a': {'a'"),
        (nested(1, 100_000, lambda inner: (inner,)), "(...,),),)"),
        (Odd(), "a Odd"),
        ([Odd()], "[a list"),
        (range(10**6), "a range of 1,000,000"),
        (np.zeros(10**6), "a ndarray of 1,000,000"),
        (np.float32(0.5), "np.float32(0.5)"),
        (Color.RED, "<Color.RED: 1>"),
        ("\ud800", r"'\ud800'"),
        (int, "<class 'int'>"),
    ],
    ids=itertools.count(),
)
def test_what_is_huge_deep_or_odd_is_short(value, words):
    began = time.process_time()
    text = quoted(value)
    assert words in text and len(text) <= MOST and time.process_time() - began < 2
    text.encode()


def test_words_of_json():
    value = {"a": [None, True, False], "None": (None, 1)}
    assert quoted(value, json=True) == "{'a': [null, true, false], 'None': (null, 1)}" and quoted(None, json=True) == "null"
    assert quoted(value) == repr(value)
