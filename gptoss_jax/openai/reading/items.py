"""Items of a response's input to messages of a conversation: one each, in order."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib

from gptoss_jax.openai.asked import Asked, Earlier
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.reading.fields import Taken
from gptoss_jax.openai.reading.messages import parts
from gptoss_jax.openai.told import PREFIXES
from gptoss_jax.quoting import quoted

ITEMS = {
    "message": ("role", "content", "phase"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": ("content",),
}
_ABOUT = ("type", "id", "status")  # of an item; nothing need be done about them
_PHASES = {"commentary": "commentary", "final_answer": "final"}


@dataclasses.dataclass
class Conversation:
    """Items as messages.

    Attributes:
        messages: of all items so far.
        places: what each message is called in the body by what it is called in the list.
        items: those of the body itself, references followed.
    """

    taken: Taken
    earlier: Earlier | None = None
    messages: list[dict] = dataclasses.field(default_factory=list)
    places: dict[str, str] = dataclasses.field(default_factory=dict)
    items: list[Mapping] = dataclasses.field(default_factory=list)

    def go_on_from(self, response_id: str) -> None:
        """What an earlier response ended with. Raises Refused where it is not kept."""
        found = self.earlier.items(response_id) if self.earlier else None
        if found is None:
            raise Refused(
                f"previous_response_id must be that of a response that is kept; got {quoted(response_id)}, which is unknown, was deleted, "
                "or was not stored; send its items as input.",
                "previous_response_not_found",
                "previous_response_id",
                status=404,
            )
        for i, item in enumerate(found):
            self._add(item, f"item {i} of {response_id}")

    def add_all(self, given: Sequence[object]) -> None:
        """The items of the body. Raises Refused for what is no text, call or result."""
        for i, item in enumerate(given):
            where = f"input[{i}]"
            if isinstance(item, dict) and item.get("type") == "item_reference" or _is_reference(item):
                item = self._followed(item, where)
            self._add(item, where)
            self.items.append(item)

    def _followed(self, item: Mapping, where: str) -> Mapping:
        name = _known(item, (), where, self.taken).get("id")
        found = self.earlier.item(name) if self.earlier and isinstance(name, str) else None
        if found is None:
            raise Refused(
                f"{where} must be an item, or refer to one of a response that is kept; got a reference to {quoted(name, json=True)}, "
                "which is unknown; send the item itself.",
                "item_not_found",
                "input",
            )
        return found

    def _add(self, item: object, where: str) -> None:
        for message in _message(item, where, self.taken):
            self.places[f"messages[{len(self.messages)}]"] = where
            self.messages.append(message)


def input_items(asked: Asked) -> list[dict]:
    """The input of a body of /v1/responses as a list of items, each with an id, as they can be asked for later.

    Ids that items have of themselves are kept; others are made of the name of what was asked.
    """
    digest = hashlib.blake2b(asked.name.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
    return [_as_kept(item, f"{digest}_in_{i}") for i, item in enumerate(asked.items)]


def gone_on(before: Sequence[Mapping], output: Sequence[Mapping]) -> tuple[Mapping, ...]:
    """The items of a conversation whose last one the output goes on in the middle of: the two are one, as in `Reply.messages`."""
    if not before or not output or output[0]["type"] == "function_call" or _kind(before[-1]) != output[0]["type"]:
        return (*before, *output)
    [part] = output[0]["content"]
    begun = "".join(one.get("text") or one.get("refusal") or "" for one in before[-1].get("content") or [])
    return (*before[:-1], {**output[0], "content": [{**part, "text": begun + part["text"]}]}, *output[1:])


def _as_kept(item: Mapping, digest: str) -> dict:
    kind = _kind(item)
    own = {name: value for name, value in item.items() if value is not None and (name not in _ABOUT or isinstance(value, str) and value)}
    kept = {"id": f"{PREFIXES[kind]}_{digest}", "type": kind} | own
    if kind == "message" and isinstance(kept.get("content"), str):
        said = item.get("role") == "assistant"
        part = {"type": "output_text" if said else "input_text", "text": kept["content"]} | ({"annotations": []} if said else {})
        kept["content"] = [part]
    return kept | ({} if kind == "reasoning" else {"status": kept.get("status", "completed")})


def _kind(item: Mapping) -> object:
    """A message need not say that it is one."""
    return "message" if item.get("type") is None else item["type"]


def _is_reference(item: object) -> bool:
    """The type of a reference may be left out, or null."""
    return isinstance(item, dict) and item.get("type") is None and "id" in item and not item.keys() - {"id", "type"}


def _message(item: object, where: str, taken: Taken) -> list[dict]:
    kind = _kind(item) if isinstance(item, dict) else None
    if isinstance(kind, str) and kind in ITEMS:
        item = _known(item, ITEMS[kind], where, taken)
    if kind == "message":
        return [{"role": item.get("role"), "content": _content(item.get("content"), where, taken)} | _phase(item, where)]
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
        return [{"role": "assistant", "tool_calls": [{"id": item.get("call_id"), "type": "function", "function": function}]}]
    if kind == "function_call_output":
        return [{"role": "tool", "tool_call_id": item.get("call_id"), "content": _content(item.get("output"), where, taken)}]
    if kind == "reasoning":
        given = item.get("content") or []
        given = parts(given, where, taken, ("reasoning_text", "text")) if isinstance(given, list) else [None]
        texts = [part.get("text") if isinstance(part, dict) else None for part in given]
        if all(isinstance(text, str) for text in texts):
            return [{"role": "assistant", "reasoning": "".join(texts)}] if any(texts) else []
    got = quoted(kind if isinstance(item, dict) and kind != "reasoning" else item, json=True)
    raise Refused(
        f"{where} must be a message, a function_call, a function_call_output or reasoning in plain text; got {got}.",
        field="input",
    )


def _known(item: Mapping, known: Sequence[str], where: str, taken: Taken) -> dict:
    for name, value in item.items():
        if name not in (*_ABOUT, *known) and value not in (None, False, "", [], {}):
            got = f"{quoted(name, 60)}: {quoted(value, 40, json=True)}"
            taken.unknown(f"{where} must hold nothing that is not read; got {got}; remove it.", f"{where}.{name[:60]}", "input")
    return {name: value for name, value in item.items() if name in (*_ABOUT, *known) and value is not None}


def _content(content: object, where: str, taken: Taken) -> object:
    return parts(content, where, taken) if isinstance(content, list) else content


def _phase(item: Mapping, where: str) -> dict:
    """The channel of an assistant's message that says its phase."""
    phase = item.get("phase")
    if phase is None:
        return {}
    if not isinstance(phase, str) or phase not in _PHASES or item.get("role") != "assistant":
        allowed = f"{' or '.join(_PHASES)}, of the assistant's messages"
        raise Refused(f"{where}: phase must be {allowed}; got {quoted(phase, 60, json=True)}.", field="input")
    return {"channel": _PHASES[phase]}
