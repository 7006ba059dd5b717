"""The header of a message, as well as it can be read, and what it says of the message: a call, the answer, or neither.

assistant <|channel|> commentary to=functions.weather <|constrain|> json
^ role                ^ channel     ^ recipient                     ^ content type

Models write all of this in other orders, glued together, twice, in quotes, in capitals. It is read as it was meant, and `problems` says
what was wrong. Parsing and grammars read headers here, so that what is taken for a call or for the answer is ruled as such.
"""

from collections.abc import Sequence
import dataclasses
import difflib
import re

from gptoss_jax.harmony import words
from gptoss_jax.harmony.conversation import CHANNELS, ROLES

PEOPLE = ("assistant", "all", "user")  # recipients that are no tool
_AUTHORS = tuple(role for role in ROLES if role != "tool")  # a tool's header begins with its name


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


def called(role: str, recipient: str | None) -> str | None:
    """The function that a message of this role and recipient calls, without "functions."; None if it calls none."""
    if role != "assistant" or recipient is None or recipient in PEOPLE:
        return None
    return recipient.removeprefix("functions.")


def answers(role: str, channel: str | None, recipient: str | None) -> bool:
    """Whether a message is the answer: the assistant's, no call, and neither reasoning nor a word before a call.

    So what names no channel is the answer, and what names one that there is not.
    """
    return role == "assistant" and channel not in ("analysis", "commentary") and called(role, recipient) is None


def read_header(pieces: Sequence[tuple[str, str]], role: str | None, *, end: str | None) -> Header:
    """The header in pieces, which are pairs of a control token ("" for the first) and the text after it.

    Args:
        pieces: [("", "assistant"), ("<|channel|>", "commentary to=functions.weather "), ("<|constrain|>", "json")]
        role: of the message, if it is known beforehand; else the first word says it.
        end: the control token that ended it, None for the end of the stream. If it is no <|message|>, words that say nothing are the
            message's text.
    """
    return _Whole(pieces, role).header if end == "<|message|>" else _without_message(pieces, role, end)


class _Whole:
    """Reads a header that a <|message|> ended: every word must have said something."""

    def __init__(self, pieces: Sequence[tuple[str, str]], role: str | None):
        self.header = Header(role or "assistant")
        self._author: str | None = None  # the first word of a header whose role is not known
        self._channels: list[str] = []  # that stand where channels do, as they were meant
        self._unknown: str | None = None  # what stands there and is none
        self._spare: list[str] = []  # channels and recipients that stand elsewhere
        self._left: list[str] = []
        for i, (marker, text) in enumerate(pieces):
            bare = words.without_control(text)
            if bare != text:
                self._problem("a header spells control tokens out")
            self._piece(marker, bare, asks_role=not i and role is None)
        self._leftover()
        self._choose_channel(sum(marker == "<|channel|>" for marker, _ in pieces))
        self._choose_role()
        if self.header.role == "assistant" and self.header.channel is None and not self.header.problems:
            self._problem("a message names no channel")

    def _problem(self, what: str) -> None:
        self.header.problems.append(what)

    def _piece(self, marker: str, text: str, *, asks_role: bool) -> None:
        text = self._recipients(text, marker)
        first, *others = text.split() or [""]
        if asks_role:
            self._author = first
            if not first:
                self._problem("<|start|> without a role")
        elif marker == "<|channel|>":
            self._channel(first)
        elif marker == "<|constrain|>":
            self._content_type(first)
        elif first.lower() == self.header.role:
            self._problem("a header names its role twice")
        elif first:
            others = [first, *others]
        self._left += others

    def _recipients(self, text: str, marker: str) -> str:
        """Takes the recipients out of a piece; returns the rest of it."""
        for found in words.recipients(text):
            recipient = words.recipient(found.name)
            expected = found.written == f"to={recipient}" and not found.glued
            early = not text[: found.begin].strip() and marker != ""
            if recipient is None or not expected:
                self._problem(f"a recipient is written {found.written[:40]!r}")
            elif early or marker == "<|constrain|>":
                self._problem(f"{found.written[:40]!r} stands where it does not belong")
            elif words.bare(recipient) and recipient not in PEOPLE:
                self._problem(f"the recipient {recipient[:40]!r} is in no namespace")
            if recipient in CHANNELS:
                self._spare.append(recipient)
            elif recipient:
                self._recipient(recipient)
        return words.without_recipients(text)

    def _recipient(self, recipient: str) -> None:
        before = self.header.recipient
        if before is not None:
            self._problem("a header names its recipient twice" if before == recipient else "a header names two recipients")
        if before is None or before in PEOPLE:  # a call is never lost
            self.header.recipient = recipient

    def _channel(self, word: str) -> None:
        if not word:
            self._problem("<|channel|> without a name")
            return
        if word in CHANNELS:
            self._channels.append(word)
            return
        known = words.known(word)
        if function := words.function_in(word):
            self._problem(f"a function stands where the channel belongs, {word[:40]!r}")
            self._spare.append(function)
            self._said(words.known(words.without_function(word)))
        elif known:
            self._problem(f"a channel is written {word[:40]!r}")
            self._said(known)
        else:
            self._problem(f"no channel is called {word[:40]!r}")
            if meant := next((one for one in CHANNELS if word.casefold().startswith(one)), _nearest(word, CHANNELS)):
                self._channels.append(meant)
            else:
                self._unknown = self._unknown or word

    def _content_type(self, word: str) -> None:
        if function := words.function_in(word):
            self._spare.append(function)
        elif known := words.known(word):
            self._said(known, spare=True)
        else:
            word = words.CONTENT_TYPE.match(word)[0]
            self.header.content_type = self.header.content_type or word or None
            return
        if word not in words.TYPES:
            self._problem(f"a type is written {word[:40]!r}")

    def _said(self, known: list[str], *, spare: bool = False) -> None:
        """Takes known words: channels, types, roles; of the latter nothing is to be learnt here."""
        for word in known:
            if word in CHANNELS:
                (self._spare if spare else self._channels).append(word)
            elif word in words.TYPES:
                self.header.content_type = self.header.content_type or word

    def _leftover(self) -> None:
        """Words that stand behind the first of their piece: a call's type, or whatever was meant by them."""
        left, header = self._left, self.header
        call = header.recipient is not None and not header.content_type
        if call and len(left) == 1 and words.is_type(left[0]):
            header.content_type, left = left[0], []
        if not left:
            return
        self._problem(f"a header holds {' '.join(left)[:40]!r}")
        for word in left[: words.MOST]:
            if function := words.function_in(word):
                self._spare.append(function)
            else:
                self._said(words.known(word), spare=not self._channels)

    def _choose_channel(self, markers: int) -> None:
        """Of several channels the answer's counts, lest it be lost; else the last, where the model began anew."""
        header = self.header
        for function in (word for word in self._spare if word not in CHANNELS):
            if header.recipient in (None, *PEOPLE):
                header.recipient = function
        found = self._channels or [word for word in self._spare if word in CHANNELS]
        if len(set(found)) > 1:
            self._problem("a header names two channels")
        elif markers > 1:
            self._problem("a header names its channel twice")
        call = header.recipient not in (None, *PEOPLE)
        header.channel = "final" if "final" in found and not call else found[-1] if found else self._unknown

    def _choose_role(self) -> None:
        header, word = self.header, self._author
        if not word:
            return
        base, _, name = word.partition(":")
        call = header.recipient not in (None, *PEOPLE)
        function = words.function_in(word)
        known = words.known(words.without_function(word) if function else word)
        if base in _AUTHORS and base != "assistant" and (self._channels or call):
            self._problem(f"a message of the {base} is on a channel, or calls a tool, as the assistant's are")
        elif base in _AUTHORS:
            header.role, header.name = base, name or None
        elif known:
            self._problem(f"a role is written {word[:40]!r}")
            header.role = next((one for one in known if one in _AUTHORS), "assistant")
            channels = [one for one in known if one in CHANNELS]
            header.channel = header.channel or (channels[-1] if channels else None)
            header.recipient = header.recipient or function
        elif words.NAME.fullmatch(word) and not call and (header.recipient or self._is_result(word)):
            header.role, header.name = "tool", word
        elif "." not in word and _nearest(word, ("assistant",)):
            self._problem(f"a role is written {word[:40]!r}")
        else:
            self._problem(f"no role is called {word[:40]!r}")
            header.recipient = header.recipient or (function if header.channel != "final" else None)

    def _is_result(self, author: str) -> bool:
        """Whether a tool of this name speaks, though it does not say to whom: to no human, and it has no type, as calls have."""
        return "." in author and self.header.channel in ("commentary", None) and self.header.content_type is None


def _without_message(pieces: Sequence[tuple[str, str]], role: str | None, end: str | None) -> Header:
    """A header that something else ended: what stands at the beginnings of its pieces counts, the rest is text."""
    header = Header(role or "assistant")
    rest = ""
    for i, (marker, text) in enumerate(pieces):
        cut = end is None and i == len(pieces) - 1  # its last word may be half of one
        alone = cut and len(text.split()) == 1
        if marker == "":
            text = _skip_role(header, text, role, alone)
        elif marker == "<|channel|>":
            match = words.CHANNEL.match(text)
            header.channel = match[1].casefold() if match and header.channel != "final" else header.channel
            text = text[match.end() :] if match else "" if alone else text
            if not match and text.strip():
                header.problems.append(f"no channel is called {text.split()[0][:40]!r}")
        else:
            match = words.CONTENT_TYPE_BEFORE_TEXT.match(text)
            header.content_type = header.content_type or (match[1] if match else None)
            text = text[match.end() :] if match else text
        for _ in range(words.MOST):
            if not (match := words.RECIPIENT.match(text)):
                break
            recipient = None if cut and match.end() == len(text) else words.recipient(match["name"] or "")
            header.recipient = (recipient or header.recipient) if header.recipient in (None, *PEOPLE) else header.recipient
            text = text[match.end() :]
        rest += text
    if header.recipient and not header.content_type and (match := words.CONTENT_TYPE_BEFORE_TEXT.match(rest)):
        header.content_type, rest = match[1], rest[match.end() :]
    header.text = rest if rest == pieces[0][1] else rest.lstrip()
    if header.text.strip() and not header.channel and not header.recipient and header.role == "assistant":
        # a turn goes on behind <|end|>: it was no answer
        header.channel = {"<|end|>": "analysis", "<|start|>": "analysis", "<|call|>": "commentary"}.get(end)
    return header


def _skip_role(header: Header, text: str, role: str | None, alone: bool) -> str:
    """Reads the role and name off the front of text; returns the rest."""
    word = next(iter(text.split(None, 1)), "")
    base, _, name = word.partition(":")
    match = words.BEGINNING.match(text)
    known = words.known(match[1]) if match else []
    if role and role not in known:
        return text
    if not role and base in _AUTHORS and name:
        header.role, header.name = base, name
        return text.lstrip()[len(word) :]
    if known:
        header.role = role or next((one for one in known if one in _AUTHORS), "assistant")
        header.channel = next((one for one in known if one in CHANNELS), None)
        return text[match.end() :]
    if words.NAME.fullmatch(word) and "." in word:
        header.role, header.name = "tool", word
        return text.lstrip()[len(word) :]
    return "" if alone else text


def _nearest(word: str, among: Sequence[str]) -> str | None:
    """The word that was meant by one with a slip in it."""
    close = difflib.get_close_matches(re.sub(r"\W", "", word[:40]).lower(), among, 1, 0.75)
    return close[0] if close else None
