"""How long a prompt is at least, known before it is rendered: openai_harmony stops all threads for as long as it renders."""

from collections.abc import Mapping

_OF_EACH = 4  # <|start|>user<|message|><|end|>; a function's declaration has more


def least_tokens(messages: object, tools: object = None) -> int:
    """Tokens that a conversation's prompt has at least, whatever its texts are. Takes anything, and raises nothing."""
    shown, thoughts = len(tools) if isinstance(tools, list | tuple) else 0, 0
    leading, before_final = True, True
    for message in messages if isinstance(messages, list | tuple) else ():
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or (leading and role in ("system", "developer")):  # the leading ones are one message
            continue
        leading = False
        if role != "assistant":
            shown += 1
            continue
        calls, content, channel = (_listed(message.get(key)) for key in ("tool_calls", "content", "channel"))
        channel = channel or ("commentary" if calls else "final")
        said = bool(content) or (content is not None and not calls)
        if before_final and said and channel == "final":  # the thoughts before it are dropped
            before_final, thoughts = False, 0
        else:
            thoughts += any(_listed(message.get(key)) for key in ("reasoning", "thinking", "reasoning_content"))
        thoughts += said and channel == "analysis"
        shown += len(calls or ()) + (said and channel != "analysis")
    return _OF_EACH * (shown + thoughts)


def _listed(value: object) -> str | list | tuple | None:
    return value if isinstance(value, str | list | tuple) else None
