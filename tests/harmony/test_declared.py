"""Declarations of random schemas: openai_harmony's bytes where it says all, and everything that a schema says where it does not."""

import json
import random

from brackets import balanced
from hypothesis import given, settings
from hypothesis import strategies as st
import openai_harmony as oh
import pytest

from gptoss_jax.harmony.declarations import declaration
from gptoss_jax.harmony.render import render
from gptoss_jax.tokenizer import harmony_encoding, o200k

LINES = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=LINES), max_size=12)
PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=LINES + '"\\'), max_size=6)
NAMES = st.sampled_from(["a", "b", "städte", "$ref", "_x", "null", "type", "Z9", "properties"])


def by_openai_harmony(name, description, parameters):
    """The lines of one function as openai_harmony writes them."""
    tool = oh.ToolDescription(name=name, description=description, parameters=parameters)
    message = oh.Message.from_role_and_content(oh.Role.DEVELOPER, oh.DeveloperContent().with_function_tools([tool]))
    text = harmony_encoding().decode(harmony_encoding().render_conversation(oh.Conversation.from_messages([message])))
    return text.partition("namespace functions {\n\n")[2].rpartition("\n\n} // namespace functions")[0]


# What openai_harmony says well

PLAIN_VALUES = st.one_of(st.none(), st.booleans(), st.integers(-9, 10**12), st.floats(-1000, 1000).map(lambda x: round(x, 3)), PLAIN)
JSON = st.recursive(PLAIN_VALUES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(PLAIN, inner, max_size=2), max_leaves=4)


def commented(part):
    """Whether openai_harmony's words end in a comment, in which what follows them would be lost."""
    last = part.get("oneOf", [{}])[-1]
    return bool({"default", "description"} & last.keys()) or ("oneOf" in last and commented(last))


@st.composite
def well_said(draw, deep=3):
    """A schema without annotations, of which openai_harmony says all."""
    kinds = ["string", "number", "integer", "boolean", "enum", "types", "bare"] + ["array", "object", "oneOf"] * (deep > 0)
    kind = draw(st.sampled_from(kinds))
    if kind == "enum":
        return {"type": "string", "enum": draw(st.lists(PLAIN, min_size=1, max_size=3, unique=True))}
    if kind == "types":
        return {
            "type": draw(st.lists(st.sampled_from(["string", "integer", "boolean", "null", "array", "object"]), min_size=1, unique=True))
        }
    if kind == "bare":
        return {"type": draw(st.sampled_from(["array", "object"]))}
    if kind == "array":
        return {"type": "array", "items": draw(well_said(deep - 1).filter(lambda part: not commented(part)))}
    if kind == "object":
        return draw(objects(deep - 1))
    if kind == "oneOf":
        return {"oneOf": [part | draw(about(False)) for part in draw(st.lists(well_said(deep - 1), min_size=1, max_size=3))]}
    return {"type": kind}


@st.composite
def about(draw, whole=True):
    """Annotations that openai_harmony shows of a property, or of a variant."""
    found = {"title": LINE, "examples": st.lists(PLAIN, max_size=2)} if whole else {}
    return {key: draw(value) for key, value in {**found, "description": LINE, "default": JSON}.items() if draw(st.booleans())}


@st.composite
def objects(draw, deep=3):
    properties = draw(st.dictionaries(NAMES, st.tuples(well_said(deep), about(), st.booleans()), max_size=3))
    parts = {}
    for name, (part, annotations, nullable) in properties.items():
        part = part | annotations
        if "oneOf" in part and "description" in part:
            for variant in part["oneOf"]:
                if variant is part["oneOf"][0] or variant.get("description") == part["description"]:
                    variant.pop("description", None)
        # of a string "null" openai_harmony thinks that it says null already
        nullable = nullable and part.get("type") in ("string", "number", "boolean") and "null" not in part.get("enum", ())
        parts[name] = part | ({"nullable": True} if nullable else {})
    required = draw(st.lists(st.sampled_from(sorted(parts)), unique=True)) if parts else []
    return (
        {"type": "object", "properties": parts}
        | ({"required": required} if required else {})
        | draw(st.sampled_from([{}, {"description": "An object."}]))
    )


@settings(deadline=None, max_examples=50)
@given(LINE, objects())
def test_what_openai_harmony_says_well_stays_as_it_is(description, parameters):
    assert declaration("f", description, parameters, "parameters") == by_openai_harmony("f", description, parameters)


# What a schema says, whatever it is made of


class Random:
    """Random schemas of every kind that a declaration knows, each name, value and description in them another."""

    def __init__(self, seed):
        self.draw, self.number = random.Random(seed), 0

    def word(self, prefix):
        self.number += 1
        return f"{prefix}{self.number}" + self.draw.choice(["", "", "", " or so", "-x", "é", '"', "\\"])

    def arguments(self):
        self.defs = [f"Def{i}" for i in range(self.draw.randint(1, 4))]
        root = self.object(3) if self.draw.random() < 0.8 else {"anyOf": [self.object(2), self.object(2)]}
        named = {name: self.object(2) if self.draw.random() < 0.7 else self.schema(2) for name in self.defs}
        return root | {"$defs": named}

    def schema(self, deep):
        few = (self.scalar, self.scalar, self.values, self.const, self.reference)
        kinds = (*few, self.array, self.tuple, self.object, self.object, self.union, self.parts, self.several)
        part = self.draw.choice(kinds if deep > 0 else few)(deep - 1)
        if self.draw.random() < 0.3:
            part |= {"description": "\n".join(self.word("about") for _ in range(self.draw.randint(1, 2)))}
        if self.draw.random() < 0.1:
            part |= {"not": {"required": [self.word("never")]}}
        return part

    def scalar(self, _):
        kind = self.draw.choice(["string", "integer", "number", "boolean", "null"])
        rules = {"string": {"pattern": self.word("pattern"), "format": "date"}, "integer": {"minimum": self.number + 1000}}.get(kind, {})
        return {"type": kind} | (rules if self.draw.random() < 0.3 else {}) | ({"nullable": True} if self.draw.random() < 0.1 else {})

    def values(self, _):
        values = [self.draw.choice([self.word("value"), self.number, self.number / 8, True, None]) for _ in range(3)]
        words = [self.word("value") for _ in range(2)]
        return self.draw.choice([{"enum": values}, {"type": "string", "enum": words}, {"type": ["string", "null"], "enum": [*words, None]}])

    def const(self, _):
        return {"const": self.draw.choice([self.word("value"), self.number, {self.word("key"): [1, None]}])}

    def reference(self, _):
        return {"$ref": f"#/$defs/{self.draw.choice(self.defs)}"}

    def array(self, deep):
        return {"type": "array", "items": self.schema(deep)} | self.draw.choice([{}, {"minItems": 1}, {"uniqueItems": True}])

    def tuple(self, deep):
        first = [self.schema(deep) for _ in range(self.draw.randint(1, 2))]
        return {"type": "array", "prefixItems": first, "items": self.draw.choice([False, True, self.schema(deep)])}

    def object(self, deep):
        properties = {self.word("name"): self.schema(deep) for _ in range(self.draw.randint(0, 3))}
        required = [name for name in properties if self.draw.random() < 0.5] + [self.word("needed")] * (self.draw.random() < 0.1)
        part = {"properties": properties, "required": required} | ({"type": "object"} if self.draw.random() < 0.8 else {})
        rest = self.draw.choice(["", "", "closed", "map", "pattern", "if"])
        part |= {"additionalProperties": False} if rest == "closed" else {}
        part |= {"additionalProperties": self.schema(deep)} if rest == "map" else {}
        part |= {"patternProperties": {self.word("pattern"): self.schema(deep)}} if rest == "pattern" else {}
        return part | ({"if": {"required": [self.word("if")]}, "then": self.schema(deep)} if rest == "if" else {})

    def union(self, deep):
        variants = [self.schema(deep) for _ in range(self.draw.randint(1, 3))]
        return {self.draw.choice(["anyOf", "oneOf"]): variants} | (self.object(0) if self.draw.random() < 0.2 else {})

    def parts(self, deep):
        parts = [self.draw.choice([self.object, self.reference, self.union])(deep) for _ in range(self.draw.randint(1, 3))]
        return {"allOf": parts} | (self.object(deep) if self.draw.random() < 0.3 else {})

    def several(self, deep):
        return self.object(deep) | {"type": ["object", "null"]}


def sayings(root):
    """Names, values, types, rules and descriptions of a schema and of what it refers to, as JSON has them, without quotes."""
    todo, seen = [root], set()
    while todo:
        part = todo.pop()
        if not isinstance(part, dict) or id(part) in seen:
            continue
        seen.add(id(part))
        yield from part.get("description", "").splitlines()
        yield from part.get("required", [])
        yield from part.get("properties", {})
        yield from part.get("patternProperties", {})
        yield from [json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in part.get("enum", [])]
        yield from [json.dumps(part[key], ensure_ascii=False, separators=(",", ":")) for key in ("const", "minimum") if key in part]
        yield from [part[key] for key in ("pattern", "format") if key in part]
        types = [] if "enum" in part else [part["type"]] if isinstance(part.get("type"), str) else part.get("type", [])
        yield from ({"integer": "number", "object": "{", "array": "["}.get(kind, kind) for kind in types)
        if "$ref" in part:
            todo.append(root["$defs"][part["$ref"].removeprefix("#/$defs/")])
        for key in ("items", "additionalProperties", "not", "if", "then"):
            todo.append(part.get(key))
        for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            todo += part.get(key, [])
        for key in ("properties", "patternProperties"):
            todo += part.get(key, {}).values()


def missing(schema):
    """What a schema says and the prompt does not, between the braces of its namespace."""
    ids = render(o200k(), [{"role": "user", "content": "Hi"}], tools=[{"name": "f", "parameters": schema}])
    text = o200k().encoding.decode(ids).partition("namespace functions {")[2].partition("} // namespace functions<|end|>")[0]
    said = {word: json.dumps(word, ensure_ascii=False)[1:-1] for word in sayings(schema)}
    text = text.replace('"type":"integer"', '"type":"number"')  # in comments, where schemas stay JSON
    lost = [word for word, quoted in said.items() if word not in text and quoted not in text]
    return lost + ([] if balanced(text) else [f"not balanced: {text}"])


def test_a_prompt_says_all_that_a_schema_says():
    assert not [found for seed in range(100) if (found := missing(Random(seed).arguments()))]


@pytest.mark.thorough
def test_prompts_say_all_that_schemas_say():
    assert not [(seed, found) for seed in range(100, 2200) if (found := missing(Random(seed).arguments()))]
