"""Forms of answers for tests of grammars, and a walk through one that checks what a constraint promises."""

import numpy as np

from gptoss_jax.grammar import for_text

NAMES = [f"p{i}" for i in range(5000)]
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
