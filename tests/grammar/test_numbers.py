"""No structured answer holds a number that a float cannot hold, and every one that it can may be written."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from gptoss_jax.grammar.compiling import compiled
from gptoss_jax.grammar.formats import of_schema
from gptoss_jax.grammar.numbers import MOST, Dangerous, Numbers
from gptoss_jax.grammar.vocabulary import vocabulary
from gptoss_jax.strict_json import loads
from gptoss_jax.tokenizer import o200k

SCHEMAS = [{"type": "number"}, {}, {"anyOf": [{"type": "integer"}, {"type": "number", "multipleOf": 0.5}]}]


def begun(tokenizer, schema):
    return compiled(vocabulary(tokenizer), of_schema(schema, "schema"), "schema")


def writes(tokenizer, schema, text):
    """Whether text can be written, every token allowed by the mask before it."""
    matcher, mask = begun(tokenizer, schema), np.zeros(vocabulary(tokenizer).words, np.uint32)
    for token in tokenizer.encode(text):
        matcher.allow(mask)
        allowed = bool(mask[token // 32] >> np.uint32(token % 32) & 1)
        assert matcher.take(token) == allowed
        if not allowed:
            return False
    return matcher.complete


@pytest.mark.parametrize(
    "text", ["1e999", "-1e309", "1E+400", "1.5e0308", "9" * 309, "-" + "1" * 400, "9" * 400 + ".5", "12345e305", "0.1e999"]
)
def test_numbers_that_no_float_holds_are_not_written(small, text):
    for schema in SCHEMAS[:2]:
        assert not writes(small, schema, text)
    for whole in (f"[1, {text}]", f'{{"1e999": {text}}}', f'["\\"", {text}]'):
        assert not writes(small, {}, whole)


@pytest.mark.parametrize(
    "text", ["1e307", "-1.5E+300", "1e-999", "0e5", "6.02214076e23", "9" * 308, "1e+0000005", "-0.0", "1" * 300 + "e8"]
)
def test_numbers_that_a_float_holds_are_written(small, text):
    for schema in SCHEMAS[:2]:
        assert writes(small, schema, text)
    loads(text)


@pytest.mark.parametrize("text", ['"1e999"', '"\\\\1e999"', '"\\"1e999"', '{"1e999": "9e999", "a": "' + "9" * 400 + '"}'])
def test_strings_hold_any_digits(small, text):
    assert writes(small, {}, text) and loads(text)


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet='0123456789+-.eE", \\', max_size=12), st.text(alphabet="0123456789eE+-", max_size=8))
def test_however_a_text_is_cut_into_tokens(text, more):
    whole, parts = Numbers().after((text + more).encode()), Numbers()
    for byte in (text + more).encode():
        parts = parts and parts.after(bytes([byte]))
    assert (whole is None) == (parts is None)
    if begun := Numbers().after(text.encode()):
        mask = np.full(1, 0xFFFFFFFF, np.uint32)
        begun.forbid(mask, Dangerous([more.encode(), b"0", b","]))
        assert more == "" or (mask[0] & 1 == 0) == (begun.after(more.encode()) is None)
        assert mask[0] & 4


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**308), 10**308)))
def test_what_is_forbidden_is_about_to_be_too_large(value):
    text = json.dumps(value)
    if Numbers().after(text.encode()) is None:
        assert abs(value) >= 10.0 ** (MOST - 1)


@pytest.mark.parametrize("seed", range(4))
def test_random_answers_are_json(small, seed):
    draw = np.random.default_rng(seed)
    matcher = begun(small, {"type": "array", "items": {"type": "number"}, "minItems": 3})
    mask, text = np.zeros(vocabulary(small).words, np.uint32), b""
    digits = [small.encode(one)[0] for one in "0123456789eE"]
    while not (text and matcher.complete) and len(text) < 3_000:
        matcher.allow(mask)
        ids = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        wanted = np.intersect1d(ids, digits) if draw.random() < 0.995 else []
        token = int(draw.choice(wanted if len(wanted) else ids))
        assert matcher.take(token)
        text += small.token_bytes(token)
    if matcher.complete:
        loads(text.decode())


def test_tokens_of_several_digits_are_forbidden_too():
    assert not writes(o200k(), {}, "[1e999]") and not writes(o200k(), {}, "[" + "9" * 309) and writes(o200k(), {}, "[1e300]")


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, (2**53, -(2**53), 0), (2**53 + 1, -(2**53) - 1)),
        ({"type": "integer", "minimum": 0, "exclusiveMaximum": 2**64}, (0, 2**53), (-1, 2**53 + 1)),
        ({"type": "integer", "exclusiveMaximum": 2**64, "maximum": 5}, (5,), (6,)),
        ({"type": "number", "minimum": -3.4028235e38, "maximum": 3.4028235e38}, (1.5, 2**53), (2**53 + 1,)),
        ({"type": "integer", "default": 2**63 - 1, "examples": [0.12345678901234568, 1.7976931348623157e308]}, (2**63 - 1,), (1.5,)),
        ({"type": "string", "maxLength": 2**63 - 1}, ("a",), (1,)),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"const": 1}, "b": {"const": 2**70}}}, (1,), (2,)),
    ],
)
def test_numbers_that_a_grammar_cannot_keep_bind_nothing_or_are_narrowed(small, schema, yes, no):
    for value in (*yes, *no):
        assert writes(small, schema, json.dumps(value)) == (value in yes), value
