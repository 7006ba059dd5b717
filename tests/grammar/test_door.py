"""What cannot be asked of an answer's form is refused before anything runs, in words that say what and where."""

import numpy as np
import pytest

from gptoss_jax.grammar import for_text


def constraint(tokenizer, response_format):
    return for_text(tokenizer, response_format, end_ids=[tokenizer.special["<|return|>"]], vocab_size=tokenizer.vocab_size)


def object_of(required, **properties):
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


REFUSED = [
    ([], " must be a dict"),
    ({}, "type must be one of text, json_object, json_schema, regex, choice, lark; got None"),
    ({"type": "json"}, "type must be one of .* got 'json'"),
    ({"type": ["text"]}, "type must be one of"),
    ({"type": "text", "text": "x"}, "may hold type; got text too"),
    ({"type": "json_object", "schema": {}}, "may hold type; got schema too"),
    ({"type": "json_schema"}, 'must hold the JSON schema as "schema"'),
    ({"type": "json_schema", "json_schema": {"name": "n"}}, 'json_schema must hold the JSON schema as "schema"'),
    ({"type": "json_schema", "json_schema": "{}"}, "json_schema must be a dict"),
    ({"type": "json_schema", "json_schema": {"schema": {}}, "strict": True}, "may hold type, json_schema; got strict too"),
    ({"type": "json_schema", "schema": {}, "strikt": True}, "got strikt too"),
    ({"type": "json_schema", "schema": {}, "strict": "yes"}, "strict must be a bool; got str"),
    ({"type": "json_schema", "schema": {}, "name": 3}, "name must be a str; got int"),
    ({"type": "regex"}, "regex must be a string with something in it"),
    ({"type": "regex", "regex": "a("}, r"the regex 'a\(', which cannot be read at its character 2, '\(': unclosed group; change"),
    ({"type": "regex", "regex": "a(?=b)"}, "look-around"),
    ({"type": "regex", "regex": r"[^\s\S]"}, "it accepts no text"),
    ({"type": "regex", "regex": r"ab[^\s\S]"}, "it accepts no text"),
    ({"type": "regex", "regex": "()"}, "nothing but the empty text"),
    ({"type": "regex", "regex": "\ud800"}, "lone surrogate"),
    ({"type": "choice", "choices": []}, "choices must be a list of at least one string"),
    ({"type": "choice", "choices": "ab"}, "choices must be a list of at least one string"),
    ({"type": "choice", "choices": ["a", ""]}, r"choices\[1\] must be a string with something in it"),
    ({"type": "choice", "choices": ["a", 3]}, r"choices\[1\] must be a string with something in it; got 3"),
    ({"type": "lark", "lark": "start: foo"}, "unknown name"),
    ({"type": "lark", "lark": 'start: "<|end|>" <|end|>'}, "must not name control tokens"),
    ({"type": "lark", "lark": "start: <[3]>"}, "must not name control tokens"),
    ({"type": "lark", "lark": r"start: /[^\s\S]/"}, "it accepts no text"),
]


@pytest.mark.parametrize(("response_format", "match"), REFUSED)
def test_what_is_no_response_format_is_refused(small, response_format, match):
    with pytest.raises(ValueError, match=f"^response_format.*{match}"):
        constraint(small, response_format)


ENDLESS = object_of(["next"], next={"$ref": "#/$defs/n"})
BAD_SCHEMAS = [
    (3, r"schema must be a JSON schema .* got int"),
    (False, "must accept some value; got false"),
    ({"type": "strin"}, r"valid JSON schema; got at \$.type: 'strin'"),
    ({"properties": {"a": {"minLength": -1}}}, r"got at \$.properties.a.minLength"),
    ({"const": float("nan")}, "nothing but JSON"),
    ({"const": "\ud800"}, "nothing but JSON; got .*surrogates"),
    ({"const": 2**53 + 1}, r"numbers up to 2\*\*53, .* got 9007199254740993"),
    ({"const": 0.1 + 0.2}, "fractions of 15 digits, .* got 0.30000000000000004"),
    ({"type": "number", "minimum": 1e17}, "numbers up to 2.*; got 1e\\+17"),
    ({"const": {1, 2}}, "nothing but JSON; got .*set"),
    ({"type": "object", "x-guidance": {"lenient": True}}, "must not set x-guidance"),
    ({"enum": []}, r"an enum or anyOf that no value satisfies at \$"),
    ({"enum": [], "pattern": "a", "anyOf": [{}, {}]}, "an enum or anyOf that no value satisfies"),
    ({"type": "integer", "enum": ["a"]}, "incompatible types"),
    (
        object_of(["x"], x={"type": "integer", "minimum": 5, "maximum": 1}),
        r"minimum \(5\) is greater than maximum \(1\) at \$.properties.x;",
    ),
    (object_of(["a"]), r"required property 'a' is unsatisfiable at \$"),
    (object_of([], a=object_of(["b"])) | {"required": ["a"]}, r"property 'b' is unsatisfiable at \$.properties.a"),
    ({"type": "array", "minItems": 3, "maxItems": 1}, r"minItems \(3\) is greater"),
    ({"type": "array", "items": False, "minItems": 1}, "required item is unsatisfiable"),
    ({"type": "string", "pattern": "^a{5}$", "maxLength": 3}, "a pattern, format, length or constant that no text satisfies"),
    ({"type": "integer", "minimum": 1, "maximum": 6, "multipleOf": 7}, "does not contain a multiple of 7"),
    ({"allOf": [{"type": "integer"}, {"type": "string"}]}, "incompatible types"),
    ({"$ref": "#"}, "must accept some value that ends; got #, which always requires itself"),
    ({"$ref": "#/$defs/n", "$defs": {"n": ENDLESS}}, "got #/\\$defs/n, which always requires itself"),
    ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "got #, which always requires itself"),
    ({"anyOf": [{"$ref": "#"}, {"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1}]}, "got #, which always requires itself"),
    ({"$ref": "#/$defs/nowhere"}, r"refer to schemas that it holds; got \$ref '#/\$defs/nowhere' at \$, where there is none; put that"),
    ({"$ref": "https://example.com/schema"}, "got \\$ref 'https://example.com/schema'"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ({"type": "object", "minProperties": 2}, "require by name as many properties as its minProperties; got 2 and 0"),
]


@pytest.mark.parametrize(("schema", "match"), BAD_SCHEMAS)
def test_a_schema_that_is_invalid_unsupported_or_impossible_is_refused(small, schema, match):
    for response_format in ({"type": "json_schema", "schema": schema}, {"type": "json_schema", "json_schema": {"schema": schema}}):
        with pytest.raises(ValueError, match=f"(?s)^response_format.*{match}"):
            constraint(small, response_format)


def test_a_schema_too_deep_for_python_is_refused_and_a_deep_one_is_not(small):
    schema = {"type": "null"}
    for depth in range(5000):
        schema = {"type": "array", "items": schema}
        if depth == 30:
            assert constraint(small, {"type": "json_schema", "schema": schema})
    with pytest.raises(ValueError, match="response_format.*(recursion|nested)"):
        constraint(small, {"type": "json_schema", "schema": schema})


RECURSIVE = [
    ENDLESS | {"required": [], "$defs": {"n": {"$ref": "#"}}},
    {"anyOf": [{"type": "null"}, object_of(["next"], next={"$ref": "#"})]},
    {"type": "array", "items": {"$ref": "#"}},
    {"$ref": "#/components/t", "components": {"t": object_of(["k"], k={"type": "array", "items": {"$ref": "#/components/t"}})}},
    {"type": "object", "required": ["x"], "additionalProperties": {"anyOf": [{"$ref": "#"}, {"const": 1}]}},
]


@pytest.mark.parametrize("schema", RECURSIVE)
def test_a_recursion_that_can_end_is_accepted(small, schema):
    assert constraint(small, {"type": "json_schema", "schema": schema})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"end_ids": []}, "end_ids must name at least one id"),
        ({"end_ids": [10**6]}, "end_ids must name at least one id below"),
        ({"end_ids": [-1]}, "end_ids must name at least one id below"),
        ({"vocab_size": 100}, "vocab_size must be at least the tokenizer's 365; got 100"),
    ],
)
def test_ends_and_width_are_checked(small, options, match):
    with pytest.raises(ValueError, match=match):
        for_text(small, {"type": "json_object"}, **({"end_ids": [3], "vocab_size": 400} | options))


@pytest.mark.parametrize(
    "out", [np.zeros(14, np.int32), np.zeros(13, np.uint32), np.zeros((1, 14), np.uint32), np.zeros(28, np.uint32)[::2]]
)
def test_a_mask_of_another_form_is_refused(small, out):
    rules = for_text(small, {"type": "json_object"}, end_ids=[3], vocab_size=435)
    with pytest.raises(ValueError, match="out must be 14 words of uint32 in a row; got"):
        rules.mask(out)
