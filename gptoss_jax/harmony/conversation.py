"""OpenAI-style chat messages and tools, checked at the door, to an openai_harmony Conversation."""

from collections import Counter
from collections.abc import Mapping, Sequence
import datetime
import json
import re

import openai_harmony as oh

from gptoss_jax.quoting import quoted
from gptoss_jax.schemas import checked
from gptoss_jax.schemas.checking import as_text
from gptoss_jax.tokenizer import clean, refuse_long_runs

ROLES = ("system", "developer", "user", "assistant", "tool")
CHANNELS = ("analysis", "commentary", "final")
EFFORTS = {"low": oh.ReasoningEffort.LOW, "medium": oh.ReasoningEffort.MEDIUM, "high": oh.ReasoningEffort.HIGH}

FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # it stands in a header: no blank, no dot, nothing to forge with
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING = ("reasoning", "thinking", "reasoning_content")


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
            the developer message. An assistant message may have "reasoning" (analysis), "tool_calls" in OpenAI's form, and
            "channel" where its content is not the final answer; content beside tool calls is commentary. A tool message has the
            "name" of the function, or the "tool_call_id" of an earlier call.
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
        raise ValueError(f"reasoning_effort must be one of {', '.join(EFFORTS)}; got {_show(reasoning_effort)}")
    if not isinstance(messages, list | tuple):
        raise ValueError(f'messages must be a list; got {type(messages).__name__}; pass [{{"role": "user", "content": "..."}}]')
    if not messages:
        raise ValueError('messages is empty; pass at least one, [{"role": "user", "content": "..."}]')
    system = oh.SystemContent(
        model_identity=None if model_identity is None else _text(model_identity, "model_identity"),
        reasoning_effort=EFFORTS[reasoning_effort],
        conversation_start_date=_date(current_date),
        knowledge_cutoff=None if knowledge_cutoff is None else _text(knowledge_cutoff, "knowledge_cutoff"),
    )
    for i, message in enumerate(messages):
        _check_role(message, f"messages[{i}]")
    leading = next((i for i, m in enumerate(messages) if m["role"] not in ("system", "developer")), len(messages))
    rules = [] if instructions is None else [_text(instructions, "instructions")]
    rules += [_content(message, f"messages[{i}]") for i, message in enumerate(messages[:leading])]
    functions = _functions(tools)
    out = [oh.Message.from_role_and_content(oh.Role.SYSTEM, system)]
    if rules or functions:
        developer = oh.DeveloperContent(instructions="\n\n".join(rules) if rules else None)
        developer = developer.with_function_tools(functions) if functions else developer
        out.append(oh.Message.from_role_and_content(oh.Role.DEVELOPER, developer))
    calls: dict[str, str] = {}  # tool_call_id -> function name, of the calls so far
    for i, message in enumerate(messages[leading:], leading):
        out += _history(message, f"messages[{i}]", calls)
    return oh.Conversation.from_messages(out)


def _history(message: Mapping, where: str, calls: dict[str, str]) -> list[oh.Message]:
    """One chat message as harmony messages; an assistant's may be several. Records the ids of its calls in calls."""
    role = message["role"]
    if role in ("system", "developer"):
        return [oh.Message.from_role_and_content(oh.Role.DEVELOPER, oh.DeveloperContent(instructions=_content(message, where)))]
    if role == "user":
        return [oh.Message.from_role_and_content(oh.Role.USER, _content(message, where))]
    if role == "assistant":
        return _assistant(message, where, calls)
    name = message.get("name") or calls.get(str(message.get("tool_call_id")))
    if name is None:
        raise ValueError(f"{where} is a tool result of no known call; give it the tool_call_id of an earlier call, or the function's name")
    author = oh.Author(role=oh.Role.TOOL, name=f"functions.{_function_name(name, where)}")
    result = oh.Message.from_author_and_content(author, _content(message, where))
    return [result.with_channel("commentary").with_recipient("assistant")]


def _assistant(message: Mapping, where: str, calls: dict[str, str]) -> list[oh.Message]:
    """Analysis, then commentary or the final answer, then the calls; those of the three that the message has."""
    out = []
    tool_calls = message.get("tool_calls") or []
    if not isinstance(tool_calls, list | tuple):
        raise ValueError(f"{where}: tool_calls must be a list; got {type(tool_calls).__name__}")
    channel = message.get("channel") or ("commentary" if tool_calls else "final")
    if channel not in CHANNELS:
        raise ValueError(f"{where}: channel must be one of {', '.join(CHANNELS)}; got {_show(channel)}")
    reasoning = next((message[key] for key in _REASONING if message.get(key)), None)
    if reasoning is not None:
        out.append(_said(_text(reasoning, f"{where}: reasoning"), "analysis"))
    if message.get("content") is not None and (message["content"] or not tool_calls):
        out.append(_said(_content(message, where), channel))
    for i, call in enumerate(tool_calls):
        out.append(_call(call, f"{where}: tool_calls[{i}]", calls))
    if not out:
        raise ValueError(f"{where} has neither content, reasoning nor tool_calls; give it one of them or leave it out")
    return out


def _call(call: Mapping, where: str, calls: dict[str, str]) -> oh.Message:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise ValueError(f'{where} must be {{"id", "type": "function", "function": {{"name", "arguments"}}}}; got {_show(call)}')
    name = _function_name(function.get("name"), where)
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, Mapping):
        arguments = _json(arguments, f"{where}: arguments")
    if call.get("id") is not None:
        calls[str(call["id"])] = name
    said = _said(_text(arguments, f"{where}: arguments"), "commentary")
    return said.with_recipient(f"functions.{name}").with_content_type("<|constrain|>json")


def _said(text: str, channel: str) -> oh.Message:
    return oh.Message.from_role_and_content(oh.Role.ASSISTANT, text).with_channel(channel)


def _check_role(message: Mapping, where: str) -> None:
    if not isinstance(message, Mapping):
        raise ValueError(f'{where} must be a dict such as {{"role": "user", "content": "..."}}; got {_show(message)}')
    if message.get("role") not in ROLES:
        raise ValueError(f"{where}: role must be one of {', '.join(ROLES)}; got {_show(message.get('role'))}")


def _content(message: Mapping, where: str) -> str:
    """The text of a message's content: a string, or text parts, which follow each other without a gap."""
    content = message.get("content")
    if not isinstance(content, list | tuple):
        if content is None:
            raise ValueError(f"{where} has no content; give it a string or a list of text parts")
        return _text(content, f"{where}: content")
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") not in _TEXT_PARTS:
            raise ValueError(f'{where}: content[{i}] must be {{"type": "text", "text": "..."}}, gpt-oss reads text only; got {_show(part)}')
        texts.append(_text(part.get("text"), f"{where}: content[{i}]"))
    return "".join(texts)


def _functions(tools: Sequence[Mapping] | None) -> list[oh.ToolDescription]:
    if tools is not None and not isinstance(tools, list | tuple):
        raise ValueError(f"tools must be a list of function definitions; got {type(tools).__name__}; put brackets around it")
    functions = [_function(tool, f"tools[{i}]") for i, tool in enumerate(tools or ())]
    names = [function.name for function in functions]
    if twice := sorted(name for name, times in Counter(names).items() if times > 1):
        raise ValueError(f"tools must have different names; {', '.join(twice[:3])} is there more than once")
    return functions


def _function(tool: Mapping, where: str) -> oh.ToolDescription:
    if isinstance(tool, Mapping) and tool.get("type", "function") != "function":
        raise ValueError(f"{where}: only tools of type 'function' can be called; got {_show(tool['type'])}")
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping):
        raise ValueError(f'{where} must be {{"name", "description", "parameters"}}, alone or as a "function"; got {_show(tool)}')
    name = _function_name(function.get("name"), where)
    description = _text(function.get("description") or "", f"{where}: description")
    parameters = function.get("parameters")
    return oh.ToolDescription(
        name=name, description=description, parameters=None if parameters is None else _schema(parameters, f"{where}: parameters")
    )


def _schema(parameters: Mapping, where: str) -> dict:
    """parameters as plain JSON data, a valid schema of an object in the words of draft 2020-12."""
    if not isinstance(parameters, Mapping):
        raise ValueError(f'{where} must be a JSON schema such as {{"type": "object", "properties": ...}}; got {_show(parameters)}')
    schema = checked(json.loads(_text(as_text(parameters, where), where)), where)
    if schema.setdefault("type", "object") != "object":  # without a type openai_harmony would not show the properties
        raise ValueError(f'{where} must describe an object; got "type": {_show(schema["type"])}; make the value a property of one')
    return schema


def _json(value: Mapping, where: str) -> str:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} must hold nothing but JSON ({str(error)[:200]}); convert the values first") from error
    return _text(text, where)


def _function_name(name: object, where: str) -> str:
    name = name.removeprefix("functions.") if isinstance(name, str) else name
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        raise ValueError(f"{where}: a function's name must be 1 to 64 letters, digits, _ or -; got {_show(name)}")
    return name


def _date(date: str | datetime.date | None) -> str | None:
    if date is None:
        return None
    if isinstance(date, datetime.date):
        return date.strftime("%Y-%m-%d")
    try:
        return datetime.date.fromisoformat(date).isoformat()
    except (TypeError, ValueError) as error:
        raise ValueError(f"current_date must be a date written YYYY-MM-DD; got {_show(date)}") from error


def _text(text: object, where: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{where} must be a string; got {_show(text)}")
    text = clean(text)
    refuse_long_runs(text, where)
    return text


def _show(value: object) -> str:
    if value is None:
        return "nothing"
    text = quoted(value, 60)
    return f"{type(value).__name__} {text if isinstance(value, str) else repr(text)}"
