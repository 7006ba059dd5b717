"""Bodies of requests to what they ask for. A body is read once, by the table of its endpoint; refusals and the docs follow from it too."""

from collections.abc import Mapping
import re

from gptoss_jax.openai.asked import Asked, Earlier, Endpoint, Reading
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.reading import chat, completions, responses
from gptoss_jax.openai.reading.fields import Table, Taken
from gptoss_jax.openai.reading.items import gone_on, input_items
from gptoss_jax.openai.reading.words import blaming
from gptoss_jax.quoting import quoted

__all__ = ["TABLES", "gone_on", "input_items", "read", "refusal"]

_AS_FILES = Reading()
_TOO_LONG = re.compile(r"prompt has (?:at least )?[\d,]+ tokens but context is [\d,]+")  # as `engine.requests` says it
_PROMPTS = {"chat": "task.messages", "responses": "task.messages", "completions": "task.prompt"}
_SENTENCES = {"with continue_final_message": "continue_final_message: with it"}  # of the library, that begin with another word
TABLES: Mapping[Endpoint, Table] = {"chat": chat.TABLE, "responses": responses.TABLE, "completions": completions.TABLE}


def read(endpoint: Endpoint, body: object, *, name: str, reading: Reading = _AS_FILES, earlier: Earlier | None = None) -> Asked:
    """What a body asks for; what a model must know to refuse it is left to it.

    Args:
        body: JSON, as `strict_json.loads` reads it.
        name: tells the request from all others; seeds and ids are made of it.
        earlier: responses that it may go on from.

    Raises:
        Refused: it cannot be answered. Nothing else is raised, whatever the body holds.
    """
    if not isinstance(body, dict):
        raise Refused(f"a request's body must be a JSON object; got {quoted(body, json=True)}; pass one.")
    taken = Taken(reading)
    fields = taken.fields(body, TABLES[endpoint])
    given = {name: body[name] for name in fields}
    if endpoint == "responses":
        return responses.read(given, fields, taken, name, earlier)
    return (chat if endpoint == "chat" else completions).read(given, fields, taken, name)


def refusal(asked: Asked, message: str, code: str | None = None) -> Refused:
    """What was refused later, a Task's error, in the words of the body.

    Args:
        code: "invalid_request" if None, and OpenAI's own for a prompt that the context does not hold.
    """
    table, given = TABLES[asked.endpoint], asked.given
    if code is None and (long := _TOO_LONG.match(message)):
        return Refused(f"{long[0]}; shorten it.", "context_length_exceeded", table.called(_PROMPTS[asked.endpoint], given))
    names = {become.partition(".")[2]: table.called(become, given) for become in table.becoming}
    names |= {become.partition(".")[2]: here for become, here in table.becoming.items() if "." in here}
    return blaming(message, given, _SENTENCES | names | asked.places, code or "invalid_request")
