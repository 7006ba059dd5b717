"""A schema of any draft is judged by that draft, and its form in 2020-12 accepts what it accepts."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
import jsonschema
import pytest
from referencing.exceptions import Unresolvable

from gptoss_jax.schemas import checked

D4, D6, D7 = (f"http://json-schema.org/draft-0{number}/schema#" for number in (4, 6, 7))
D19, D20 = (f"https://json-schema.org/draft/{date}/schema" for date in ("2019-09", "2020-12"))
VALIDATORS = {
    D4: jsonschema.Draft4Validator,
    D6: jsonschema.Draft6Validator,
    D7: jsonschema.Draft7Validator,
    D19: jsonschema.Draft201909Validator,
    D20: jsonschema.Draft202012Validator,
}
NUMBER, TEXT = {"type": "number"}, {"type": "string"}


SAID_ANEW = [
    ({"$schema": D7, "items": [NUMBER, TEXT], "additionalItems": False}, {"prefixItems": [NUMBER, TEXT], "items": False}),
    ({"$schema": D19, "items": [NUMBER]}, {"prefixItems": [NUMBER]}),
    ({"items": [NUMBER], "additionalItems": TEXT}, {"prefixItems": [NUMBER], "items": TEXT}),
    ({"items": [], "additionalItems": False}, {"items": False}),
    ({"items": TEXT, "additionalItems": False}, {"items": TEXT}),
    ({"$schema": D20, "prefixItems": [NUMBER], "additionalItems": False}, {"prefixItems": [NUMBER]}),
    ({"$schema": D7, "prefixItems": [NUMBER], "items": False}, {"prefixItems": [NUMBER], "items": False}),
    ({"$schema": D4, "minimum": 1, "exclusiveMinimum": True, "maximum": 9}, {"exclusiveMinimum": 1, "maximum": 9}),
    ({"$schema": D4, "maximum": 1, "exclusiveMaximum": False}, {"maximum": 1}),
    ({"maximum": 1, "exclusiveMaximum": True}, {"exclusiveMaximum": 1}),
    ({"exclusiveMinimum": False, "minLength": 1}, {"minLength": 1}),
    ({"$schema": D4, "id": "https://x/y", "properties": {"id": TEXT, "$id": TEXT}}, {"properties": {"id": TEXT, "$id": TEXT}}),
    ({"id": "free", "x-order": 3}, {"id": "free", "x-order": 3}),
    ({"dependencies": {"a": ["b"], "c": TEXT}}, {"dependentRequired": {"a": ["b"]}, "dependentSchemas": {"c": TEXT}}),
    (
        {"dependencies": {"a": ["b"]}, "dependentRequired": {"a": ["c", "b"], "d": []}},
        {"dependentRequired": {"a": ["c", "b"], "d": []}},
    ),
    ({"$schema": "http://json-schema.org/draft-07/schema", "items": [TEXT]}, {"prefixItems": [TEXT]}),
    ({"$schema": "https://json-schema.org/draft-04/schema#", "items": [TEXT]}, {"prefixItems": [TEXT]}),
    ({"$schema": "http://json-schema.org/draft/2020-12/schema#", "items": TEXT}, {"items": TEXT}),
    ({"$schema": "https://my.server/tools.json", "items": [TEXT]}, {"prefixItems": [TEXT]}),
    ({"$schema": "", "minimum": 1, "exclusiveMinimum": True}, {"exclusiveMinimum": 1}),
    ({"properties": {"p": {"$schema": D7, "items": [TEXT]}}}, {"properties": {"p": {"prefixItems": [TEXT]}}}),
    # What stands beside a $ref, which draft-07 does not look at.
    (
        {"$schema": D7, "properties": {"a": {"$ref": "#/definitions/t", "maxLength": 3, "title": "T"}}, "definitions": {"t": TEXT}},
        {"properties": {"a": {"$ref": "#/definitions/t", "title": "T"}}, "definitions": {"t": TEXT}},
    ),
    ({"$ref": "#/$defs/t", "maxLength": 3, "$defs": {"t": TEXT}}, {"$ref": "#/$defs/t", "maxLength": 3, "$defs": {"t": TEXT}}),
    # References to what has moved, or is named otherwise.
    (
        {"properties": {"a": {"items": [TEXT, True]}, "b": {"$ref": "#/properties/a/items/0"}, "c": {"$ref": "#/properties/a/items/1"}}},
        {"properties": {"a": {"prefixItems": [TEXT, True]}, "b": {"$ref": "#/properties/a/prefixItems/0"}, "c": {"allOf": [True]}}},
    ),
    (
        {
            "$schema": D7,
            "allOf": [{"$ref": "#/definitions/a", "not": {"not": TEXT}}, {"$ref": "#/allOf/0/not/not"}],
            "definitions": {"a": {}},
        },
        {"allOf": [{"$ref": "#/definitions/a"}, {"$ref": "#/$defs/beside-0"}], "definitions": {"a": {}}, "$defs": {"beside-0": TEXT}},
    ),
    (
        {"$schema": D7, "properties": {"a": {"$ref": "#t"}}, "definitions": {"x": {"$id": "#t", "type": "null"}}},
        {"properties": {"a": {"$ref": "#/definitions/x"}}, "definitions": {"x": {"type": "null"}}},
    ),
    (
        {"$id": "https://x/a.json", "$defs": {"t": {"$anchor": "u"}}, "allOf": [{"$ref": "#u"}, {"$ref": "a.json#/$defs/t"}]},
        {"$defs": {"t": {}}, "allOf": [{"$ref": "#/$defs/t"}, {"$ref": "#/$defs/t"}]},
    ),
    (
        {"$defs": {"t": {"$id": "https://x/b", "$defs": {"u": TEXT}, "items": {"$ref": "#/$defs/u"}}}, "$ref": "https://x/b"},
        {"$defs": {"t": {"$defs": {"u": TEXT}, "items": {"$ref": "#/$defs/t/$defs/u"}}}, "$ref": "#/$defs/t"},
    ),
    ({"$schema": D19, "$recursiveAnchor": True, "items": {"$recursiveRef": "#"}}, {"items": {"$ref": "#"}}),
    ({"$dynamicAnchor": "node", "items": {"$dynamicRef": "#node"}}, {"items": {"$ref": "#"}}),
    ({"items": {"$ref": "#/$defs/Page<größe ~0>"}, "$defs": {"Page<größe ~>": {}}}, None),
    ({"$ref": "https://elsewhere/x"}, {"$ref": "https://elsewhere/x"}),
    ({"$ref": "#a/b", "minItems": 1}, {"$ref": "#a/b", "minItems": 1}),
    (
        {"allOf": [{"$ref": "#/minItems/x"}, {"$ref": "#t"}], "minItems": 1},
        {"allOf": [{"$ref": "#/minItems/x"}, {"$ref": "#t"}], "minItems": 1},
    ),
]


@pytest.mark.parametrize(("schema", "said"), SAID_ANEW)
def test_what_older_drafts_say_is_said_in_the_words_of_the_newest(schema, said):
    before = json.dumps(schema)
    found = checked(schema, "s")
    assert json.dumps(schema) == before, "the caller's own schema stays as it is"
    if said is None:
        assert found["items"] == {"$ref": "#/$defs/Page%3Cgr%C3%B6%C3%9Fe%20~0%3E"}
    else:
        assert found == said
    assert checked(found, "s") == found


REFUSED = [
    ({"$schema": D4, "minimum": 1, "exclusiveMinimum": 3}, r"at \$.exclusiveMinimum: 3 is not of type 'boolean'"),
    ({"$schema": D4, "exclusiveMinimum": True}, "'minimum' is a dependency of 'exclusiveMinimum'"),
    ({"$schema": D4, "properties": {"a": True}}, r"at \$.properties.a: True is not of type 'object'"),
    ({"$schema": D4, "required": []}, r"at \$.required: \[\] should be non-empty"),
    ({"$schema": D4, "enum": [1, 1]}, "non-unique"),
    ({"$schema": D7, "minimum": 1, "exclusiveMinimum": True}, r"at \$.exclusiveMinimum: True is not of type 'number'"),
    ({"$schema": D7, "items": [{"type": "strin"}]}, r"at \$.items\[0\].type: 'strin'"),
    ({"$schema": D7, "prefixItems": 3}, r"at \$.prefixItems: 3 is not of type 'array'"),
    ({"$schema": D7, "definitions": {"a": {"dependencies": {"b": {"type": 3}}}}}, r"at \$.definitions.a.dependencies.b.type: 3"),
    ({"$schema": D4, "$ref": 3}, "3 is not of type 'string'"),
    ({"$schema": D20, "items": [TEXT]}, r"at \$.items: \[.*\] is not of type 'object', 'boolean'"),
    ({"$schema": 7}, "7 is not of type 'string'"),
    ({"properties": {"a": {"$id": "http://[::1", "$ref": "#"}}}, r"at \$.properties.a.\$id: 'http://\[::1', which is no address"),
    ({"exclusiveMinimum": True}, "True is not of type 'number'"),
    ({"items": [TEXT], "prefixItems": [TEXT]}, r"at \$.items: a list, beside prefixItems"),
    ({"items": [TEXT], "additionalItems": 3}, "3 is not of type 'object', 'boolean'"),
    ({"properties": {"a": {"$schema": "http://json-schema.org/draft-03/schema#"}}}, r"\$.properties.a.\$schema: draft-03, which is older"),
]


@pytest.mark.parametrize(("schema", "says"), REFUSED)
def test_a_schema_that_its_draft_does_not_allow_is_refused(schema, says):
    with pytest.raises(ValueError, match=f"^s must be a valid JSON schema; got .*{says}.*; correct it$"):
        checked(schema, "s")


def deep(depth, key):
    schema: dict = {}
    for _ in range(depth):
        schema = {"properties": {"x": schema}} if key is None else {key: [schema]}
    return schema


TOO_LARGE = [
    (deep(200, None), "nested at most 120 deep"),
    (deep(100_000, "allOf"), "nested at most 120 deep"),
    ({"default": 10**400}, "a number out of range"),
    ({"default": float("inf")}, "nothing but JSON"),
    ({"default": {1, 2}}, "nothing but JSON"),
    ({"$defs": {str(i): {} for i in range(20_001)}}, "at most 20,000 schemas"),
    ({"description": "x" * 1_000_001}, "at most 1,000,000 characters"),
]


@pytest.mark.parametrize(("schema", "says"), TOO_LARGE, ids=range(len(TOO_LARGE)))
def test_what_is_too_large_or_no_json_is_refused_with_a_sentence(schema, says):
    with pytest.raises(ValueError, match=f"^s must (?=.*; got .*; ).*{says}"):
        checked(schema, "s")


def test_a_fault_beside_a_deep_schema_is_found_without_recursion():
    schema = {"properties": {"a": deep(30, None), "b": 3}, "items": deep(50, "allOf"), "type": "x"}
    for _ in range(8):
        schema = {"items": schema}
    with pytest.raises(ValueError, match="must be a valid JSON schema; got at"):
        checked(schema, "s")


def test_patterns_are_not_judged_here():
    for pattern in (r"^\p{L}+$", "(", "(?<x>a)", r"\cA"):
        schema = {"type": "string", "pattern": pattern, "format": "regex", "patternProperties": {pattern: {}}}
        assert checked(schema, "s") == schema


# Random schemas of each draft

NAMES = st.sampled_from(["a", "b", "items", "$ref"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, -1.5]) | st.sampled_from(["", "a", "bb"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
POINTERS = ["#", "#/definitions/d", "#/definitions/e", "#/properties/a", "#/items/0", "#/definitions/e/items/0", "#/definitions/d/not"]


def keywords(draft, inner):
    """Pairs of what a schema of a draft may say; some go together, as additionalItems with items."""
    schemas = st.lists(inner, min_size=1, max_size=2)
    bound = st.integers(-2, 2)
    said = [
        st.tuples(st.just("type"), st.sampled_from(["object", "array", "string", "number", "null", ["array", "object"]])),
        st.tuples(st.just("enum"), st.lists(VALUES, min_size=1, max_size=3, unique_by=lambda v: json.dumps(v, sort_keys=True))),
        st.tuples(st.just("items"), schemas | inner),
        st.tuples(st.just("additionalItems"), inner if draft != D4 else inner | st.booleans()),
        st.tuples(st.just("properties"), st.dictionaries(NAMES, inner, min_size=1, max_size=2)),
        st.tuples(st.just("additionalProperties"), st.booleans()),
        st.tuples(st.just("required"), st.lists(NAMES, min_size=1, max_size=2, unique=True)),
        st.tuples(
            st.just("dependencies"), st.dictionaries(NAMES, inner | st.lists(NAMES, min_size=1, max_size=2, unique=True), max_size=2)
        ),
        st.tuples(st.sampled_from(["allOf", "anyOf", "oneOf"]), schemas),
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["minLength", "maxItems", "minProperties"]), st.integers(0, 2)),
        st.tuples(st.just("$ref"), st.sampled_from(POINTERS)),
        st.tuples(st.just("id" if draft == D4 else "$id"), st.sampled_from(["#n", "#m"])),
    ]
    if draft == D4:
        said += [st.tuples(st.sampled_from(["minimum", "maximum"]), st.tuples(bound, st.booleans()))] * 2
    else:
        said += [st.tuples(st.sampled_from(["minimum", "exclusiveMaximum"]), bound), st.tuples(st.just("const"), VALUES)]
        said += [st.tuples(st.sampled_from(["contains", "propertyNames"]), inner)]
    return st.lists(st.one_of(said), max_size=3)


def of_draft(draft):
    def made(pairs):
        schema = dict(pairs)
        for key in ("minimum", "maximum"):
            if isinstance(bound := schema.get(key), tuple):
                schema[key], schema[f"exclusive{key.capitalize()}"] = bound
        return schema

    def again(inner):
        return keywords(draft, inner).map(made)

    leaf = st.sampled_from([{}, {"type": "string"}, {"type": "number"}, {"enum": ["a", 1]}])
    leaf = leaf if draft == D4 else leaf | st.booleans()
    schemas = st.recursive(leaf, again, max_leaves=8)
    return st.builds(
        lambda root, d, e: {"$schema": draft, **(root if isinstance(root, dict) else {}), "definitions": {"d": d, "e": e}},
        again(schemas),
        schemas,
        st.builds(lambda parts: {"items": parts}, st.lists(schemas, min_size=1, max_size=2)) | schemas,
    )


def accepts(validator, schema, value):
    """Whether a validator takes the value; None if references lead back without a step, or nowhere."""
    try:
        return validator(schema).is_valid(value)
    except (RecursionError, Unresolvable, TypeError):  # the last is referencing's, of pointers through a bool
        return None


@pytest.mark.quick("draft-07, few")
@pytest.mark.parametrize(
    ("draft", "examples"),
    [(D7, 50), (D7, 200), (D6, 150), (D4, 200)],
    ids=["draft-07, few", "draft-07", "draft-06", "draft-04"],
)
def test_the_newest_form_accepts_what_the_schema_accepts(draft, examples):
    @settings(deadline=None, max_examples=examples)
    @given(of_draft(draft), st.lists(VALUES, min_size=8, max_size=8))
    def check(schema, values):
        VALIDATORS[draft].check_schema(schema)
        newest = checked(schema, "s")
        VALIDATORS[D20].check_schema(newest)
        for value in values:
            old = accepts(VALIDATORS[draft], schema, value)
            assert old is None or old == accepts(VALIDATORS[D20], newest, value), (schema, newest, value)

    check()
