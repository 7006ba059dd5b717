"""Sentences of the library about a Task, in the words of a body: its own names, JSON's null, true and false."""

from collections.abc import Mapping
import re

from gptoss_jax.openai.errors import Refused

_PYTHON = re.compile(r"""(?<!\w)'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\b(?:None|True|False)\b""")
_JSON = {"None": "null", "True": "true", "False": "false"}
_FIELD = re.compile(r"[a-z_]+(?=[ .:'\[])")


def in_json(message: str) -> str:
    """None, True and False as JSON has them, but for those in quotes."""
    return _PYTHON.sub(lambda found: _JSON.get(found[0], found[0]), message)


def blaming(message: str, body: Mapping, names: Mapping[str, str], code: str) -> Refused:
    """A refusal that came as a sentence and no more: it begins with the name of what is wrong, or with none.

    Args:
        body: the fields that there are.
        names: what may begin a sentence, to what it is called in the body; the longest that fits counts.
    """
    message = in_json(message)
    for name, here in sorted(names.items(), key=lambda pair: -len(pair[0])):
        if message.startswith(name) and not message[len(name) : len(name) + 1].isidentifier():
            message = here + message[len(name) :]
            break
    found = _FIELD.match(message)
    return Refused(message, code, found[0] if found and found[0] in body else None)
