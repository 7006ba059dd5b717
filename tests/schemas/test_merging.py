"""What the parts of a schema say together, and which of what references name holds itself."""

import random

import pytest

from gptoss_jax.schemas.merging import inlined, merged, same
from gptoss_jax.schemas.targets import Targets


def together(*parts, **defs):
    schema = {"allOf": list(parts), "$defs": defs}
    return merged(schema, Targets(schema, "schema"))


def named(**properties):
    return {"type": "object", "properties": properties}


def test_parts_are_one_set_of_keywords():
    out = together({"type": ["object", "null"]}, named(a={"type": "string"}) | {"required": ["a"]}, {"required": ["b", "a"]}, True)
    assert out.keywords == named(a={"type": "string"}) | {"required": ["a", "b"]}
    assert out.more == out.rules == [] and not out.never
    assert together({"type": "number"}, {"type": ["integer", "string"]}).keywords == {"type": "integer"}
    assert together(named(a={"minimum": 1}), named(a={"maximum": 2})).keywords["properties"] == {
        "a": {"allOf": [{"minimum": 1}, {"maximum": 2}]}
    }
    assert together({"items": {"minimum": 1}}, {"items": {"minimum": 1}}).keywords == {"items": {"minimum": 1}}
    assert together(False, {"type": "string"}).never


def test_annotations_add_up():
    out = together(
        {"title": "A", "description": "a", "examples": [1]}, {"title": "B", "description": "b", "examples": [True, 1], "default": None}
    )
    assert out.keywords == {"title": "A", "description": "a\n\nb", "examples": [1, True], "default": None}


def test_rules_stay_with_their_part():
    out = together({"minimum": 1}, {"if": {"minimum": 2}, "then": {"maximum": 9}, "minimum": 3}, {"minimum": 1})
    assert out.rules == [{"minimum": 1}, {"minimum": 3, "if": {"minimum": 2}, "then": {"maximum": 9}}]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"type": "string"}, {"type": "number"}),
        ({"enum": [1]}, {"enum": [True]}),
        ({"const": "a"}, {"enum": ["a", "b"]}),
        ({"type": "string"}, {"enum": ["a", 1]}),
        ({"anyOf": [{"type": "string"}]}, {"anyOf": [{"type": "number"}]}),
        ({"prefixItems": [True]}, {"items": {"type": "string"}}),
        ({"type": "number"}, {"properties": {"a": True}}),
        (named(a=True) | {"additionalProperties": False}, named(b=True)),
        ({"patternProperties": {"a": True}}, named(b=True)),
    ],
)
def test_what_one_set_cannot_say_stands_beside_it(one, other):
    for first, second in ((one, other), (other, one)):
        out = together(first, second)
        assert out.keywords == first and out.more == [second]


def test_references_are_looked_into_unless_they_name_what_holds_itself():
    node = named(next={"$ref": "#/$defs/node"})
    out = together({"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/node"}, leaf=named(a={"const": 1}), node=node)
    assert out.keywords == named(a={"const": 1}) and out.more == [{"$ref": "#/$defs/node"}]
    root = named(a={"$ref": "#/$defs/name", "description": "d"}) | {"$defs": {"name": {"$ref": "#/$defs/node"}, "node": node}}
    out = merged(root["properties"]["a"], Targets(root, "schema"))
    assert out.keywords == node | {"description": "d"} and not out.more


def test_schemas_in_place_of_references_end_where_they_hold_themselves():
    root = {"$defs": {"node": named(next={"$ref": "#/$defs/node"}, leaf={"$ref": "#/$defs/leaf"}), "leaf": {"const": {"$ref": "#"}}}}
    found = inlined("not", {"$ref": "#/$defs/node"}, Targets(root, "schema"))
    assert found == named(next={"$ref": "#/$defs/node"}, leaf={"const": {"$ref": "#"}})
    assert inlined("minimum", 1, Targets(root, "schema")) == 1
    assert not same(1, True) and same({"a": 1, "b": 2}, {"b": 2, "a": 1})


@pytest.mark.parametrize("seed", range(10))
def test_what_holds_itself_is_found_however_references_lie(seed):
    draw = random.Random(seed)
    names = [str(i) for i in range(draw.randint(1, 8))]
    refs = {name: [draw.choice(names) for _ in range(draw.choice([0, 1, 1, 2, 3]))] for name in names}
    root = {"$defs": {name: named(**{other: {"items": {"$ref": f"#/$defs/{other}"}} for other in others}) for name, others in refs.items()}}

    def reached(name):
        todo, seen = list(refs[name]), set()
        while todo:
            if (other := todo.pop()) not in seen:
                seen.add(other)
                todo += refs[other]
        return seen

    targets = Targets(root, "schema")
    for name in draw.sample(names, len(names)):
        assert targets.recursive(targets.of(f"#/$defs/{name}")) == (name in reached(name))
    assert len({targets.name(part) for part in root["$defs"].values()}) == len(names)
    for name in names:
        assert targets.times(root["$defs"][name]) == sum(name in others for others in refs.values())
