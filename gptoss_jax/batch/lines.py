"""A line of the input to a request that can be answered, or to what is wrong with it. Knows no jax.

Two forms, also mixed in one file: OpenAI's batch lines (`custom_id`, `method`, `url`, `body`), and plain ones (`id` with `prompt` or
`messages`, and what `Sampling` and `Task` take by the same names).
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

from gptoss_jax import strict_json
from gptoss_jax.batch import plain
from gptoss_jax.openai import reading
from gptoss_jax.openai.asked import Asked, Defaults, Endpoint, Reading
from gptoss_jax.openai.errors import Refused, refusal_of
from gptoss_jax.openai.reading.fields import Field, Table, Taken
from gptoss_jax.openai.reading.words import blaming
from gptoss_jax.quoting import quoted
from gptoss_jax.turns.task import Task

Form = Literal["plain"] | Endpoint
_DEEPEST = 100  # lists and objects in each other
_TOO_DEEP = f"a line must be nested at most {_DEEPEST} deep, lists and objects together; this one is deeper; make it flatter."
_OPENAI = ("custom_id", "method", "url", "body")
_URLS: dict[str, Endpoint] = {"/v1/chat/completions": "chat", "/v1/responses": "responses", "/v1/completions": "completions"}
_BOM = b"\xef\xbb\xbf"
_LINE = Table(*(Field(name) for name in _OPENAI))


@dataclasses.dataclass(frozen=True)
class Line:
    """A line as JSON.

    Attributes:
        form: the form of its result.
        id: as it came, or None where there is none that can be used.
        number: in the file, from 1.
        content: the whole of it; empty where it is no JSON object.
        problem: why it cannot be a request at all.
    """

    form: Form
    id: str | int | None
    number: int
    content: Mapping
    problem: Refused | None = None

    @property
    def name(self) -> str:
        """Tells it from all others of the job: its id, or its line where it has none."""
        return f"line {self.number}" if self.id is None else f"{'custom_id' if self.form != 'plain' else 'id'} {self.id}"

    @property
    def key(self) -> str | None:
        """What no other line may have too."""
        return None if self.id is None else str(self.id)


@dataclasses.dataclass(frozen=True)
class Request:
    """What can be answered.

    Attributes:
        line: where it stands.
        tasks: what is to be done: one, or one for each prompt of a body of /v1/completions.
        body: as it came, without what was null.
        asked: the body of an OpenAI's line as it was read.
    """

    line: Line
    tasks: tuple[Task, ...]
    body: Mapping[str, Any]
    asked: Asked | None = None


def parse(text: bytes, number: int) -> Line:
    """The line's form and id, whatever else is in it."""
    if text.startswith(_BOM):
        return _broken(number, "a line must not begin with a byte order mark, but for the first one; take it away.", "invalid_json")
    try:
        content = strict_json.loads(text.decode("utf-8"), deepest=None)
    except UnicodeDecodeError as error:
        return _broken(number, f"a line must be UTF-8; byte {error.start} is not; save the file as UTF-8.", "invalid_utf8")
    except ValueError as error:
        return _broken(number, f"a line must be one JSON object; it is no JSON: {str(error)[:200]}.", "invalid_json")
    if not isinstance(content, dict):
        return _broken(number, f"a line must be a JSON object; got {_kind(content)}; write one object a line.", "invalid_json")
    openai = any(name in content for name in _OPENAI)
    key = "custom_id" if openai else "id"
    name = content.get(key)
    problem = Refused(_TOO_DEEP, "invalid_json") if _deep(text, content) else None
    usable = isinstance(name, str) and name or (not openai and isinstance(name, int) and not isinstance(name, bool))
    if not usable:
        kinds = "a string" if openai else "a string or a whole number"
        problem = Refused(f"{key} must be {kinds} that no other line has; got {quoted(name, json=True)}; give it one.", "invalid_id", key)
    form = _form(content) if openai else "plain"
    return Line(form, name if usable else None, number, content, problem)


def too_long(number: int, most: int) -> Line:
    """A line that was passed over, for it has more bytes than is allowed."""
    return _broken(number, f"a line must have at most {most:,} bytes; this one has more; raise --max_line_bytes.", "line_too_long")


def unreadable(number: int, error: Exception) -> Line:
    """A line whose reading raised something else."""
    return Line("plain", None, number, {}, refusal_of(error))


def read(line: Line, defaults: Defaults) -> Request:
    """The request of a line. Raises Refused for one that cannot be answered; what a model must know to refuse it is left to it."""
    if line.problem:
        raise line.problem
    if line.form == "plain":
        body = plain.given(line.content)
        return Request(line, (plain.task(body, line.name, Reading(defaults)),), body)
    Taken(Reading()).fields(line.content, _LINE)
    for name, served in (("method", ("POST",)), ("url", tuple(_URLS))):
        if line.content.get(name) not in served:
            got = quoted(line.content.get(name), json=True)
            raise Refused(
                f"{name} must be {' or '.join(served)}; got {got}.", "unsupported_url" if name == "url" else "invalid_request", name
            )
    body = line.content.get("body")
    if not isinstance(body, dict):
        raise Refused(f"body must be an object; got {_kind(body)}.", field="body")
    asked = reading.read(line.form, body, name=line.name, reading=Reading(defaults))
    return Request(line, asked.tasks, asked.given, asked)


def refused(request: Request, message: str, code: str) -> Refused:
    """Why a request that was read could not be answered, in the words of its form."""
    if request.asked is None:
        return blaming(message, request.body, {}, code)
    return reading.refusal(request.asked, message, code)


def _form(content: Mapping) -> Form:
    return _URLS.get(content["url"], "chat") if isinstance(content.get("url"), str) else "chat"


def _broken(number: int, message: str, code: str) -> Line:
    return Line("plain", None, number, {}, Refused(message, code))


def _deep(text: bytes, content: object) -> bool:
    """Whether it is nested too deeply for all that will go through it. `text` is the line."""
    return text.count(b"[") + text.count(b"{") > _DEEPEST and strict_json.deeper(content, _DEEPEST)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false"}
    return names.get(type(value), "null")
