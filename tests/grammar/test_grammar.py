"""Constrained text: whatever an adversary draws from the masks is valid; whatever cannot be honoured is refused at the door."""

import json
import re
import types

from byte_tokenizer import ByteTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
import jsonschema
import numpy as np
import pytest
from small_vocabulary import small_vocabulary

from gptoss_jax.grammar import compiling, for_text
from gptoss_jax.grammar.vocabulary import vocabulary
from gptoss_jax.tokenizer import CONTROL

PAD = 70  # the model's logits are wider than the vocabulary, and no multiple of 32


def end_of(tokenizer):
    return tokenizer.special["<|return|>"]


def constraint(tokenizer, response_format):
    return for_text(tokenizer, response_format, end_ids=[end_of(tokenizer)], vocab_size=tokenizer.vocab_size + PAD)


def words(tokenizer):
    return np.full(-(-(tokenizer.vocab_size + PAD) // 32), 0xFFFFFFFF, np.uint32)


def allowed(rules, tokenizer):
    """The ids that may come; also checks that each is a token of text or the end."""
    out = words(tokenizer)
    assert rules.mask(out)
    ids = np.flatnonzero(np.unpackbits(out.view(np.uint8), bitorder="little"))
    assert len(ids) and ids[-1] < tokenizer.vocab_size
    assert not (set(tokenizer.special.values()) - {end_of(tokenizer)}) & set(ids.tolist())
    return ids


PICKS = {
    "lowest": lambda step: min,
    "highest": lambda step: max,
    "blank": lambda step: min,  # of the blanks, where one may come
    "seed 0": lambda step: np.random.default_rng([0, step]).choice,
    "seed 1": lambda step: np.random.default_rng([1, step]).choice,
}


def written(tokenizer, response_format, how, limit):
    """The text of an answer drawn from the masks, which must end by itself."""
    rules, ids = constraint(tokenizer, response_format), []
    for step in range(limit):
        some = allowed(rules, tokenizer)
        if how == "blank":
            blank = [i for i in some if i != end_of(tokenizer) and not tokenizer.token_bytes(int(i)).strip()]
            some = blank or some
        token = int(PICKS[how](step)(some))
        rules.advance(token)
        if token == end_of(tokenizer):
            assert not rules.problem
            assert allowed(rules, tokenizer).tolist() == [token], "after the end nothing else may come"
            return tokenizer.decode_bytes(ids).decode()
        ids.append(token)
    pytest.fail(f"no end after {limit} tokens: {tokenizer.decode(ids)[:200]!r}")


def object_of(required, **properties):
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


NODE = object_of(["v", "next"], v={"type": "boolean"}, next={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/leaf"}]})
# Each with a bound on the length of what it accepts.
SCHEMAS = {
    "nested": object_of(["a", "b"], a=object_of(["x"], x=object_of([], y={"type": "boolean"})), b={"type": "null"}),
    "array": {"type": "array", "items": {"enum": [1, "two", None, [3.5]]}, "minItems": 2, "maxItems": 5},
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": 'é\n"\\\u0001'}], "items": False, "minItems": 2},
    "enum": {"enum": ["a", "ab", "déjà vu", "\N{GRINNING FACE}", 7, 7.25, None, {"k": []}]},
    "anyOf": {"anyOf": [{"type": "integer", "minimum": -5, "maximum": 5}, {"type": "string", "maxLength": 3}, {"type": "null"}]},
    "integer": {"type": "integer", "exclusiveMinimum": 17, "maximum": 20_000},
    "multiple": {"type": "integer", "minimum": 1, "maximum": 1000, "multipleOf": 21},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
    "unicode": {"type": "string", "pattern": "^[ÄÖ\u4e00-\u4e20\N{GRINNING FACE}]{2,6}$"},
    "length": {"type": "string", "minLength": 2, "maxLength": 12},
    "date": {"type": "string", "format": "date"},
    "$defs": {"$ref": "#/$defs/node", "$defs": {"node": NODE, "leaf": object_of(["w"], w={"type": "string", "maxLength": 2})}},
    "allOf": {"allOf": [object_of(["a"], a={"type": "boolean"}), object_of(["a"], a={"enum": [True, 1]})]},
}


@pytest.mark.parametrize("how", PICKS)
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_satisfies_its_schema(tokenizer, name, how):
    text = written(tokenizer, {"type": "json_schema", "schema": SCHEMAS[name]}, how, limit=700)

    jsonschema.validate(json.loads(text), SCHEMAS[name])
    assert name != "date" or re.fullmatch(r'"\d{4}-[01]\d-[0-3]\d"', text)
    assert text == text.strip()


@pytest.mark.parametrize("how", PICKS)
def test_a_number_within_bounds(tokenizer, how):
    schema = {"type": "number", "minimum": 0.5, "maximum": 1.5}
    rules, ids = constraint(tokenizer, {"type": "json_schema", "schema": schema}), []
    for step in range(30):  # it may have any number of digits
        some = allowed(rules, tokenizer).tolist()
        if end_of(tokenizer) in some and (step > 8 or len(some) == 1):
            break
        token = int(PICKS[how](step)([i for i in some if i != end_of(tokenizer)]))
        rules.advance(token)
        ids.append(token)
    assert 0.5 <= json.loads(tokenizer.decode(ids)) <= 1.5


NUMBERS = st.builds(lambda digits, places: float(f"{digits}e-{places}"), st.integers(-(10**15) + 1, 10**15 - 1), st.integers(0, 20))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60)
@given(VALUES, st.sampled_from(["highest", "seed 0"]))
def test_a_constant_is_written_as_it_is(value, how):
    text = written(small_vocabulary(), {"type": "json_schema", "schema": {"const": value}}, how, limit=2000)
    assert json.loads(text) == value


OF_ONE_KIND = [
    ({"type": "regex", "regex": r"[a-c]{1,3}\.(com|org)"}, r"[a-c]{1,3}\.(com|org)"),
    ({"type": "regex", "regex": r"^\d\d/\d\d$"}, r"[\d]{2}/[\d]{2}"),
    ({"type": "choice", "choices": ["yes", "yes, but", "a/b\\ \"'\n\x01", "<|end|>", "\N{GRINNING FACE}"]}, None),
    ({"type": "lark", "lark": 'start: "(" inner ")" | "y"\ninner: "[" start "]"'}, r"(\(\[)*y(\]\))*"),
]


@pytest.mark.parametrize("how", ["highest", "seed 0", "seed 1"])
@pytest.mark.parametrize(("response_format", "pattern"), OF_ONE_KIND)
def test_other_kinds_of_grammar(tokenizer, response_format, pattern, how):
    text = written(tokenizer, response_format, how, limit=400)
    assert re.fullmatch(pattern, text) if pattern else text in response_format["choices"]


def says(tokenizer, response_format, text):
    """Whether the grammar lets the text through, written as the tokenizer writes it, and lets it end."""
    rules = constraint(tokenizer, response_format)
    for token in [*tokenizer.encode(text), end_of(tokenizer)]:
        if token not in allowed(rules, tokenizer):
            return False
        rules.advance(token)
    return True


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ('{"a": 1, "b": [true, {"c": "ü"}]}', True),
        ('{\n  "a": 1,\n  "b": {\n    "c": []\n  }\n}', True),
        ('{"a":1,"b":null}', True),
        ("{}", True),
        ('{"a":  1}', False),
        ('{"a":1}\n', False),
        (' {"a":1}', False),
        ("[1]", False),
        ('{"a":1', False),
        ('{"a":01}', False),
        ('{"a":"\t"}', False),
    ],
)
def test_blanks_are_those_of_people_and_bounded(tokenizer, text, passes):
    assert says(tokenizer, {"type": "json_object"}, text) is passes


def test_both_forms_of_openai_and_the_order_of_properties(small):
    schema = object_of(["b", "a"], b={"type": "integer"}, a={"type": "integer"})
    about = {"name": "pair", "schema": schema, "strict": True, "description": "two"}
    for response_format in ({"type": "json_schema", "json_schema": about}, {"type": "json_schema", **about}):
        assert says(small, response_format, '{"b": 1, "a": 2}')
        assert not says(small, response_format, '{"a": 2, "b": 1}')


def test_free_text_is_not_constrained(small):
    assert constraint(small, {"type": "text"}) is constraint(small, None) is None


def test_ids_without_text_never_come_and_every_spelling_may(small):
    any_text = {"type": "regex", "regex": r"(?s:.)*"}
    ids = allowed(constraint(small, any_text), small)
    without = {i for i in range(small.vocab_size) if small.token_bytes(i) is None} - {end_of(small)}
    assert without and not without & set(ids.tolist())

    a = [i for i in range(small.vocab_size) if small.token_bytes(i) == b"a"]
    assert len(a) == 2  # the piece and the byte
    assert [i for i in allowed(constraint(small, {"type": "regex", "regex": "a|b"}), small) if i in a] == a


def test_ends_come_when_the_text_is_complete_and_alone_when_it_cannot_go_on(small):
    ends = [small.special["<|return|>"], small.special["<|end|>"]]
    rules = for_text(small, {"type": "regex", "regex": "ab?"}, end_ids=ends, vocab_size=small.vocab_size + PAD)
    a, b = small.encode("ab")
    out = words(small)

    def bits():
        assert rules.mask(out)
        return set(np.flatnonzero(np.unpackbits(out.view(np.uint8), bitorder="little")).tolist())

    assert a in bits() and not set(ends) & bits()
    rules.advance(a)
    assert b in bits() and set(ends) < bits()
    rules.advance(b)
    assert bits() == set(ends)


def test_a_token_outside_the_mask_is_refused_and_changes_nothing(small):
    rules = constraint(small, {"type": "choice", "choices": ["ab"]})
    for token in (small.encode("b")[0], end_of(small), small.special["<|start|>"], 10**6, -1):
        with pytest.raises(ValueError, match="must get tokens that its mask allows; got"):
            rules.advance(token)
    assert small.encode("a")[0] in allowed(rules, small)


def test_the_library_giving_up_ends_the_answer_and_is_told(small, monkeypatch):
    rules = constraint(small, {"type": "json_object"})
    given_up = types.SimpleNamespace(
        is_error=lambda: True, is_accepting=lambda: False, get_error=lambda: "too complex", unsafe_compute_mask_ptr=lambda at, size: None
    )
    monkeypatch.setattr(rules._body._matcher, "_library", given_up)
    monkeypatch.setattr(rules._body._matcher, "_grammar", types.SimpleNamespace(alone=lambda _: given_up))

    assert allowed(rules, small).tolist() == [end_of(small)]
    rules.advance(end_of(small))
    assert rules.problem == "too complex"


def test_one_schema_is_compiled_once_for_all_its_requests(small, monkeypatch):
    calls = []
    compile = compiling.Grammar
    monkeypatch.setattr(compiling, "Grammar", lambda *args: calls.append(args) or compile(*args))
    first, second = object_of(["once"], once={"const": 1}), object_of(["once"], once={"const": 2})
    made = [constraint(small, {"type": "json_schema", "schema": json.loads(json.dumps(first))}) for _ in range(1000)]
    assert len(calls) == 1
    constraint(small, {"type": "json_schema", "json_schema": {"name": "same", "schema": first}})
    assert len(calls) == 1
    constraint(small, {"type": "json_schema", "schema": second})
    assert len(calls) == 2
    made[0].advance(small.encode("{")[0])
    with pytest.raises(ValueError, match="mask allows"):
        made[1].advance(small.encode('"')[0])  # it is still at its beginning


def test_a_vocabulary_is_read_once():
    tokenizer = ByteTokenizer()
    assert vocabulary(tokenizer) is vocabulary(tokenizer)
    assert vocabulary(tokenizer).text.sum(dtype=np.uint64) == 10 * 0xFFFFFFFF - sum(1 << i % 32 for i in range(320 - len(CONTROL), 320))


def test_forced_text_longer_than_the_tokenizer_can_split(tokenizer):
    rules = constraint(tokenizer, {"type": "choice", "choices": ["b" * 26_000]})
    for _ in range(3):
        token = int(allowed(rules, tokenizer)[-1])
        assert set(tokenizer.token_bytes(token)) == set(b"b")
        rules.advance(token)
