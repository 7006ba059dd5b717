"""What an answer is to look like, by whichever of its names a body asks for it: as a Task's response_format."""

from collections.abc import Mapping

from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.reading.fields import LIST, OBJECT, TEXT, Field, Kind, Table, Taken, only

_ABOUT = ("type", "name", "description", "schema", "strict")
_SCHEMA = Kind("a JSON schema", lambda value: isinstance(value, dict | bool))
RESPONSE_FORMAT = Field("response_format", OBJECT, "task.response_format")
# vLLM's.
STRUCTURED = Field(
    "structured_outputs",
    OBJECT,
    "task.response_format",
    "one of them, in place of response_format",
    inner=Table(
        Field("json", _SCHEMA),
        Field("regex", TEXT),
        Field("choice", LIST),
        Field("json_object", only(True)),
        *(Field(name, only()) for name in ("grammar", "structural_tag", "whitespace_pattern")),
    ),
)
_NAMES = {"json": "schema", "regex": "regex", "choice": "choices"}
_PLACES = {"response_format.json_schema.schema": "structured_outputs.json", "response_format: choices": "structured_outputs.choice"}


def response_format(body: Mapping, taken: Taken) -> dict | None:
    """response_format, or vLLM's structured_outputs. None for plain text."""
    form, other = body.get("response_format", {}), body.get("structured_outputs", {})
    if other and form not in ({}, {"type": "text"}):
        raise Refused("structured_outputs must be alone; there is response_format too; remove one.", field="structured_outputs")
    if len(other) > 1:
        raise Refused(f"structured_outputs must hold one form; got {', '.join(other)}; keep one.", field="structured_outputs")
    if not other:
        return _of_chat(form, taken)
    ((kind, value),) = other.items()
    if kind == "json":
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": value}}
    return {"type": "json_object"} if kind == "json_object" else {"type": kind, _NAMES[kind]: value}


def places(body: Mapping) -> dict[str, str]:
    """What parts of a form are called in a body that has it as structured_outputs, by what response_format calls them."""
    return _PLACES if body.get("structured_outputs") else {}


def text_format(text: Mapping, taken: Taken) -> dict | None:
    """text.format of /v1/responses, as response_format."""
    form = text.get("format", {})
    if form in ({}, {"type": "text"}):
        return None
    if form.get("type") != "json_schema":
        return _plain(form, "text.format", taken)
    form = taken.known(form, _ABOUT, "text.format")
    return {"type": "json_schema", "json_schema": {name: value for name, value in form.items() if name != "type"}}


def _of_chat(form: Mapping, taken: Taken) -> dict | None:
    if form in ({}, {"type": "text"}):
        return None
    if form.get("type") == "json_schema" and isinstance(form.get("json_schema"), dict):
        form = taken.known(form, ("type", "json_schema"), "response_format")
        inner = taken.known(form["json_schema"], _ABOUT[1:], "response_format.json_schema")
        return form | {"json_schema": inner}
    return _plain(form, "response_format", taken)


def _plain(form: Mapping, where: str, taken: Taken) -> dict:
    kind = form.get("type")
    known = {"regex": ("regex",), "choice": ("choices",), "lark": ("lark",), "text": (), "json_object": ()}
    known = known.get(kind) if isinstance(kind, str) else None
    return dict(form) if known is None else taken.known(form, ("type", *known), where)
