"""What the calls of an LLM take by keyword, and what they say of a keyword that belongs elsewhere."""

import dataclasses
import inspect

from gptoss_jax import harmony
from gptoss_jax.keywords import own_words
from gptoss_jax.sampling.options import Sampling

_OWN = ("tokenizer", "messages", "reasoning_effort", "tools")  # of a chat, which has them itself
FURTHER = tuple(
    name
    for name, one in (inspect.signature(harmony.render).parameters | inspect.signature(harmony.to_conversation).parameters).items()
    if name not in _OWN and one.kind is not one.VAR_KEYWORD
)
"""Further keywords of a chat: those of its prompt."""

ELSEWHERE = {
    **dict.fromkeys(("messages", "reasoning_effort", "tools", "tool_choice", *FURTHER), "{name} is an argument of chat and stream"),
    **dict.fromkeys(("prompt", "prompts"), "a prompt is what generate takes"),
    **dict.fromkeys(("response_format", "priority", "time_limit"), "{name} is an argument of chat, stream and generate"),
    **dict.fromkeys(("slots", "context", "chunk", "cache_tokens", "prefix_reuse"), "{name} is an argument of LLM: make it with that"),
    "n": "n is an argument of generate, and for several answers to a conversation a field of Task",
    "stream": "call stream, or astream, which give a turn piece by piece",
    "model": "an LLM has one model: make it with that",
    "options": "the options of a Task are keywords of chat: pass them one by one",
    **{field.name: "it is an option of Sampling: pass sampling=Sampling({name}={value})" for field in dataclasses.fields(Sampling)},
}


def door(*further: str):
    """Has a call refuse keywords that it does not take, in its own words; `further` are those that it takes behind `**`."""
    return own_words(further=further, elsewhere=ELSEWHERE)
