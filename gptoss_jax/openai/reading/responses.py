"""Bodies of OpenAI's /v1/responses."""

from collections.abc import Mapping

from gptoss_jax.openai.asked import Asked, Earlier
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.reading import conversations, forms, tools
from gptoss_jax.openai.reading.fields import (
    ANY,
    CHOICE,
    LIST,
    NOTHING,
    OBJECT,
    TEXT,
    TEXT_OR_LIST,
    TRUTH,
    UNSUPPORTED,
    Field,
    Kind,
    Table,
    Taken,
    of_words,
    only,
    whole_number,
)
from gptoss_jax.openai.reading.items import Conversation
from gptoss_jax.openai.reading.sampling import OTHERS, PRIORITY, SAMPLING, STREAMING, WITHOUT_EFFECT, option, sampling, scheduling
from gptoss_jax.quoting import quoted
from gptoss_jax.turns.task import Task

_LOGPROBS = "message.output_text.logprobs"
_SUMMARIES = of_words("auto", "concise", "detailed")
_INPUT = Kind("a string or a list of items", TEXT_OR_LIST.fits)

TABLE = Table(
    Field("input", _INPUT, "task.messages"),
    Field("instructions", TEXT, "options.instructions"),
    option("max_tokens", "max_output_tokens"),
    *SAMPLING,
    option("logprobs", "top_logprobs"),
    Field("include", LIST, about=f"{_LOGPROBS}; anything else is a wish that nothing comes of"),
    Field(
        "reasoning",
        OBJECT,
        inner=Table(
            Field("effort", conversations.EFFORT, "task.reasoning_effort"),
            *(Field(name, NOTHING, about="there is none", hint=_SUMMARIES) for name in ("summary", "generate_summary")),
        ),
    ),
    Field(
        "text",
        OBJECT,
        inner=Table(Field("format", OBJECT, "task.response_format"), Field("verbosity", only("medium"), hint=of_words("low", "high"))),
    ),
    Field("tools", Kind("a list of function definitions", LIST.fits), "task.tools"),
    Field("tool_choice", CHOICE, "task.tool_choice"),
    Field("parallel_tool_calls", TRUTH, "task.parallel_tool_calls"),
    Field("max_tool_calls", whole_number(1, 2**31 - 1), about="there are no tools that it limits"),
    conversations.CONTINUE,
    PRIORITY,
    Field("previous_response_id", TEXT, about="goes on from a response that is kept", files=NOTHING),
    Field("store", TRUTH, about="whether the response is kept; true if left out", files=ANY),
    *STREAMING,
    *WITHOUT_EFFECT,
    Field("client_metadata", OBJECT, about="nothing need be done about it"),
    Field("truncation", only("disabled"), hint=of_words("auto")),
    Field("background", only(False)),
    *(Field(name, NOTHING) for name in ("conversation", "prompt", "context_management")),
    *OTHERS,
)
_NAMES = {"response_format.json_schema": "text.format", "tool_choice.allowed_tools": "tool_choice"}


def read(body: Mapping, fields: Mapping, taken: Taken, name: str, earlier: Earlier | None) -> Asked:
    """Raises Refused where no Task can be made of the fields of a body."""
    if "input" not in fields:
        raise _INPUT.refusal("input", None, "input")
    conversation = Conversation(taken, earlier)
    if "previous_response_id" in fields:
        conversation.go_on_from(fields["previous_response_id"])
    given = fields["input"]
    conversation.add_all([{"type": "message", "role": "user", "content": given}] if isinstance(given, str) else given)
    shown, places = tools.responses_tools(fields, taken)
    choice = tools.responses_choice(fields, taken)
    wanted = {"max_tokens": fields.get("max_output_tokens"), "logprobs": _logprobs(fields, taken)}
    said = {} if "instructions" not in fields else {"instructions": fields["instructions"]}
    effort = fields.get("reasoning", {}).get("effort")
    task = Task(
        messages=given if isinstance(given, str) and len(conversation.messages) == 1 else conversation.messages,
        sampling=sampling(fields, TABLE, taken.reading, name, **wanted),
        reasoning_effort=conversations.EFFORTS[effort] if effort else taken.reading.defaults.reasoning_effort,
        tools=shown,
        options=said | conversations.continues(fields),
        response_format=forms.text_format(fields.get("text", {}), taken),
        **tools.choice(fields, choice),
        **scheduling(fields, taken.reading),
    )
    places = _NAMES | conversation.places | places
    return Asked("responses", (task,), body, tuple(taken.ignored), name=name, places=places, items=tuple(conversation.items))


def _logprobs(fields: Mapping, taken: Taken) -> int | None:
    include, top = fields.get("include", []), fields.get("top_logprobs")
    for i, name in enumerate(include):
        if name == _LOGPROBS:
            continue
        if taken.reading.strict or not isinstance(name, str):
            got = quoted(include, json=True)
            raise Refused(f"include must be a list with nothing but {_LOGPROBS}; got {got}.", UNSUPPORTED, "include")
        taken.ignore(f"include[{i}]")
    if top and _LOGPROBS not in include:
        raise Refused(f'top_logprobs needs "include": ["{_LOGPROBS}"]; add it, or remove top_logprobs.', field="top_logprobs")
    return (top or 0) if _LOGPROBS in include else None
