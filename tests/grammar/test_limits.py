"""A grammar's limits: too large ones are refused at the door at once, and a limit met later ends the one text that met it."""

import contextlib
import json
import resource
import threading
import time
import types

import jsonschema
import numpy as np
import pytest
from small_vocabulary import small_vocabulary

from gptoss_jax.grammar import compiling, for_chat, for_text
from gptoss_jax.grammar.kept import Kept

PAD = 70


def end_of(tokenizer):
    return tokenizer.special["<|return|>"]


def constraint(tokenizer, response_format):
    return for_text(tokenizer, response_format, end_ids=[end_of(tokenizer)], vocab_size=tokenizer.vocab_size + PAD)


def of(schema):
    return {"type": "json_schema", "schema": schema}


def object_of(names, schema, **more):
    return {"type": "object", "properties": {name: schema for name in names}, "additionalProperties": False} | more


def allowed(rules, tokenizer):
    out = np.full(-(-(tokenizer.vocab_size + PAD) // 32), 0xFFFFFFFF, np.uint32)
    rules.mask(out)
    return np.flatnonzero(np.unpackbits(out.view(np.uint8), bitorder="little"))


def walk(rules, tokenizer, draw, steps):
    """The text drawn until its end, its problem or so many tokens, and whether it ended; checks the contract on the way."""
    ids = []
    for _ in range(steps):
        some = allowed(rules, tokenizer)
        token = int(draw.choice(some))
        if rules.problem:
            assert some.tolist() == [end_of(tokenizer)]
        if token == end_of(tokenizer):
            rules.advance(token)
            return ids, not rules.problem
        rules.advance(token)
        if rules.problem:
            before = rules.problem
            assert allowed(rules, tokenizer).tolist() == [end_of(tokenizer)]
            for anything in (token, 0, -1, 10**9, end_of(tokenizer)):
                rules.advance(anything)
            assert rules.problem == before and "\n" not in before and len(before) <= 200
            return ids, False
        ids.append(token)
    return ids, False


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


NAMES = [f"p{i}" for i in range(5000)]
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


# Grammars that are accepted, for their beginnings are well, and meet a limit further in.
LATER = {
    "states": {"type": "regex", "regex": "([a-c]*a[a-c]{9}x){90}"},
    "alternatives": of({"type": "array", "minItems": 20, "prefixItems": [{"type": "boolean"}] * 19, "items": object_of(NAMES[:1000], {})}),
}


@pytest.mark.parametrize("name", LATER)
def test_a_limit_met_later_is_the_problem_of_that_text_alone(small, monkeypatch, name):
    monkeypatch.setitem(compiling._LIMITS, "max_lexer_states", 90)  # instead of masks that take long
    monkeypatch.setattr(compiling, "_kept", Kept(9, 10**6))
    ended = 0
    others = [constraint(small, LATER[name]) for _ in range(2)]
    started = [int(allowed(other, small)[0]) for other in others]
    others[0].advance(started[0])
    for seed in range(3):
        rules = constraint(small, LATER[name])
        walk(rules, small, np.random.default_rng(seed), 300)
        ended += bool(rules.problem)
    assert ended == 3
    assert not others[0].problem and not others[1].problem
    assert len(allowed(others[0], small)) > 1 and not others[0].problem
    with pytest.raises(ValueError, match="mask allows"):
        others[1].advance(small.encode("~")[0])
    others[1].advance(started[1])
    assert len(allowed(others[1], small)) > 1 and not others[1].problem
    walk(after := constraint(small, LATER[name]), small, np.random.default_rng(9), 5)
    assert not after.problem


def test_a_limit_in_one_message_of_a_turn_is_the_turn_s(small):
    rules = for_chat(small, LATER["alternatives"], None, vocab_size=small.vocab_size + PAD)
    for token in small.encode_with_control("<|channel|>final<|message|>"):
        rules.advance(token)
    ids, ended = walk(rules, small, np.random.default_rng(0), 300)
    assert rules.problem and not ended and len(ids) > 10


class Panic(BaseException):
    """As pyo3's."""


@pytest.mark.parametrize("where", ["unsafe_compute_mask_ptr", "try_consume_tokens", "is_accepting"])
def test_a_panic_of_the_library_raises_nothing(small, monkeypatch, where):
    def panics(*_):
        raise Panic("called `Option::unwrap()` on a `None` value\n  at parser.rs")

    class Library:
        def __getattr__(self, name):
            return panics if name == where else getattr(real, name)

    rules = constraint(small, {"type": "regex", "regex": "[ab]{1,3}"})
    real = rules._body._matcher._library
    monkeypatch.setattr(rules._body._matcher, "_library", Library())
    monkeypatch.setattr(rules._body._matcher, "_grammar", types.SimpleNamespace(alone=lambda _: Library()))
    token = small.encode("a")[0]
    if where == "try_consume_tokens":
        assert token in allowed(rules, small)
        rules.advance(token)
    assert allowed(rules, small).tolist() == [end_of(small)]
    assert "unwrap" in rules.problem and "\n" not in rules.problem


def test_many_threads_compile_at_once():
    tokenizer, failures = small_vocabulary(), []

    def work(seed):
        try:
            for i in range(10):
                rules = constraint(
                    tokenizer, of(object_of([f"t{(seed + i) % 5}"], {"type": "integer", "maximum": 99}, required=[f"t{(seed + i) % 5}"]))
                )
                ids, ended = walk(rules, tokenizer, np.random.default_rng(seed), 300)
                assert not ended or set(json.loads(tokenizer.decode(ids))) == {f"t{(seed + i) % 5}"}
        except BaseException as error:  # of another thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_what_is_kept_is_bounded_by_number_and_by_text():
    kept = Kept(3, 100)
    made = []
    for name, size in [("a", 10), ("b", 10), ("a", 10), ("c", 10), ("d", 10), ("a", 10), ("b", 10), ("e", 95), ("f", 500), ("f", 500)]:
        kept.get(name, size, lambda name=name: made.append(name))
    assert made == ["a", "b", "c", "d", "b", "e", "f"]


def random_schema(draw, depth=0):
    """Any of what can be asked for, most of it small, some of it contradictory."""
    kind = draw.choice(["object", "array", "string", "number", "enum", "any", "all", "ref"] if depth < 4 else ["string", "number", "enum"])
    few = range(int(draw.integers(1, 4)))
    if kind == "object":
        names = [f"n{draw.integers(5)}" for _ in few]
        schema = {"type": "object", "properties": {name: random_schema(draw, depth + 1) for name in names}}
        return schema | {
            "required": sorted({name for name in names if draw.random() < 0.5}),
            "additionalProperties": bool(draw.random() < 0.3),
        }
    if kind == "array":
        low = int(draw.integers(3))
        return {"type": "array", "items": random_schema(draw, depth + 1), "minItems": low, "maxItems": low + int(draw.integers(4))}
    if kind == "string":
        return {"type": "string"} | draw.choice(
            [{}, {"maxLength": 5}, {"pattern": "^[a-c]{1,9}$"}, {"pattern": "(a|b)*c?"}, {"format": "date"}]
        )
    if kind == "number":
        return {"type": draw.choice(["integer", "number"]).item()} | draw.choice([{}, {"minimum": -3, "maximum": 1000}, {"multipleOf": 7}])
    if kind == "enum":
        return {"enum": [draw.choice(["a", "é\n", 'q"', "\\"]).item() for _ in few] + [1, None]}
    if kind == "ref":
        return {"$ref": f"#/$defs/d{draw.integers(2)}"}
    return {f"{kind}Of": [random_schema(draw, depth + 1) for _ in few]}


@pytest.mark.quick("0", "1")
@pytest.mark.parametrize("batch", range(20), ids=str)
def test_random_schemas_and_walks_raise_nothing_and_write_what_is_valid(small, batch):
    followed = ended = 0
    for seed in range(batch * 15, batch * 15 + 15):
        draw = np.random.default_rng(seed)
        schema = random_schema(draw) | {"$defs": {f"d{i}": random_schema(draw, 2) for i in range(2)}}
        try:
            rules = constraint(small, of(schema))
        except ValueError as refused:
            assert str(refused).startswith("response_format")
            continue
        for _ in range(3):
            rules = constraint(small, of(schema))
            ids, complete = walk(rules, small, draw, 300)
            followed, ended = followed + 1, ended + complete
            if complete:
                with contextlib.suppress(RecursionError):  # jsonschema's, at references that lead back without a step
                    jsonschema.validate(json.loads(small.decode_bytes(ids)), schema)
    assert followed > 5
