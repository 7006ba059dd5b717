"""What a schema says in keywords that no grammar follows is said in others, or refused by name, place and remedy."""

import json
import re
from typing import Annotated, Literal, Union

from forms import constraint, of, walk
from hypothesis import given, settings
from hypothesis import strategies as st
import jsonschema
import numpy as np
import pydantic
import pytest
from small_vocabulary import small_vocabulary

from gptoss_jax.grammar.schema.disjoint import Prover
from gptoss_jax.grammar.schema.followed import FORMATS, followed
from gptoss_jax.schemas import checked

INTEGER, TEXT, NULL = {"type": "integer"}, {"type": "string"}, {"type": "null"}


def part(name, **more):
    return {"type": "object", "properties": {name: INTEGER}, "required": [name], **more}


def kind(name, *required, **properties):
    return {"type": "object", "properties": {"kind": {"const": name}, **properties}, "required": [*required]}


SAID = [
    ({"type": "string", "format": "int64", "title": "T", "default": "x", "x-guidance": 3, "examples": [1]}, TEXT),
    ({"type": "string", "format": "date"}, {"type": "string", "format": "date"}),
    ({"type": "string", "minLength": 2.0}, {"type": "string", "minLength": 2}),
    ({"type": "array", "uniqueItems": False}, {"type": "array"}),
    ({"type": "array", "uniqueItems": True, "maxItems": 1}, {"type": "array", "maxItems": 1}),
    ({"not": False, "if": TEXT, "contentSchema": {}, "deprecated": True, "minContains": 2}, {}),
    ({"then": TEXT, "else": NULL}, {}),
    ({"required": ["a"], "minProperties": 1, "maxProperties": 9}, {"required": ["a"], "maxProperties": 9}),
    (
        {"properties": {"a": {}, "b": {}}, "maxProperties": 2, "additionalProperties": False},
        {"properties": {"a": {}, "b": {}}, "additionalProperties": False},
    ),
    ({"type": "object", "propertyNames": {"type": "string", "description": "d"}}, {"type": "object"}),
    (
        {"propertyNames": {"enum": ["a", "b"]}, "properties": {"a": NULL, "c": NULL}, "additionalProperties": INTEGER},
        {"properties": {"a": NULL, "c": False, "b": INTEGER}, "additionalProperties": False},
    ),
    (
        {"propertyNames": {"pattern": "^x"}, "additionalProperties": INTEGER},
        {"patternProperties": {"^x": INTEGER}, "additionalProperties": False},
    ),
    ({"properties": {"a": {}}, "unevaluatedProperties": False}, {"properties": {"a": {}}, "additionalProperties": False}),
    ({"prefixItems": [{}], "unevaluatedItems": False}, {"prefixItems": [{}], "items": False}),
    ({"additionalProperties": INTEGER, "unevaluatedProperties": False}, {"additionalProperties": INTEGER}),
    (
        {"type": "object", "dependentRequired": {"a": ["b"]}},
        {
            "type": "object",
            "allOf": [{"anyOf": [{"type": "object", "properties": {"a": False}}, {"type": "object", "required": ["a", "b"]}]}],
        },
    ),
    # OpenAPI's nullable
    ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
    ({"type": ["string", "null"], "nullable": True}, {"type": ["string", "null"]}),
    ({"type": "string", "nullable": False}, TEXT),
    ({"nullable": True}, {}),
    ({"type": "string", "enum": ["a"], "nullable": True}, {"anyOf": [{"type": "string", "enum": ["a"]}, NULL]}),
    (
        {"$ref": "#/$defs/a", "nullable": True, "$defs": {"a": TEXT}},
        {"anyOf": [{"$ref": "#/$defs/a"}, NULL], "$defs": {"a": TEXT}},
    ),
    # oneOf whose schemas exclude each other
    ({"oneOf": [TEXT, INTEGER, NULL]}, {"anyOf": [TEXT, INTEGER, NULL]}),
    ({"oneOf": [INTEGER], "anyOf": [{}, TEXT]}, {"anyOf": [{}, TEXT], "allOf": [{"anyOf": [INTEGER]}]}),
    (
        {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {"a": kind("a", "kind"), "b": kind("b", "kind")}},
        {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {"a": kind("a", "kind"), "b": kind("b", "kind")}},
    ),
]


@pytest.mark.parametrize(("schema", "said"), SAID)
def test_what_can_be_said_in_keywords_that_are_followed_is(schema, said):
    assert followed(checked(schema, "s"), "s") == said


def test_schemas_of_a_union_require_the_property_that_tells_them_apart():
    """As pydantic writes it where the tag has a default, also where the union stands in itself."""
    union = {"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}], "discriminator": {"propertyName": "kind", "mapping": {}}}
    schema = {**union, "$defs": {"A": kind("a", "x", x=union), "B": kind("b", "y", y=INTEGER)}}
    found = followed(checked(schema, "s"), "s")
    targets = [found["$defs"][ref["$ref"].rpartition("/")[2]] for ref in found["anyOf"]]
    assert [target["required"] for target in targets] == [["x", "kind"], ["y", "kind"]]
    assert targets[0]["properties"]["x"]["anyOf"] == found["anyOf"]


class Cat(pydantic.BaseModel, extra="forbid"):
    kind: Literal["cat"] = "cat"
    lives: int = pydantic.Field(ge=0, le=9)


class Leaf(pydantic.BaseModel, extra="forbid"):
    kind: Literal["leaf"]
    value: bool | None


class Node(pydantic.BaseModel, extra="forbid"):
    kind: Literal["node"] = "node"
    left: Annotated[Union["Node", Leaf, Cat], pydantic.Field(discriminator="kind")]
    pair: tuple[bool, Cat]
    named: dict[Literal["x", "y"], bool]


def test_pydantic_reads_what_is_written_for_its_models(small):
    found = texts(small, Node.model_json_schema(), range(12))
    assert len(found) > 3
    for text in found:
        assert Node.model_validate_json(text).kind == "node"


def test_one_of_two_properties_leaves_the_other_out(small):
    schema = {"type": "object", "properties": {"a": INTEGER, "b": INTEGER}, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}
    schema["additionalProperties"] = False
    names = {frozenset(json.loads(text)) for text in texts(small, schema, range(20))}
    assert names == {frozenset("a"), frozenset("b")}


REFUSED = [
    ({"properties": {"a": {"not": TEXT}}}, r"got not at \$.properties.a; say what may be there"),
    ({"if": TEXT, "then": {"minLength": 1}}, r"got if at \$; write the cases out"),
    ({"items": {"contains": TEXT}}, r"got contains at \$.items; say what every item is"),
    ({"properties": {"a": {"uniqueItems": True}}}, r"got uniqueItems at \$.properties.a; drop it"),
    ({"propertyNames": {"maxLength": 3}}, r"got propertyNames at \$; name the properties"),
    ({"dependentRequired": {"a": ["b"]}}, r"got dependentRequired at \$; "),
    ({"dependencies": {"a": {"minProperties": 1}}}, r"got dependentSchemas at \$; "),
    ({"allOf": [{"unevaluatedProperties": False, "$ref": "#/$defs/a"}], "$defs": {"a": {}}}, r"got unevaluatedProperties at \$.allOf\[0\]"),
    ({"contains": {}, "unevaluatedItems": False}, "got contains at"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"not": {}}}}}, r"got not at #/\$defs/a.items; "),
    ({"items": {"$ref": "other.json"}}, r"got \$ref 'other.json' at \$.items, where there is none; put"),
    ({"$dynamicRef": "#none"}, r"got \$dynamicRef at \$; refer"),
    ({"oneOf": [TEXT, INTEGER, {"type": "number"}]}, r"got 1 and 2 at \$.oneOf, which may both hold; use anyOf"),
    ({"oneOf": [{}, {}]}, "which may both hold"),
    ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "which may both hold"),
    ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, "which may both hold"),  # any text satisfies both
    ({"oneOf": [part("a"), part("a")]}, "which may both hold"),
    (
        {"oneOf": [{"$ref": "#/oneOf/1"}, {"$ref": "#/oneOf/0"}], "discriminator": {"propertyName": "k"}},
        "which may both hold",
    ),
]


@pytest.mark.parametrize(("schema", "says"), REFUSED)
def test_what_no_grammar_follows_is_refused_by_name_and_place(small, schema, says):
    with pytest.raises(ValueError, match=f"^response_format.schema must (hold|refer) .*{says}") as refused:
        constraint(small, of(schema))
    assert not re.search("coerce|Unimplemented|option|guidance|lenient|Enable", str(refused.value))


def test_what_nothing_refers_to_may_hold_anything(small):
    assert constraint(small, of({"type": "integer", "$defs": {"unused": {"not": {}, "oneOf": [{}, {}], "$ref": "elsewhere.json"}}}))


def test_data_that_looks_like_a_schema_stays_data():
    value = {"$ref": "#/nowhere", "oneOf": [1], "$id": "x", "items": [1], "exclusiveMinimum": True}
    schema = {"enum": [value], "properties": {"a": {"const": value}}}
    assert followed(checked(schema, "s"), "s") == schema


APART = [
    (TEXT, INTEGER),
    ({"type": ["string", "null"]}, {"type": "number"}),
    ({"enum": ["a", 1]}, {"enum": ["b", 1.5]}),
    ({"const": "a"}, INTEGER),
    ({"type": "number", "maximum": 3}, {"type": "integer", "exclusiveMinimum": 3}),
    ({"type": "string", "maxLength": 3}, {"type": "string", "minLength": 4}),
    ({"type": "array", "maxItems": 1}, {"type": "array", "minItems": 2}),
    (
        {"type": "array", "prefixItems": [{"const": "a"}], "minItems": 1},
        {"type": "array", "prefixItems": [{"const": "b"}]},
    ),
    (part("a", additionalProperties=False), part("b")),
    (kind("a", "kind"), {"type": "object", "properties": {"kind": INTEGER}}),
    ({"anyOf": [TEXT, NULL]}, {"anyOf": [INTEGER, {"type": "boolean"}]}),
    ({"allOf": [{"type": ["string", "null"]}, {"type": ["string", "integer"]}]}, {"type": ["null", "integer"]}),
    (False, {}),
]
NOT_APART = [
    ({}, TEXT),
    (INTEGER, {"type": "number"}),
    ({"const": 1}, {"const": 1.0}),
    ({"const": [1, {"a": 2}]}, {"const": [1.0, {"a": 2.0}]}),
    (kind("a"), kind("b")),
    ({"properties": {"k": {"const": 1}}, "required": ["k"]}, {"properties": {"k": {"const": 2}}, "required": ["k"]}),
    ({"type": "string", "nullable": True}, NULL),
    ({"allOf": [TEXT], "nullable": True}, {"allOf": [INTEGER], "nullable": True}),
    ({"type": "array", "prefixItems": [{"const": "a"}]}, {"type": "array", "prefixItems": [{"const": "b"}]}),
    ({"patternProperties": {"b": {}}, **part("a", additionalProperties=False)}, part("b")),
    ({"type": "number", "maximum": 3}, {"type": "number", "minimum": 3}),
]


@pytest.mark.parametrize(("one", "other", "apart"), [(*pair, True) for pair in APART] + [(*pair, False) for pair in NOT_APART])
def test_schemas_are_told_apart(one, other, apart):
    assert Prover({}).apart((one,), (other,)) is Prover({}).apart((other,), (one,)) is apart
    assert (Prover({}).overlap({}, [one, other]) is None) is apart


def test_many_schemas_are_told_apart_by_their_constants():
    assert Prover({}).overlap({}, [{"const": f"name {i}"} for i in range(3000)]) is None
    assert Prover({}).overlap({"type": "object"}, [kind(f"k{i}", "a", "kind") for i in range(1000)]) is None
    assert Prover({}).overlap({}, [{"const": i % 9} for i in range(10)]) == (0, 9)
    with pytest.raises(ValueError, match=r"got 0 and 1 at \$.oneOf, which may both hold"):
        followed({"oneOf": [part(f"p{i}") for i in range(4000)]}, "s")


# What is written is of the schema as the caller wrote it


def texts(tokenizer, schema, seeds):
    found = []
    for seed in seeds:
        ids, ended = walk(constraint(tokenizer, of(schema)), tokenizer, np.random.default_rng(seed), 400)
        found += [tokenizer.decode_bytes(ids).decode()] if ended else []
    return found


@st.composite
def objects(draw, inner):
    names = draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True))
    schema = {"type": "object", "properties": {name: draw(inner) for name in names}, "additionalProperties": False}
    schema["required"] = draw(st.lists(st.sampled_from(names), max_size=2, unique=True))
    word = draw(st.sampled_from(["", "dependentRequired", "dependencies", "oneOf", "propertyNames", "unevaluatedProperties"]))
    if word in ("dependentRequired", "dependencies"):
        schema[word] = {draw(st.sampled_from(names)): [draw(st.sampled_from(names))]}
    elif word == "oneOf":
        schema[word] = [{"required": [name]} for name in names]
    elif word == "propertyNames":
        schema[word] = {"enum": names}
    elif word:
        schema[word] = False
    return schema


LEAVES = st.sampled_from(
    [
        *({"type": "boolean"}, {"type": "string", "maxLength": 2}, {"type": "integer", "minimum": 0, "maximum": 9}, NULL),
        *({"const": "k"}, {"enum": [1, None, "z"]}, {"type": "string", "enum": ["a", "b"]}, {"$ref": "#/$defs/d"}),
        {"type": "string", "format": "ipv4"},
    ]
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        objects(inner)
        | st.builds(lambda parts: {"oneOf": parts}, st.lists(inner, min_size=1, max_size=3))
        | st.builds(lambda parts: {"type": "array", "items": parts, "additionalItems": False}, st.lists(inner, min_size=1, max_size=2))
        | st.builds(lambda schema: {"allOf": [schema], "unevaluatedItems": True}, inner)
    ),
    max_leaves=6,
)


@pytest.mark.thorough
@settings(deadline=None, max_examples=250)
@given(SCHEMAS, st.integers(0, 99))
def test_what_is_written_satisfies_the_schema_as_it_was(schema, seed):
    small = small_vocabulary()
    schema = schema | {"$defs": {"d": {"type": ["string", "null"], "maxLength": 1}}}
    judge = jsonschema.Draft202012Validator(checked(schema, "s"), format_checker=jsonschema.FormatChecker(["ipv4"]))
    try:
        found = texts(small, schema, range(seed, seed + 3))
    except ValueError as refused:
        assert re.match(r"response_format(.schema)? must .*; got .*; ", str(refused)), refused
        return
    for text in found:
        judge.validate(json.loads(text))


def test_the_formats_that_bind_are_those_that_the_library_knows(small):
    for name in (*FORMATS, "int32", "path", "regex", "uri-reference", "unknown", ""):
        bound = constraint(small, of({"type": "string", "format": name})), constraint(small, of(TEXT))
        ids = [small.encode('"zz"')] * 2
        taken = []
        for rules, tokens in zip(bound, ids, strict=True):
            try:
                for token in tokens:
                    rules.advance(token)
                rules.advance(small.special["<|return|>"])
                taken.append(True)
            except ValueError:
                taken.append(False)
        assert taken == [name not in FORMATS or name == "hostname", True], name
