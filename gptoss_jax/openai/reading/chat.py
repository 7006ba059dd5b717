"""Bodies of OpenAI's /v1/chat/completions."""

from collections.abc import Mapping

from gptoss_jax.openai.asked import Asked
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.reading import conversations, forms, tools
from gptoss_jax.openai.reading.fields import ANY, CHOICE, LIST, NOTHING, TRUTH, Field, Kind, Table, Taken, of_words, only
from gptoss_jax.openai.reading.messages import messages
from gptoss_jax.openai.reading.sampling import (
    GIVEN,
    OTHERS,
    PRIORITY,
    SAMPLING,
    STREAMING,
    WITHOUT_EFFECT,
    N,
    check_given,
    option,
    sampling,
    scheduling,
)
from gptoss_jax.turns.task import Task

TABLE = Table(
    Field("messages", Kind("a list", LIST.fits, 'pass [{"role": "user", "content": "..."}]'), "task.messages"),
    *(option("max_tokens", name) for name in ("max_completion_tokens", "max_tokens")),
    *SAMPLING,
    Field("logprobs", Kind("true or false", TRUTH.fits, "their number is top_logprobs"), about="of the answer's tokens"),
    option("logprobs", "top_logprobs"),
    GIVEN,
    N,
    Field("tools", Kind("a list of function definitions", LIST.fits), "task.tools"),
    Field("tool_choice", CHOICE, "task.tool_choice"),
    Field("parallel_tool_calls", TRUTH, "task.parallel_tool_calls"),
    forms.RESPONSE_FORMAT,
    forms.STRUCTURED,
    conversations.REASONING_EFFORT,
    conversations.TEMPLATE,
    conversations.CONTINUE,
    Field("add_generation_prompt", TRUTH, about="the opposite of continue_final_message"),
    PRIORITY,
    *STREAMING,
    *WITHOUT_EFFECT,
    Field("store", TRUTH, about="completions are not kept", files=ANY),
    Field("verbosity", only("medium"), hint=of_words("low", "high")),
    Field("modalities", only(["text"])),
    Field("echo", only(False)),
    Field("include_reasoning", only(True)),
    *(Field(name, NOTHING) for name in ("audio", "prediction", "web_search_options")),
    Field("functions", only(hint="pass tools"), about="pass `tools`"),
    Field("function_call", only(hint="pass tool_choice"), about="pass `tool_choice`"),
    *(Field(name, NOTHING) for name in ("documents", "chat_template")),
    *OTHERS,
)


def read(body: Mapping, fields: Mapping, taken: Taken, name: str) -> Asked:
    """Raises Refused where no Task can be made of the fields of a body."""
    if "messages" not in fields:
        raise TABLE.fields["messages"].kind.refusal("messages", None, "messages")
    limits = [fields[key] for key in ("max_tokens", "max_completion_tokens") if key in fields]
    if len(limits) == 2 and limits[0] != limits[1]:
        raise Refused(
            "max_tokens and max_completion_tokens must be the same; they are two names of one limit; drop one.", field="max_tokens"
        )
    wanted = {"max_tokens": limits[0] if limits else None, "logprobs": _logprobs(fields)}
    said, places = messages(fields["messages"], taken)
    template = fields.get("chat_template_kwargs", {})
    task = Task(
        messages=said,
        sampling=sampling(fields, TABLE, taken.reading, name, **wanted),
        reasoning_effort=conversations.effort(fields, template, taken.reading.defaults.reasoning_effort),
        tools=tools.chat_tools(fields, taken),
        options=conversations.continues(fields) | {key: template[key] for key in ("model_identity",) if key in template},
        response_format=forms.response_format(fields, taken),
        **tools.choice(fields, tools.chat_choice(fields, taken)),
        **scheduling(fields, taken.reading),
    )
    return Asked("chat", (task,), body, tuple(taken.ignored), name=name, places=places | forms.places(fields))


def _logprobs(fields: Mapping) -> int | None:
    wanted, top = fields.get("logprobs", False), fields.get("top_logprobs")
    if top and not wanted:
        raise Refused("top_logprobs needs logprobs to be true; set it, or remove top_logprobs.", field="top_logprobs")
    check_given(fields, wanted)
    return (top or 0) if wanted else None
