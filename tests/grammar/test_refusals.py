"""A refusal speaks of what the caller wrote, where in it, and what the caller can do: not of the library's options and inner texts."""

import re

from forms import constraint, of
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
from small_vocabulary import small_vocabulary

from gptoss_jax.grammar import refusals

NEVER = re.compile(
    r"coerce|x-guidance (?!, which)|lenient|Enable|whitespace_|Unimplemented|Unsatisfiable schema|SearchRegex|\d\(\d+\)|\| start:|json-schema://"
)


def sentence(response_format):
    """What is said of a form that is refused."""
    with pytest.raises(ValueError, match=r"^response_format.*must .*; got .*; ") as refused:
        constraint(small_vocabulary(), response_format)
    said = str(refused.value)
    assert not NEVER.search(said) and len(said) < 500 and "\n" not in said, said
    return said


REGEXES = [
    (r"ab(", 3, r"'\('", "unclosed group"),
    (r"é/\d+(?=x)", 6, r"'\(\?=x\)'", "look-around"),
    ("a\nb\t[z-a]", 6, "'z-a]'", "invalid character class range"),
    (r"\/\\\w*\p{Foo}", 8, r"'\\\\p{Foo}'", "Unicode property not found"),
    (r"(a)\1", 4, r"'\\\\1'", "backreferences"),
    ("x" * 300 + "(", 301, r"'\('", "unclosed group"),
    ("a{2,1}", 2, r"'\{2,1\}'", "invalid repetition count range"),
]


@pytest.mark.parametrize(("regex", "at", "there", "why"), REGEXES, ids=range(len(REGEXES)))
def test_an_expression_that_cannot_be_read_is_shown_with_the_place(regex, at, there, why):
    shown = re.escape(repr(regex)) if len(regex) < 50 else "'x{50,}\\.\\.\\."
    said = f"{shown}, which cannot be read at its character {at}, {there}: .*{why}"
    assert re.search(f"got the regex {said}.*; change or drop that part$", sentence({"type": "regex", "regex": regex}))
    schema = {"type": "array", "items": {"type": "string", "pattern": regex}}
    assert re.search(rf"got the pattern {said}.* at \$.items; change or drop that part$", sentence(of(schema)))
    names = {"type": "object", "patternProperties": {regex: {}}}
    assert re.search(rf"got the pattern {said}.* at \$; change", sentence(of(names)))


@settings(deadline=None, max_examples=60)
@given(st.text(st.sampled_from(r"/\dwDWb(a" + "\n\té"), max_size=12))
def test_the_place_is_counted_in_what_the_caller_wrote(regex):
    regex += "_[z-a]"
    for kind, form in (("regex", {"type": "regex", "regex": regex}), ("pattern", of({"type": "string", "pattern": regex}))):
        said = sentence(form)
        if found := re.search(r"at its character (\d+), (.*): ", said):
            at = int(found[1]) - 1
            assert found[2] == ("its end" if at == len(regex) else repr(regex[at:]) if len(repr(regex[at:])) <= 30 else found[2]), kind
        else:
            assert "word boundary" in said or "that does not" in said, said


LOOKS = [(r"a\b", "a word boundary"), ("a^b", r"a \^ that does not begin the text"), ("a$b", r"a \$ that does not end the text")]


@pytest.mark.parametrize(("regex", "why"), LOOKS)
def test_what_looks_around_is_named(regex, why):
    assert re.search(
        f"got the regex {re.escape(repr(regex))} with {why}, which cannot be .*; write it", sentence({"type": "regex", "regex": regex})
    )
    assert re.search(f"got the pattern {re.escape(repr(regex))} with {why}", sentence(of({"type": "string", "pattern": regex})))


SCHEMAS = [
    ({"type": "string", "enum": ["a"], "pattern": "b"}, "a pattern, format, length or constant that no text satisfies"),
    ({"type": "string", "format": "email", "pattern": "^[0-9]+$"}, "a pattern, format, length or constant that no text satisfies"),
    ({"enum": []}, "an enum or anyOf that no value satisfies"),
    ({"anyOf": [False]}, "false, which no value satisfies"),
    ({"type": "boolean", "const": 3}, "incompatible types, which no value has at once"),
    ({"type": "object", "required": ["a", "b"], "maxProperties": 1}, "more names in required than its maxProperties"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, r"minLength \(3\) is greater than maxLength \(2\)"),
    ({"type": "object", "patternProperties": {"^a": {}, "a$": {}}}, r"the patternProperties '\^a' and 'a\$', .* same name at \$; let them"),
    ({"type": "object", "maxProperties": 1, "properties": {"a": {}, "b": {}}}, "not required at .*; require all that properties names"),
    ({"type": "number", "multipleOf": 0.1, "minimum": 0.01, "maximum": 0.02}, "does not contain a multiple of 0.1"),
    (
        {"anyOf": [{"type": "null"}, {"properties": {"a": {"$ref": "#", "type": "object"}}, "required": ["a"]}]},
        r"a \$ref to # that leads back to itself and has other keywords beside it; put those into the schema",
    ),
]


@pytest.mark.parametrize(("schema", "says"), SCHEMAS, ids=range(len(SCHEMAS)))
def test_what_no_value_satisfies_is_said_in_words_of_schemas(schema, says):
    assert re.search(says, sentence(of(schema)))


LARK = [
    ("start: foo", 'line 1, column 8: unknown name: "foo"; change'),
    ("\n" * 20 + "start: /b(/", r"line 21, column 8: the expression 'b\(', which cannot be read: unclosed group"),
    ("start: a\na: /x\\b/", r"line 2, column 4: the expression 'x\\\\b' with a word boundary"),
    ('start: a\na: %json {\n "not": {}}', r"%json in lark must hold what a grammar can follow; got not at \$"),
]


@pytest.mark.parametrize(("lark", "says"), LARK, ids=range(len(LARK)))
def test_a_grammar_s_own_lines_are_named(lark, says):
    with pytest.raises(ValueError, match=f"^response_format.*{says}"):
        constraint(small_vocabulary(), {"type": "lark", "lark": lark})


def test_a_schema_in_lark_is_read_as_one_alone(small):
    schema = '{"$schema": "http://json-schema.org/draft-07/schema#",\n "items": [{"oneOf": [{"const": 1}]}], "type": "array"}'
    rules = constraint(small, {"type": "lark", "lark": f"start: a\na: %json {schema}"})
    for token in small.encode("[1"):
        rules.advance(token)
    with pytest.raises(ValueError, match="line 4, column 4"):
        constraint(small, {"type": "lark", "lark": f"start: a b\na: %json {schema}\nb: nowhere"})


def test_limits_are_told_in_our_words():
    assert refusals.said("Current row has 30 items; max is 20") == "more than 20 alternatives are open at one place of the grammar"
    for error in ("initial lexer configuration (grammar) too big (limit for this grammar: 9)", "schema too large"):
        assert refusals.refusal(error, "json", "{}")[1] == "make it smaller"
