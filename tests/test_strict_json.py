"""JSON text as RFC 8259 has it: what Python's reader takes beyond it is refused, everything else is read as it reads it."""

import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from gptoss_jax.harmony import ToolCall
from gptoss_jax.strict_json import DEEPEST, deeper, dumps, loads

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)
NO_JSON = {
    "nan": "NaN",
    "infinity": "Infinity",
    "minus infinity": "-Infinity",
    "too large": "1e999",
    "too small": "-1e309",
    "many digits and a dot": "9" * 400 + ".5",
    "more digits than are read": "1" * 4_301,
    "nothing": "",
    "a comment": "1 // one",
    "a comma too many": "[1,]",
    "single quotes": "'a'",
    "a line break in a string": '"a\nb"',
    "a zero before": "01",
    "a plus": "+1",
    "hexadecimal": "0x10",
    "half a number": "1.",
    "two values": "{} {}",
    "a byte order mark": "\ufeff{}",
    "other digits": "\u0661",
    "another blank": "\u00a01",
    "True": "True",
}


@pytest.mark.parametrize("name", NO_JSON)
def test_what_is_no_json_is_refused_wherever_it_stands(name):
    text = NO_JSON[name]
    for whole in (text, f'{{"x": {text}}}', f'{{"x": [1, {{"y": {text}}}]}}'):
        with pytest.raises(ValueError) as caught:
            loads(whole)
        assert len(str(caught.value)) < 200
        assert not ToolCall("f", whole).valid and ToolCall("f", whole).parsed is None


@settings(deadline=None, max_examples=80)
@given(VALUES, st.booleans())
def test_what_is_json_is_read_as_python_reads_it(value, ascii):
    text = json.dumps(value, ensure_ascii=ascii, allow_nan=False)
    assert loads(text) == loads(text, unicode=True) == json.loads(text) == value
    assert ToolCall("f", text).valid == isinstance(value, dict)


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet='{}[]",:0123456789.eE+-NaIinftyul\\d8 \n', max_size=12))
def test_any_text_is_read_or_refused_with_a_value_error(text):
    try:
        value = loads(text)
    except ValueError:
        return
    assert json.loads(json.dumps(value, allow_nan=False)) == value


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_depth_does_not_depend_on_the_stack(opening, closing):
    def nested(times):
        return opening * times + "1" + closing * times

    def further(frames, text):
        return further(frames - 1, text) if frames else loads(text)

    most = DEEPEST // (1 + ("[{" in opening))
    assert further(700, nested(most)) == loads(nested(most)) and not deeper(loads(nested(most)), DEEPEST)
    for times in (most + 1, 2 * most, 100_000):
        with pytest.raises(ValueError, match="in each other|nested too deeply"):
            loads(nested(times))
    assert loads(nested(most + 1), deepest=None)
    assert loads("[" + "[]," * 5_000 + "{}]") == [[]] * 5_000 + [{}]


def test_the_last_of_equal_names_counts():
    assert ToolCall("f", '{"x": 1, "x": 2}').parsed == {"x": 2}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (r'"\ud800"', "\ufffd"),
        (r'"\uDC00\uD800x"', "\ufffd\ufffdx"),
        (r'"\ud83d\ude00"', "\U0001f600"),
        (r'"\\ud800"', r"\ud800"),
        (r'"\\\ud800\n"', "\\\ufffd\n"),
        (r'"\ud800\ud83d\ude00"', "\ufffd\U0001f600"),
        ('"\ud800\ud83d\ude00"', "\ufffd\U0001f600"),
    ],
)
def test_lone_surrogates_become_what_utf8_can_hold(text, read):
    assert loads(text, unicode=True) == read
    assert loads(text) == json.loads(text)
    assert ToolCall("f", f"{{{text}: {text}}}").parsed == {read: read}


def test_numbers_keep_what_a_float_or_an_int_can_hold():
    assert loads("1e308") == 1e308 and loads("1e-999") == 0 and math.copysign(1, loads("-0.0")) == -1
    assert loads("9" * 4_300) == 10**4_300 - 1 and loads("7", whole=str) == "7"


@given(VALUES)
def test_what_is_written_is_read_as_it_was(value):
    assert loads(dumps(value).decode()) == value


def test_half_of_a_pair_is_escaped_and_what_json_cannot_say_is_not_written():
    assert dumps({"é": "\ud800"}) == rb'{"\u00e9": "\ud800"}' and dumps(["é"]) == '["é"]'.encode()
    with pytest.raises(ValueError, match="JSON"):
        dumps(math.nan)
