"""What the calls of an LLM take by keyword, and what they say of a keyword that belongs elsewhere."""

from collections.abc import Mapping
import dataclasses
import inspect

from gptoss_jax import harmony
from gptoss_jax.keywords import own_words
from gptoss_jax.sampling.options import Sampling

_OWN = ("tokenizer", "messages", "reasoning_effort", "tools")  # of a chat, which has them itself
_TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
_OF_ALL = ("response_format", "priority", "time_limit", "routed_experts_from", "adapter", "hook")
_OF_LLM = ("slots", "context", "chunk", "cache_tokens", "prefix_reuse", "routed_experts", "adapters", "adapter_rank", "adapter_targets")
FURTHER = tuple(
    name
    for name, one in (inspect.signature(harmony.render).parameters | inspect.signature(harmony.to_conversation).parameters).items()
    if name not in _OWN and one.kind is not one.VAR_KEYWORD
)
"""Further keywords of a chat: those of its prompt."""

_SAMPLING = {field.name: "it is an option of Sampling: pass sampling=Sampling({name}={value})" for field in dataclasses.fields(Sampling)}
ELSEWHERE = {
    **dict.fromkeys(("messages", "reasoning_effort", *_TOOLS, *FURTHER), "{name} is an argument of chat and stream"),
    **dict.fromkeys(("prompt", "prompts"), "a prompt is what generate takes"),
    **dict.fromkeys(_OF_ALL, "{name} is an argument of chat, stream and generate"),
    **dict.fromkeys(_OF_LLM, "{name} is an argument of LLM: make it with that"),
    **dict.fromkeys(("mesh", "dtype", "experts", "verify", "kernels"), "it is an argument of load: LLM(load(..., {name}={value}))"),
    "train_on": "train_on is an argument of render",
    "n": "n is an argument of generate, and for several answers to a conversation a field of Task",
    "stream": "call stream, or astream, which give a turn piece by piece",
    "model": "an LLM has one model: make it with that",
    "options": "the options of a Task are keywords of chat: pass them one by one",
    **_SAMPLING,
}


OF_TASK = ELSEWHERE | dict.fromkeys(FURTHER, 'it is an option of chat: pass options={"{name}": {value}}')
"""Where a Task has what it does not take."""

OF_RUN = (
    ELSEWHERE
    | {name: where.replace("pass sampling=Sampling", "pass Task(sampling=Sampling") + ")" for name, where in _SAMPLING.items()}
    | dict.fromkeys(FURTHER, 'it is an option of a Task: pass Task(options={"{name}": {value}})')
)


def door(*further: str, elsewhere: Mapping[str, str] = ELSEWHERE):
    """Has a call refuse keywords that it does not take, in its own words.

    Args:
      further: those that it takes behind `**`.
      elsewhere: of those that others take, where they belong.
    """
    return own_words(further=further, elsewhere=elsewhere)
