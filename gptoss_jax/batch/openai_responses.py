"""Bodies of OpenAI's /v1/responses to Tasks, and answers to the objects that it returns. Knows no jax."""

from collections.abc import Mapping

from gptoss_jax.batch import fields, replies
from gptoss_jax.batch.fields import Defaults, Refused
from gptoss_jax.quoting import quoted

_LOGPROBS = "message.output_text.logprobs"
_KNOWN = (
    *("input", "instructions", "max_output_tokens", "reasoning", "text", "tools", "tool_choice", "top_logprobs", "include"),
    *fields.SAMPLING,
    *("priority", "continue_final_message"),
)
_WITHOUT_EFFECT = (
    *("model", "user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
)
_NOT_SERVED = ("previous_response_id", "conversation", "prompt", "max_tool_calls", "stream_options", "context_management")
_FIXED = {
    "stream": (False,),
    "background": (False,),
    "parallel_tool_calls": (True,),
    "truncation": ("disabled",),
    **{name: () for name in _NOT_SERVED},
}

_ITEMS = {
    "message": ("role", "content", "phase"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": ("content",),
}
_NAMES = {
    **{"max_tokens": "max_output_tokens", "logprobs": "top_logprobs", "messages": "input", "reasoning_effort": "reasoning.effort"},
    **{"response_format.json_schema": "text.format", "response_format": "text.format"},
}
_ABOUT = ("type", "id", "status")  # of an item; nothing need be done about them
_NO_SUMMARY = {"summary": (), "generate_summary": ()}
_PHASES = {"commentary": "commentary", "final_answer": "final"}


def given(body: Mapping) -> dict:
    """The body without what is null. Raises Refused for fields and values that are not served."""
    return fields.given(body, _KNOWN, without_effect=_WITHOUT_EFFECT, fixed=_FIXED)


def names(body: Mapping) -> dict[str, str]:
    """What a body calls what Task and Sampling have other names for."""
    items = body["input"] if isinstance(body.get("input"), list) else []
    places = [i for i, item in enumerate(items) for _ in _item(item, f"input[{i}]")]
    listed = {f"messages[{i}]": f"input[{place}]" for i, place in enumerate(places)}
    return {**listed, **_NAMES}


def task(body: Mapping, name: str, defaults: Defaults) -> dict:
    """The fields of a Task. Raises Refused where they cannot be made."""
    fields.text(body, "model")
    reasoning = fields.given(fields.mapping(body, "reasoning"), ("effort",), fixed=_NO_SUMMARY, within="reasoning")
    how = fields.sampling(body, defaults, name, max_tokens=body.get("max_output_tokens"), logprobs=_logprobs(body), names=_NAMES)
    return fields.scheduling(body) | {
        "messages": messages(body.get("input")),
        "sampling": how,
        "reasoning_effort": reasoning.get("effort", defaults.reasoning_effort),
        "tools": fields.tools(body),
        "response_format": _format(body),
        "options": fields.instructions(body) | fields.continues(body),
    }


def messages(given_input: object) -> str | list[dict]:
    """The input as chat messages. Raises Refused for items that are no text, call or result."""
    if isinstance(given_input, str):
        return given_input
    if not isinstance(given_input, list):
        raise Refused(f"input must be a string or a list of items; got {type(given_input).__name__}.", field="input")
    return [message for i, item in enumerate(given_input) for message in _item(item, f"input[{i}]")]


def response(body: Mapping, digest: str, outcome, tokenizer) -> dict:
    """The response object. `created_at` is 0, so that two runs give the same.

    Args:
        digest: of the request's id; the ids of the object are made of it.
    """
    (reply,) = outcome.answers
    cut = reply.finish_reason in replies.CUT
    how = outcome.task.sampling
    return {
        "id": f"resp_{digest}",
        "object": "response",
        "created_at": 0,
        "status": "incomplete" if cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata", {}),
        "model": body.get("model", ""),
        "output": _output(reply, digest, tokenizer, "incomplete" if cut else "completed"),
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": outcome.task.reasoning_effort, "summary": None},
        "temperature": how.temperature,
        "text": body.get("text", {"format": {"type": "text"}}),
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools", []),
        "top_logprobs": how.logprobs or 0,
        "top_p": how.top_p,
        "truncation": "disabled",
        "usage": replies.usage(outcome, "input_tokens", "output_tokens"),
    }


def _output(reply, digest: str, tokenizer, status: str) -> list[dict]:
    """Reasoning, text, calls; those of the three that there are."""
    items = []
    if reply.reasoning:
        text = [{"type": "reasoning_text", "text": reply.reasoning}]
        items.append({"id": f"rs_{digest}", "type": "reasoning", "summary": [], "content": text})
    said = replies.content(reply)
    if said is not None:
        listed = [] if reply.logprobs is None else replies.logprobs(reply, tokenizer)
        part = {"type": "output_text", "text": said, "annotations": [], "logprobs": listed}
        items.append({"id": f"msg_{digest}", "type": "message", "role": "assistant", "status": status, "content": [part]})
    for i, call in enumerate(reply.tool_calls):
        ids = {"id": f"fc_{digest}_{i}", "call_id": f"call_{digest}_{i}"}
        items.append({**ids, "type": "function_call", "name": call.name, "arguments": call.arguments, "status": status})
    return items


def _item(item: object, where: str) -> list[dict]:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    for name, value in item.items() if isinstance(kind, str) and kind in _ITEMS else ():
        if name not in (*_ABOUT, *_ITEMS[kind]) and value not in (None, False, "", [], {}):
            raise Refused(
                f"{where} must hold nothing that is not read; got {quoted(name, 60)}: {quoted(value, 40)}; remove it.",
                "unknown_field",
                "input",
            )
    if kind == "message":
        return [{"role": item.get("role"), "content": item.get("content")} | _phase(item, where)]
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
        return [{"role": "assistant", "tool_calls": [{"id": item.get("call_id"), "type": "function", "function": function}]}]
    if kind == "function_call_output":
        return [{"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}]
    if kind == "reasoning":
        parts = item.get("content") or []
        texts = [part.get("text") if isinstance(part, dict) else None for part in parts] if isinstance(parts, list) else [None]
        if all(isinstance(text, str) for text in texts):
            return [{"role": "assistant", "reasoning": "".join(texts)}] if any(texts) else []
    raise Refused(
        f"{where} must be a message, a function_call, a function_call_output or reasoning in plain text; got {quoted(kind)}.",
        field="input",
    )


def _phase(item: Mapping, where: str) -> dict:
    """The channel of an assistant's message that says its phase."""
    phase = item.get("phase")
    if phase is None:
        return {}
    if not isinstance(phase, str) or phase not in _PHASES or item.get("role") != "assistant":
        allowed = f"{' or '.join(_PHASES)}, of the assistant's messages"
        raise Refused(f"{where}: phase must be {allowed}; got {quoted(phase, 60)}.", field="input")
    return {"channel": _PHASES[phase]}


def _format(body: Mapping) -> Mapping | None:
    """text.format as chat's response_format; None for plain text."""
    text = fields.given(fields.mapping(body, "text"), ("format",), fixed={"verbosity": ("medium",)}, within="text")
    form = dict(fields.mapping(text, "format"))
    if form in ({}, {"type": "text"}):
        return None
    if form.get("type") != "json_schema":
        return form
    return {"type": form.pop("type"), "json_schema": form}


def _logprobs(body: Mapping) -> int | None:
    include, top = body.get("include", []), body.get("top_logprobs")
    if not isinstance(include, list) or any(name != _LOGPROBS for name in include):
        raise Refused(f"include must be a list with nothing but {_LOGPROBS}; got {quoted(include)}.", "unsupported_field", "include")
    if top and not include:
        raise Refused(f'top_logprobs needs "include": ["{_LOGPROBS}"]; add it, or remove top_logprobs.', field="top_logprobs")
    return (top or 0) if include else None
