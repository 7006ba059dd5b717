"""Plain lines: an `id` with a prompt or messages, and what `Sampling` and `Task` take by the same names. Knows no jax."""

from collections.abc import Mapping

from gptoss_jax.openai.asked import Reading
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.reading import conversations, forms, sampling, tools
from gptoss_jax.openai.reading.fields import ANY, CHOICE, LIST, TEXT, TEXT_OR_LIST, TRUTH, Field, Kind, Table, Taken
from gptoss_jax.turns.task import Task

_PROMPT = Kind(
    "a string or a list of token ids",
    lambda value: isinstance(value, str) or isinstance(value, list) and {*map(type, value)} <= {int},
    "write a line for each prompt",
)
_CONVERSATION = ("reasoning_effort", "tools", "tool_choice", "parallel_tool_calls", "instructions", "continue_final_message")
TABLE = Table(
    Field("id", ANY, about="tells it from all others: a string or a whole number"),
    Field("prompt", _PROMPT, "task.prompt"),
    Field("messages", Kind("a list", TEXT_OR_LIST.fits, 'write [{"role": "user", "content": "..."}]'), "task.messages"),
    Field("instructions", TEXT, "options.instructions"),
    sampling.option("max_tokens"),
    *sampling.SAMPLING,
    *(sampling.option(name) for name in ("logprobs", "logprob_token_ids", "processed_logprobs")),
    sampling.N,
    Field("tools", Kind("a list of function definitions", LIST.fits), "task.tools"),
    Field("tool_choice", CHOICE, "task.tool_choice"),
    Field("parallel_tool_calls", TRUTH, "task.parallel_tool_calls"),
    forms.RESPONSE_FORMAT,
    conversations.REASONING_EFFORT,
    conversations.CONTINUE,
    sampling.PRIORITY,
    sampling.TIME_LIMIT,
    Field("return_tokens", TRUTH, about="the result has the token ids too"),
)


def given(content: Mapping) -> dict:
    """The line without what is null. Raises Refused for fields and values that are not served."""
    return Taken(Reading()).fields(content, TABLE)


def task(body: Mapping, name: str, reading: Reading) -> Task:
    """What the fields of a line ask for. Raises Refused where they cannot be done."""
    if ("prompt" in body) == ("messages" in body):
        raise Refused('a request must have either a prompt or messages; give it one of them, {"id": "1", "prompt": "..."}.')
    taken = Taken(reading)
    shared = {
        "sampling": sampling.sampling(body, TABLE, reading, name, max_tokens=body.get("max_tokens"), logprobs=body.get("logprobs")),
        "response_format": forms.response_format(body, taken),
        **sampling.scheduling(body, reading),
    }
    if "prompt" in body:
        if extra := [name for name in _CONVERSATION if name in body]:
            raise Refused(f"{extra[0]} needs messages; a prompt is continued as it stands; remove it or give messages.", field=extra[0])
        return Task(prompt=body["prompt"], **shared)
    said = {} if "instructions" not in body else {"instructions": body["instructions"]}
    return Task(
        messages=body["messages"],
        reasoning_effort=conversations.effort(body, {}, reading.defaults.reasoning_effort),
        tools=tools.chat_tools(body, taken),
        options=said | conversations.continues(body),
        **tools.choice(body, tools.chat_choice(body, taken)),
        **shared,
    )
