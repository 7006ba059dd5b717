"""What a constraint of a turn allows, token by token, and forms to ask for."""

from as_written import written
import numpy as np

from gptoss_jax.grammar import for_chat

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "s": {"type": "string", "maxLength": 5}},
    "required": ["n", "s"],
    "additionalProperties": False,
}
ANSWER = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
PARAMETERS = {"type": "object", "properties": {"city": {"enum": ["Bern", "Zürich"]}}, "required": ["city"], "additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": PARAMETERS}},
    {"type": "function", "name": "now"},
]


def made(tokenizer, response_format=ANSWER, tools=None):
    return for_chat(tokenizer, response_format, tools, vocab_size=tokenizer.vocab_size + 70)


def asked(rules, tokenizer):
    """Whether the next token is constrained, and the ids that may come."""
    out = np.full(-(-(tokenizer.vocab_size + 70) // 32), 0xFFFFFFFF, np.uint32)
    constrained = rules.mask(out)
    return constrained, np.flatnonzero(np.unpackbits(out.view(np.uint8), bitorder="little"))


def told(rules, tokenizer, text, *, honest=True):
    """Tells rules the tokens of text; returns the stretches of it that were constrained."""
    stretches, before = [], False
    for token in written(tokenizer, text):
        constrained, ids = asked(rules, tokenizer)
        assert not honest or token in ids, f"{tokenizer.decode([token])!r} may not come there in {text!r}"
        rules.advance(token)
        if constrained:
            stretches += [[]] if not before else []
            stretches[-1].append(token)
        before = constrained
    return [tokenizer.decode(ids) for ids in stretches]


GOOD, CALL = '{"n": 1, "s": "ü"}', '{"city": "Bern"}'
