"""Whatever keywords stand together in a tool's parameters, they are shown in text whose brackets close, or refused in a sentence."""

import random

from brackets import balanced
import pytest

from gptoss_jax.harmony import read_functions

TYPES = ("string", "number", "integer", "boolean", "null", "array", "object")
ONE = (
    "additionalProperties",
    "items",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
    "unevaluatedProperties",
    "unevaluatedItems",
)
SEVERAL = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
NAMED = ("properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions")
TEXTS = ("title", "description", "pattern", "format")
REFERENCES = ("#", "#/$defs/A", "#/$defs/B", "#/properties/a", "#/items", "#here", "http://x/y", "#/$defs/%41")
OTHERS = {
    "type": lambda draw: draw.choice([draw.choice(TYPES), draw.sample(TYPES, draw.randint(1, 3))]),
    "enum": lambda draw: [value(draw) for _ in range(draw.randrange(4))],
    "examples": lambda draw: [value(draw) for _ in range(draw.randrange(4))],
    "const": lambda draw: value(draw),
    "default": lambda draw: value(draw),
    "required": lambda draw: draw.sample(["a", "b", "q"], draw.randrange(3)),
    "dependentRequired": lambda draw: {"a": ["b"]},
    "$ref": lambda draw: draw.choice(REFERENCES),
    "$dynamicRef": lambda draw: "#here",
    "$anchor": lambda draw: "here",
    "$id": lambda draw: "http://x/y",
    "$schema": lambda draw: f"http://json-schema.org/draft-0{draw.choice([4, 6, 7])}/schema#",
    "nullable": lambda draw: draw.random() < 0.5,
    "uniqueItems": lambda draw: draw.random() < 0.5,
    "deprecated": lambda draw: draw.random() < 0.5,
    "minimum": lambda draw: draw.randrange(3),
    "maxItems": lambda draw: draw.randrange(3),
}


def value(draw, deep=2):
    plain = [None, True, 1, 1.5, -0.0, "s", 'q"\n\u2028}', ""]
    lists = [[value(draw, deep - 1)], {"a)": value(draw, deep - 1)}] if deep else []
    return draw.choice([*plain, *lists])


def schema(draw, deep):
    if draw.random() < 0.1:
        return draw.random() < 0.5
    if deep <= 0:
        return draw.choice([{}, {"type": draw.choice(TYPES)}, {"$ref": draw.choice(REFERENCES[:3])}])
    out = {}
    for key in draw.sample([*ONE, *SEVERAL, *NAMED, *TEXTS, *OTHERS], draw.randrange(6)):
        if key in OTHERS:
            out[key] = OTHERS[key](draw)
        elif key in TEXTS:
            out[key] = draw.choice(["t", "l1\nl2 {", "", "d (["])
        elif key in NAMED:
            out[key] = {draw.choice(["a", "b", "A", "x y}"]): schema(draw, deep - 1) for _ in range(draw.randrange(3))}
        elif key in SEVERAL and (key not in ONE or draw.random() < 0.3):
            out[key] = [schema(draw, deep - 1) for _ in range(draw.randint(1, 3))]
        else:
            out[key] = schema(draw, deep - 1)
    return out


@pytest.mark.parametrize("seeds", [range(100), pytest.param(range(100, 2500), marks=pytest.mark.thorough)], ids=["some", "many"])
def test_any_schema_is_shown_or_refused(seeds):
    shown = 0
    for seed in seeds:
        draw = random.Random(seed)
        parameters = {"type": "object", "properties": {"a": schema(draw, 3)}, "$defs": {"A": schema(draw, 3), "B": schema(draw, 2)}}
        parameters |= {"allOf": [schema(draw, 2)]} if draw.random() < 0.2 else {}
        try:
            (function,) = read_functions([{"name": "f", "parameters": parameters}])
        except ValueError as error:
            assert str(error).startswith("tools[0]: parameters must ") and len(str(error)) < 500, seed
            continue
        shown += 1
        text = function.declaration
        assert balanced(text) and text.splitlines() == text.split("\n"), seed
    assert shown > len(seeds) // 2
