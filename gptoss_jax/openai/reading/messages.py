"""Messages of a conversation as clients write them, to those that `harmony.to_conversation` reads."""

from collections.abc import Collection, Mapping

from gptoss_jax.harmony.conversation import READ
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.reading.fields import UNSUPPORTED, Taken
from gptoss_jax.quoting import quoted

_TEXTS = ("text", "input_text", "output_text")
_PART = ("type", "text")
_ABOUT_PART = ("annotations", "logprobs", "cache_control")  # of a part elsewhere; the model is shown none of it
_ABOUT = ("id", "annotations", "cache_control")  # of a message, likewise
_CALL, _FUNCTION = ("id", "type", "function", "index"), ("name", "arguments", "parsed_arguments")


def messages(given: list, taken: Taken) -> tuple[list, dict[str, str]]:
    """The messages, and what each is called in the body by what it is called in the list, where these differ.

    An assistant's refusal is what it said. An assistant's message with nothing in it is passed over, where unknown fields are: clients
    send back the answers of turns that were cut off.
    """
    found, places = [], {}
    for i, message in enumerate(given):
        where = f"messages[{i}]"
        message = _message(message, where, taken) if isinstance(message, dict) else message
        if not taken.reading.strict and _says_nothing(message):
            taken.ignore(where)
            continue
        places[f"messages[{len(found)}]"] = where
        found.append(message)
    return found, places if len(found) < len(given) else {}


def _message(message: Mapping, where: str, taken: Taken) -> dict:
    role = message.get("role")
    for name, remedy in (("audio", "gpt-oss reads text only"), ("function_call", "that is a list, tool_calls, here")):
        if message.get(name):
            got = quoted(message[name], 60, json=True)
            raise Refused(f"{where}: {name} must be left out; got {got}, which is not supported; {remedy}.", UNSUPPORTED, "messages")
    message = {name: value for name, value in message.items() if name not in ("audio", "function_call")}
    if role == "assistant":
        message = _with_refusal(message)
    if isinstance(role, str) and role in READ:
        message = taken.known(message, (*READ[role], *_ABOUT), where)
    if isinstance(message.get("content"), list):
        message["content"] = parts(message["content"], where, taken)
    if isinstance(message.get("tool_calls"), list):
        message["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]", taken) for i, call in enumerate(message["tool_calls"])]
    return message


def parts(content: list, where: str, taken: Taken, kinds: Collection[str] = _TEXTS) -> list:
    """The parts of a message's content; a refusal is text that was said.

    Args:
        kinds: of parts that are text; others are left as they are.
    """
    return [_part(part, f"{where}.content[{i}]", taken, kinds) if isinstance(part, dict) else part for i, part in enumerate(content)]


def _part(part: Mapping, where: str, taken: Taken, kinds: Collection[str]) -> dict:
    if part.get("type") == "refusal" and isinstance(part.get("refusal"), str):
        part = {name: value for name, value in part.items() if name != "refusal"} | {"type": "text", "text": part["refusal"]}
    if part.get("type") not in kinds:
        return dict(part)
    return taken.known(part, (*_PART, *_ABOUT_PART), where)


def _call(call: object, where: str, taken: Taken) -> object:
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return call
    call = taken.known(call, _CALL, where)
    return call | {"function": taken.known(call["function"], _FUNCTION, f"{where}.function")}


def _with_refusal(message: dict) -> dict:
    refusal = message.get("refusal")
    if not isinstance(refusal, str) or message.get("content"):
        return message
    return {name: value for name, value in message.items() if name != "refusal"} | {"content": refusal}


def _says_nothing(message: object) -> bool:
    if not isinstance(message, dict) or message.get("role") != "assistant":
        return False
    return message.get("content") is None and not any(message.get(name) for name in READ["assistant"] if name not in ("role", "channel"))
