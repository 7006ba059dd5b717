"""How large a form may be: what is too large is refused at the door, at once; what is large but ordinary is taken and can be followed."""

import json
import resource
import time

from forms import NAMES, constraint, object_of, of, walk
import numpy as np
import pytest


def doubled(depth, key):
    """References that name 2**depth leaves."""
    defs = {f"d{i}": {key: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(depth)}
    return {"$ref": "#/$defs/d0", "$defs": defs | {f"d{depth}": {"type": "integer"}}}


def chain(length, link):
    """A schema in a schema in a schema, by references."""
    defs = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": defs | {f"d{length}": {"type": "null"}}}


def nested(depth, link):
    schema = {"type": "null"}
    for _ in range(depth):
        schema = link(schema)
    return schema


def shared(depth):
    """A value that Python holds in little room, and JSON in 2**depth."""
    value = "x"
    for _ in range(depth):
        value = [value, value]
    return value


def combined(count):
    """Two objects to choose from, so many times: 2**count objects."""
    return {
        "allOf": [
            {"anyOf": [object_of([f"{end}{i}"], {"type": "integer"}, additionalProperties=True) for end in "ab"]} for i in range(count)
        ]
    }


BOMBS = {
    "6,666 words that may be left out": lambda: {"type": "regex", "regex": r"\w*" * 6666},
    "a pattern of many that may be left out": lambda: of({"type": "string", "pattern": "^" + r"a?" * 15_000 + "$"}),
    "terms that may be left out": lambda: {"type": "lark", "lark": "start: A*\nA: " + " ".join([r"/\w*/"] * 2500)},
    "1,000 optional properties": lambda: of(object_of(NAMES[:1000], {"type": "string"})),
    "5,000 optional properties": lambda: of(object_of(NAMES, {"type": "string"})),
    "100,000 properties": lambda: of(object_of([f"p{i}" for i in range(100_000)], {"type": "string"})),
    "50,000 required names": lambda: of({"type": "object", "required": [f"p{i}" for i in range(50_000)]}),
    "2**18 combinations": lambda: of(combined(18)),
    "2**10 combinations": lambda: of(combined(10)),
    "3**4900 combinations": lambda: of({"allOf": [{"anyOf": [{"minLength": i}, {"type": "null"}, {"const": i}]} for i in range(4900)]}),
    "2**18 combinations within": lambda: of({"allOf": [{"properties": {"x": part}} for part in combined(18)["allOf"]]}),
    "2**18 enums": lambda: of({"allOf": [{"anyOf": [{"enum": ["a", "b"]}, {"enum": ["a", "c"]}]}] * 18}),
    "copies": lambda: of({"properties": {name: {} for name in NAMES[:2000]}, "anyOf": [{"type": "string"}] * 10_000}),
    "60 patterns at once": lambda: of({"allOf": [{"type": "string", "pattern": f"[a-c]{{{i + 5}}}.{{{i}}}x"} for i in range(60)]}),
    "multiples at once": lambda: of({"allOf": [{"type": "integer", "multipleOf": prime} for prime in (10007, 10009, 10037)]}),
    "a large multiple": lambda: of({"type": "integer", "multipleOf": 99_991}),
    "a long chain of references": lambda: of(chain(20_000, lambda inner: inner)),
    "a long chain of arrays": lambda: of(chain(5000, lambda inner: {"type": "array", "items": inner})),
    "a long chain of choices": lambda: of(chain(800, lambda inner: {"anyOf": [{"type": "integer"}, {"anyOf": [inner]}]})),
    "10,000 arrays in each other": lambda: of(nested(10_000, lambda inner: {"type": "array", "items": inner})),
    "200 allOf in each other": lambda: of(nested(200, lambda inner: {"allOf": [inner]})),
    "a shared value": lambda: of({"const": shared(40)}),
    "a value that holds itself": lambda: of({"const": (lambda value: value.append(value) or value)([])}),
    "an enum of 100,000": lambda: of({"enum": [f"name {i}" for i in range(100_000)]}),
    "a const of 300,000 numbers": lambda: of({"const": [list(range(1000)) for _ in range(300)]}),
    "patternProperties": lambda: of({"type": "object", "patternProperties": {f"^p{i}_": {} for i in range(300)}}),
    "a long description": lambda: of({"type": "integer", "description": "x" * 20_000_000}),
    "300,000 definitions": lambda: of({"type": "integer", "$defs": {f"d{i}": {"type": "integer"} for i in range(300_000)}}),
    "a name of 5 MB": lambda: of(object_of(["k" * 5_000_000], {})),
    "patterns without case": lambda: of({"prefixItems": [{"type": "string", "pattern": rf"(?i)[a-\x{{ffff}}]{i}"} for i in range(2000)]}),
    "references into each other": lambda: of(
        {
            "anyOf": [{"$ref": "#/properties/a" + "/properties/a" * i} for i in range(50)] * 40,
            **nested(50, lambda inner: object_of("a", inner)),
        }
    ),
    "(a{1000}){1000}": lambda: {"type": "regex", "regex": "(a{1000}){1000}"},
    "a{10**9}": lambda: {"type": "regex", "regex": "a{1000000000}"},
    "repetitions in each other": lambda: {"type": "regex", "regex": "((((((x?){50}){50}){50}){50}){50}){50}"},
    "a long regex": lambda: {"type": "regex", "regex": "a?" * 1_000_000},
    "a deep regex": lambda: {"type": "regex", "regex": "(" * 9000 + "a" + ")" * 9000},
    "a regex without case": lambda: {"type": "regex", "regex": "(?i)" + r"[a-\x{ffff}]" * 1500},
    "100,000 choices": lambda: {"type": "choice", "choices": [f"name {i}" for i in range(100_000)]},
    "choices of 10 MB": lambda: {"type": "choice", "choices": ["ab" * 5_000_000]},
    "deep lark": lambda: {"type": "lark", "lark": "start: " + "(" * 5000 + '"a"' + ")" * 5000},
    "a chain of rules": lambda: {
        "type": "lark",
        "lark": "start: a0\n" + "\n".join(f'a{i}: "x" a{i + 1}' for i in range(1500)) + '\na1500: "x"',
    },
    "rules in brackets": lambda: {
        "type": "lark",
        "lark": "start: a0\n" + "\n".join(f'a{i}: {"(" * 25}"x" a{i + 1}{")" * 25}' for i in range(190)) + '\na190: "x"',
    },
    "doubled terminals": lambda: {
        "type": "lark",
        "lark": "start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(30)) + '\nA30: "x"',
    },
    "sets at once": lambda: {"type": "lark", "lark": "start: A\nA: " + " & ".join(f"/.*{i}.{{9}}/" for i in range(60))},
    "a schema in lark": lambda: {"type": "lark", "lark": f"start: a\na: %json {json.dumps(combined(10))}"},
    "100 MB of lark": lambda: {"type": "lark", "lark": "start: " + '"a" ' * 25_000_000},
}
QUICK = ("1,000 optional properties", "2**18 combinations", "a shared value", "a{10**9}", "100,000 choices", "a chain of rules")


@pytest.mark.quick(*QUICK)
@pytest.mark.parametrize("name", BOMBS)
def test_what_is_too_large_is_refused_at_once(small, name):
    """In a second of the processor's and 200 MB, of which the tests allow three and 300."""
    constraint(small, of({"type": "object", "patternProperties": {"a": {}}}))  # so that what is imported is not counted
    response_format = BOMBS[name]()
    memory, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(ValueError, match="^response_format.*; got ") as refused:
        constraint(small, response_format)
    assert time.thread_time() - began < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300_000  # KB
    assert len(str(refused.value)) < 500


STRING = {"type": ["string", "null"]}
ORDINARY = {
    "5,000 required properties": lambda: of(object_of(NAMES, STRING, required=NAMES)),
    "OpenAI's 5,000 properties": lambda: of(
        object_of([f"g{i}" for i in range(50)], object_of(NAMES[:99], STRING, required=NAMES[:99]), required=[f"g{i}" for i in range(50)])
    ),
    "300 optional properties": lambda: of(object_of(NAMES[:300], {"type": "string"})),
    "an enum of 1,000 in 120,000 characters": lambda: of({"type": "string", "enum": [f"{i:0120}" for i in range(1000)]}),
    "10 levels": lambda: of(nested(10, lambda inner: object_of(["a"], inner, required=["a"]))),
    "2**18 leaves of one kind": lambda: of(doubled(18, "anyOf")),
    "2**18 times the same": lambda: of(doubled(18, "allOf")),
    "a base and more": lambda: of(
        {
            "$defs": {"base": object_of(["kind"], {"enum": [f"kind {i}" for i in range(300)]}, additionalProperties=True)},
            "allOf": [{"$ref": "#/$defs/base"}, object_of([f"more{i}" for i in range(50)], STRING, additionalProperties=True)],
        }
    ),
    "a pattern in any script": lambda: of({"type": "string", "pattern": r"^\p{L}{1,40}$"}),
    "100 references": lambda: of(chain(100, lambda inner: {"anyOf": [{"type": "integer"}, inner]})),
    "at least 10**9 characters": lambda: of({"type": "string", "minLength": 10**9}),
    "at least 10**9 items": lambda: of({"type": "array", "minItems": 10**9}),
    "10,000 letters": lambda: {"type": "regex", "regex": "[a-z]{10000}"},
    "10,000 choices": lambda: {"type": "choice", "choices": [f"choice number {i * 7919 % 1000003}" for i in range(10_000)]},
    "a long choice": lambda: {"type": "choice", "choices": ["ab" * 16_000]},
    "a schema in lark": lambda: {"type": "lark", "lark": 'start: "<" j ">"\nj: %json {"type": "object", "properties": {"<": {}}}'},
}


@pytest.mark.quick("300 optional properties", "2**18 leaves of one kind", "10,000 choices", "a schema in lark")
@pytest.mark.parametrize("name", ORDINARY)
def test_what_is_large_but_ordinary_is_accepted_and_can_be_followed(small, name):
    response_format = ORDINARY[name]()
    for seed in range(3):
        rules = constraint(small, response_format)
        walk(rules, small, np.random.default_rng(seed), 40)
        assert not rules.problem
