"""The header of a message, as well as it can be read.

assistant <|channel|> commentary to=functions.weather <|constrain|> json
^ role                ^ channel     ^ recipient                     ^ content type
"""

from collections.abc import Sequence
import dataclasses
import re

from gptoss_jax.harmony.conversation import CHANNELS, ROLES

_ROLE = re.compile(r"\s*(\S+)")
_CHANNEL = re.compile(r"\s*([^\s<]*)")
_CONTENT_TYPE = re.compile(r"\s*([\w.+/-]*)")
_RECIPIENT = re.compile(r"\s*to=(\S+)")
_TYPE_OF_CALL = re.compile(r"\s*([\w.+/-]+)(?=\s*[{\[]|\s*$)")


@dataclasses.dataclass
class Header:
    """What a header says. `text` is prose in a header that no <|message|> ended; `problems` are what is wrong with it."""

    role: str
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    text: str = ""
    problems: list[str] = dataclasses.field(default_factory=list)


def read_header(pieces: Sequence[tuple[str, str]], role: str | None, *, whole: bool) -> Header:
    """The header in pieces, which are pairs of a control token ("" for the first) and the text after it.

    Args:
        pieces: [("", "assistant"), ("<|channel|>", "commentary to=functions.weather "), ("<|constrain|>", "json")]
        role: of the message, if it is known beforehand; else the first word says it.
        whole: a <|message|> ended it. If none did, words that say nothing are the message's text.
    """
    header = Header(role or "assistant")
    rest = ""
    for marker, text in pieces:
        if marker == "":
            text = _read_role(header, text, role)
        elif marker == "<|channel|>":
            text = _read_channel(header, text)
        else:
            match = _CONTENT_TYPE.match(text)
            header.content_type = header.content_type or match[1] or None
            text = text[match.end() :]
        while match := _RECIPIENT.match(text):
            if header.recipient not in (None, match[1]):
                header.problems.append("a header names two recipients")
            header.recipient = header.recipient or match[1]
            text = text[match.end() :]
        rest += text
    if header.recipient and not header.content_type and (match := _TYPE_OF_CALL.match(rest)):
        header.content_type, rest = match[1], rest[match.end() :]
    if not whole:
        header.text = rest if rest == pieces[0][1] else rest.lstrip()
    elif rest.strip():
        _guess(header, rest.split())
    if whole and role is None and not pieces[0][1].strip():
        header.problems.append("<|start|> without a role")
    elif whole and header.role == "tool" and not header.recipient and "." not in (header.name or "."):
        header.problems.append(f"no role is called {header.name[:40]!r}")
    return header


def _read_role(header: Header, text: str, role: str | None) -> str:
    """Reads the role and name off the front of text; returns the rest."""
    match = _ROLE.match(text)
    word = match[1] if match else ""
    if role:
        return text[match.end() :] if word == role else text
    if not word:
        return text
    base, _, name = word.partition(":")
    if base in ROLES and base != "tool":
        header.role, header.name = base, name or None
    else:  # a tool's header begins with its name
        header.role, header.name = "tool", word
    return text[match.end() :]


def _read_channel(header: Header, text: str) -> str:
    match = _CHANNEL.match(text)
    if not match[1]:
        header.problems.append("<|channel|> without a name")
    elif header.channel not in (None, match[1]):
        header.problems.append("a header names two channels")
    elif match[1] not in CHANNELS:
        header.problems.append(f"no channel is called {match[1][:40]!r}")
    header.channel = header.channel or match[1] or None
    return text[match.end() :]


def _guess(header: Header, words: list[str]) -> None:
    """Takes words that stand where no word belongs for the channel or recipient that is missing."""
    header.problems.append(f"a header holds {' '.join(words)[:40]!r}")
    for word in words:
        if header.channel is None and word in CHANNELS:
            header.channel = word
        elif header.recipient is None and word.startswith("functions."):
            header.recipient = word
