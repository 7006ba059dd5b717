"""A limit of the grammar's library that is met later ends the one text that met it; whatever is walked, nothing is raised."""

import contextlib
import json
import threading
import types

from forms import NAMES, PAD, allowed, constraint, end_of, object_of, of, walk
import jsonschema
import numpy as np
import pytest
from small_vocabulary import small_vocabulary

from gptoss_jax.grammar import compiling, for_chat
from gptoss_jax.grammar.kept import Kept

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
