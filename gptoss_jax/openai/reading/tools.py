"""Tools and the choice of one, in both forms that OpenAI has for them, as a Task has them."""

from collections.abc import Mapping

from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.reading.fields import UNSUPPORTED, Taken
from gptoss_jax.quoting import quoted

_FUNCTION = ("name", "description", "parameters", "strict", "return")
_MODES = ("auto", "none", "required")
_ALLOWED = '{"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": ...}]}'  # in the flat form


def chat_tools(body: Mapping, taken: Taken) -> list | None:
    """The tools of a body of /v1/chat/completions; None where there are none, or none may be called."""
    if not body.get("tools") or body.get("tool_choice") == "none":
        return None
    return [_chat_tool(tool, f"tools[{i}]", taken) for i, tool in enumerate(body["tools"])]


def chat_choice(body: Mapping, taken: Taken) -> str | dict | None:
    """tool_choice as a Task has it: None where the model is free, or has no tools."""
    choice = body.get("tool_choice", "auto")
    if choice in ("auto", "none"):
        return None
    if not isinstance(choice, dict):
        if choice not in _MODES:
            raise _no_choice(choice, '{"type": "function", "function": {"name": ...}}')
        return choice
    if choice.get("type") == "allowed_tools" and isinstance(choice.get("allowed_tools"), dict):
        choice = taken.known(choice, ("type", "allowed_tools"), "tool_choice")
        inner = taken.known(choice["allowed_tools"], ("mode", "tools"), "tool_choice.allowed_tools")
        if isinstance(inner.get("tools"), list):
            inner["tools"] = [_named(tool, f"tool_choice.allowed_tools.tools[{i}]", taken) for i, tool in enumerate(inner["tools"])]
        return choice | {"allowed_tools": inner}
    return _named(choice, "tool_choice", taken)


def responses_tools(body: Mapping, taken: Taken) -> tuple[list | None, dict[str, str]]:
    """The functions among the tools of a body of /v1/responses, and what each is called in the body by what it is called in the list.

    What is no function cannot be called here: it is passed over, where what is not known is.
    """
    found, places = [], {}
    for i, tool in enumerate(body.get("tools", ())):
        where = f"tools[{i}]"
        kind = tool.get("type", "function") if isinstance(tool, dict) else "function"
        if kind != "function" and isinstance(kind, str) and not taken.reading.strict:
            taken.ignore(where)
            continue
        places[f"tools[{len(found)}]"] = where
        found.append(_chat_tool(tool, where, taken))
    return (found if found and body.get("tool_choice") != "none" else None), places


def responses_choice(body: Mapping, taken: Taken) -> str | dict | None:
    """tool_choice of /v1/responses, whose forms are flat, as a Task has it."""
    choice = body.get("tool_choice", "auto")
    if choice in ("auto", "none"):
        return None
    if isinstance(choice, str) and choice in _MODES:
        return choice
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        return _flat(choice, "tool_choice", taken)
    if kind == "allowed_tools":
        given = taken.known(choice, ("type", "mode", "tools"), "tool_choice")
        if given.keys() != {"type", "mode", "tools"} or not isinstance(given["tools"], list) or not given["tools"]:
            raise Refused(f"tool_choice must be {_ALLOWED}; got {quoted(choice, json=True)}; write it so.", field="tool_choice")
        tools = [_flat(tool, f"tool_choice.tools[{i}]", taken) for i, tool in enumerate(given["tools"])]
        return {"type": "allowed_tools", "allowed_tools": {"mode": given["mode"], "tools": tools}}
    raise _no_choice(choice, '{"type": "function", "name": ...}')


def _chat_tool(tool: object, where: str, taken: Taken) -> object:
    """A tool without what is not known; what is none is left to those who read it."""
    if not isinstance(tool, dict):
        return tool
    if isinstance(tool.get("function"), dict):
        tool = taken.known(tool, ("type", "function", *_FUNCTION), where)
        return tool | {"function": taken.known(tool["function"], _FUNCTION, f"{where}.function")}
    return taken.known(tool, ("type", "function", *_FUNCTION), where)


def _named(tool: object, where: str, taken: Taken) -> object:
    """A function that a choice names, in chat's form; what is none is left to those who read it."""
    if not isinstance(tool, dict) or not isinstance(tool.get("function"), dict):
        return tool
    tool = taken.known(tool, ("type", "function"), where)
    return tool | {"function": taken.known(tool["function"], ("name",), f"{where}.function")}


def _flat(tool: object, where: str, taken: Taken) -> dict:
    """A function that a choice names in the flat form, in chat's."""
    given = taken.known(tool, ("type", "name"), where) if isinstance(tool, dict) else {}
    if given.keys() != {"type", "name"} or given["type"] != "function" or not isinstance(given["name"], str):
        got, function = quoted(tool, json=True), isinstance(tool, dict) and tool.get("type") == "function"
        remedy = "write it so" if function else "nothing but functions can be called"
        raise Refused(
            f'{where} must be {{"type": "function", "name": ...}}; got {got}; {remedy}.',
            UNSUPPORTED,
            "tool_choice",
        )
    return {"type": "function", "function": {"name": given["name"]}}


def _no_choice(choice: object, named: str) -> Refused:
    words = ", ".join(f'"{mode}"' for mode in _MODES)
    return Refused(
        f"tool_choice must be {words}, {named} or of type allowed_tools; got {quoted(choice, json=True)}, which is not supported.",
        UNSUPPORTED,
        "tool_choice",
    )


def choice(body: Mapping, chosen: str | dict | None) -> dict:
    """The fields of a Task that say which tools are called, and how many."""
    return {"tool_choice": chosen, "parallel_tool_calls": body.get("parallel_tool_calls", True)}
