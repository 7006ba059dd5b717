"""OpenAI-style chat messages and tools, checked at the door, to an openai_harmony Conversation."""

from collections.abc import Collection, Mapping, Sequence
import datetime

import openai_harmony as oh

from gptoss_jax.harmony.functions import read_functions
from gptoss_jax.harmony.texts import json_text, no_arrays, only, recipient_of, shown, text_of
from gptoss_jax.harmony.words import LONGEST, NAME

ROLES = ("system", "developer", "user", "assistant", "tool")
CHANNELS = ("analysis", "commentary", "final")
EFFORTS = {"low": oh.ReasoningEffort.LOW, "medium": oh.ReasoningEffort.MEDIUM, "high": oh.ReasoningEffort.HIGH}

_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING = ("reasoning", "thinking", "reasoning_content")
READ = {
    **dict.fromkeys(("system", "developer"), ("role", "content")),
    "user": ("role", "content", "name"),
    "assistant": ("role", "content", "channel", "tool_calls", *_REASONING),
    "tool": ("role", "content", "name", "tool_call_id"),
}
_ABOUT = ("id", "annotations", "cache_control")  # of a message elsewhere; the model is shown none of it
_ABOUT_TEXT = ("annotations", "logprobs", "cache_control")  # so are these
_OTHERS = {
    **{key: f"only a message of the {role} has it" for role, keys in reversed(READ.items()) for key in keys},
    "name": "write it into the content: the user's messages have one, and the tool's",
    "prefix": "pass continue_final_message=True",
    "function_call": "that is a list, tool_calls, here",
    "refusal": "write it into the content, as what the assistant said",
    **dict.fromkeys(("images", "image", "image_url", "audio", "video", "files"), "gpt-oss reads text only: leave it out"),
}


def to_conversation(
    messages: Sequence[Mapping],
    *,
    reasoning_effort: str = "medium",
    tools: Sequence[Mapping] | None = None,
    instructions: str | None = None,
    current_date: str | datetime.date | None = None,
    knowledge_cutoff: str | None = "2024-06",
    model_identity: str | None = "You are ChatGPT, a large language model trained by OpenAI.",
) -> oh.Conversation:
    """The conversation that openai_harmony renders: system message, developer message if there is need of one, the history.

    Args:
        messages: dicts with "role" and "content", which is a string or a list of text parts. "system" and "developer" messages
            are instructions (harmony's own system message is made from the options below): the leading ones and the tools make
            the developer message. A user's message may have the "name" of who wrote it. An assistant message may have "reasoning"
            (analysis), "tool_calls" in OpenAI's form, and "channel" where its content is not the final answer; content beside tool calls
            is commentary. Their arguments stay as the model wrote them, JSON or not. A tool message has the "name" of the function, or
            the "tool_call_id" of an earlier call. Of other keys "id", "annotations", "cache_control" and what is empty are let pass.
        reasoning_effort: "low", "medium" or "high".
        tools: functions that the model may call, {"type": "function", "function": {"name", "description", "parameters"}} or the
            inner dict alone; parameters are a JSON schema of an object.
        instructions: goes before the leading instructions of messages.
        current_date: "YYYY-MM-DD" or a date; None leaves the line out, so that a prompt is the same tomorrow.
        knowledge_cutoff: None leaves the line out.
        model_identity: the first line of the system message; None leaves it out.

    Raises:
        ValueError: anything else in messages, tools or options; the sentence says where and what to do.
    """
    if not isinstance(reasoning_effort, str) or reasoning_effort not in EFFORTS:
        raise ValueError(f"reasoning_effort must be one of {', '.join(EFFORTS)}; got {shown(reasoning_effort)}")
    if not isinstance(messages, list | tuple):
        raise ValueError(f'messages must be a list; got {type(messages).__name__}; pass [{{"role": "user", "content": "..."}}]')
    if not messages:
        raise ValueError('messages is empty; pass at least one, [{"role": "user", "content": "..."}]')
    system = oh.SystemContent(
        model_identity=None if model_identity is None else text_of(model_identity, "model_identity"),
        reasoning_effort=EFFORTS[reasoning_effort],
        conversation_start_date=_date(current_date),
        knowledge_cutoff=None if knowledge_cutoff is None else text_of(knowledge_cutoff, "knowledge_cutoff"),
    )
    for i, message in enumerate(messages):
        _check(message, f"messages[{i}]")
    leading = next((i for i, m in enumerate(messages) if m["role"] not in ("system", "developer")), len(messages))
    rules = [] if instructions is None else [text_of(instructions, "instructions")]
    rules += [_content(message, f"messages[{i}]") for i, message in enumerate(messages[:leading])]
    functions = read_functions(tools)
    out = [oh.Message.from_role_and_content(oh.Role.SYSTEM, system)]
    if rules or functions:
        developer = oh.DeveloperContent(instructions="\n\n".join(rules) if rules else None)
        developer = developer.with_function_tools(functions) if functions else developer
        out.append(oh.Message.from_role_and_content(oh.Role.DEVELOPER, developer))
    calls: dict[str, str] = {}  # tool_call_id -> recipient, of the calls so far
    for i, message in enumerate(messages[leading:], leading):
        out += _history(message, f"messages[{i}]", calls, {function.name for function in functions})
    return oh.Conversation.from_messages(out)


def _history(message: Mapping, where: str, calls: dict[str, str], own: Collection[str]) -> list[oh.Message]:
    """One chat message as harmony messages; an assistant's may be several. Records the ids of its calls in calls."""
    role = message["role"]
    if role in ("system", "developer"):
        return [oh.Message.from_role_and_content(oh.Role.DEVELOPER, oh.DeveloperContent(instructions=_content(message, where)))]
    if role == "user":
        return [oh.Message.from_author_and_content(oh.Author(role=oh.Role.USER, name=_user(message, where)), _content(message, where))]
    if role == "assistant":
        return assistant_messages(message, where, calls, own)
    name = _or(message.get("name"), calls.get(_id(message.get("tool_call_id"), f"{where}: tool_call_id")))
    if name is None:
        raise ValueError(f"{where} is a tool result of no known call; give it the id of an earlier call, or the function's name")
    author = oh.Author(role=oh.Role.TOOL, name=recipient_of(name, where, own))
    result = oh.Message.from_author_and_content(author, _content(message, where))
    return [result.with_channel("commentary").with_recipient("assistant")]


def assistant_messages(message: Mapping, where: str, calls: dict[str, str], own: Collection[str]) -> list[oh.Message]:
    """Analysis, then commentary or the final answer, then the calls; those of the three that the message has.

    Args:
        calls: the recipient of each call so far, by its id; those of the message are put in.
        own: names of the functions that the model may call.
    """
    out = []
    tool_calls = _or(message.get("tool_calls"), [])
    if not isinstance(tool_calls, list | tuple):
        raise ValueError(f"{where}: tool_calls must be a list; got {type(tool_calls).__name__}")
    channel = _or(message.get("channel"), "commentary" if tool_calls else "final")
    if not isinstance(channel, str) or channel not in CHANNELS:
        raise ValueError(f"{where}: channel must be one of {', '.join(CHANNELS)}; got {shown(channel)}")
    thoughts = dict.fromkeys(text_of(message[key], f"{where}: reasoning") for key in _REASONING if _or(message.get(key), None) is not None)
    if len(thoughts) > 1:
        raise ValueError(f"{where}: {', '.join(_REASONING)} are names of one text; got two different ones; leave one out")
    out += [_said(text, "analysis") for text in thoughts]
    if message.get("content") is not None and (not tool_calls or _or(message["content"], None) is not None):
        out.append(_said(_content(message, where), channel))
    for i, call in enumerate(tool_calls):
        out.append(_call(call, f"{where}: tool_calls[{i}]", calls, own))
    if not out:
        raise ValueError(f"{where} has neither content, reasoning nor tool_calls; give it one of them or leave it out")
    return out


def _call(call: Mapping, where: str, calls: dict[str, str], own: Collection[str]) -> oh.Message:
    no_arrays(call, where)
    function = call.get("function") if isinstance(call, Mapping) and call.get("type") in ("function", None) else None
    if not isinstance(function, Mapping):
        raise ValueError(f'{where} must be {{"id", "type": "function", "function": {{"name", "arguments"}}}}; got {shown(call)}')
    no_arrays(function, f"{where}: function")
    only(call, ("id", "type", "function", "index"), where, dict.fromkeys(("name", "arguments"), "it belongs into function"))
    instead = dict.fromkeys(("args", "input", "parameters"), "that is called arguments here")
    only(function, ("name", "arguments", "parsed_arguments"), f"{where}: function", instead)
    recipient = recipient_of(function.get("name"), where, own)
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, Mapping):
        arguments = json_text(arguments, f"{where}: arguments")
    if call.get("id") is not None:
        calls[_id(call["id"], f"{where}: id")] = recipient
    said = _said(text_of(arguments, f"{where}: arguments"), "commentary")
    return said.with_recipient(recipient).with_content_type("<|constrain|>json")


def _said(text: str, channel: str) -> oh.Message:
    return oh.Message.from_role_and_content(oh.Role.ASSISTANT, text).with_channel(channel)


def _check(message: Mapping, where: str) -> None:
    if not isinstance(message, Mapping):
        raise ValueError(f'{where} must be a dict such as {{"role": "user", "content": "..."}}; got {shown(message)}')
    no_arrays(message, where)
    if message.get("role") not in ROLES:
        raise ValueError(f"{where}: role must be one of {', '.join(ROLES)}; got {shown(message.get('role'))}")
    only(message, (*READ[message["role"]], *_ABOUT), where, _OTHERS)


def _user(message: Mapping, where: str) -> str | None:
    """Who wrote a user's message, if it says so: <|start|>user:alice."""
    name = _or(message.get("name"), None)
    if name is None:
        return None
    if not isinstance(name, str) or len(name) > LONGEST or not NAME.fullmatch(name):
        raise ValueError(f"{where}: a name must be 1 to {LONGEST} letters or signs, no blanks, quotes or brackets; got {shown(name)}")
    return name


def _or(value: object, instead: object) -> object:
    """A value, if it says anything."""
    return instead if value is None or value is False or (isinstance(value, str | list | tuple) and not value) else value


def _id(value: object, where: str) -> str | None:
    """The id of a call, which may be a number."""
    if not isinstance(value, str | int | None) or (isinstance(value, int) and abs(value) >= 2**64):
        raise ValueError(f"{where} must be a string; got {shown(value)}")
    return None if value is None else str(value)


def _content(message: Mapping, where: str) -> str:
    """The text of a message's content: a string, or text parts, which follow each other without a gap."""
    content = message.get("content")
    if not isinstance(content, list | tuple):
        if content is None:
            raise ValueError(f"{where} has no content; give it a string or a list of text parts")
        return text_of(content, f"{where}: content")
    texts = []
    for i, part in enumerate(content):
        no_arrays(part, f"{where}: content[{i}]")
        if not isinstance(part, Mapping) or part.get("type") not in _TEXT_PARTS:
            raise ValueError(f'{where}: content[{i}] must be {{"type": "text", "text": "..."}}, gpt-oss reads text only; got {shown(part)}')
        only(part, ("type", "text", *_ABOUT_TEXT), f"{where}: content[{i}]", {})
        texts.append(text_of(part.get("text"), f"{where}: content[{i}]"))
    return "".join(texts)


def _date(date: str | datetime.date | None) -> str | None:
    if date is None:
        return None
    if isinstance(date, datetime.date):
        return date.strftime("%Y-%m-%d")
    try:
        return datetime.date.fromisoformat(date).isoformat()
    except (TypeError, ValueError) as error:
        raise ValueError(f"current_date must be a date written YYYY-MM-DD; got {shown(date)}") from error
