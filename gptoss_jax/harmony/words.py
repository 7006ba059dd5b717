"""The words of a header: which are known, also where they are glued to others, and what a recipient names.

Every expression takes time linear in the text: a header may be as long as the context.
"""

from collections.abc import Iterator
import re
from typing import NamedTuple

TYPES = ("json", "code", "text")  # known content types; others are taken where they stand alone
LONGEST = 256  # characters of a name
MOST = 16  # recipients in one piece of a header, and words that are looked at
_KNOWN = ("assistant", "developer", "system", "user", "analysis", "commentary", "final", *TYPES)
_ONE = re.compile("|".join(_KNOWN), re.IGNORECASE)
_GLUED = re.compile(rf"[^a-z]*(?:(?:{'|'.join(_KNOWN)})[^a-z]*)+", re.IGNORECASE)
_CONTROL = re.compile(r"<\|\w{1,40}\|>")
_PREFIX = re.compile(r"(?:functions[.:/]+)+(?=.)", re.IGNORECASE)
# What no name holds: blanks, quotes, brackets, marks that end a sentence, what cannot be seen.
_NO_NAME = r"\s\"'`‘’“”«»<>(){}\[\]|,;=*?!…–—，。：；！？、\x00-\x1f\x7f\u200b-\u200f\u2060\ufeff\ufffd\ud800-\udfff"
_WORD = rf"[^{_NO_NAME}.:/]"
_NAME = rf"{_WORD}(?:[^{_NO_NAME}]*{_WORD})?"
_FUNCTION = re.compile(rf"functions[.:/]+{_WORD}+", re.IGNORECASE)
_BEHIND = "".join(rf"|(?<={word})" for word in _KNOWN)

_TO = rf"to\s*=\s*[\"'`‘“«<*OPEN]*(?P<name>{_NAME})?[\"'`’”»)\]>*,;:.!?]*"
_ANYWHERE = re.compile(rf"(?:(?<![^\W_]){_BEHIND}){_TO.replace('OPEN', '({[')}", re.IGNORECASE)
RECIPIENT = re.compile(rf"\s*{_TO.replace('OPEN', '')}", re.IGNORECASE)  # brackets open arguments, where no <|message|> does
_FUNCTIONS_ALONE = re.compile(rf"[\s.]*({_WORD}+)(?!\S)")
NAME = re.compile(_NAME)
CHANNEL = re.compile(rf"[\s?.,:*–—-]*((?i:analysis|commentary|final))(?:(?=(?i:{'|'.join(TYPES)}|to\s*=))|(?![a-z]))[?.,:]*")
BEGINNING = re.compile(rf"\s*((?i:{'|'.join(_KNOWN)})+)(?![a-z])[?.,:]*")
CONTENT_TYPE = re.compile(r"[\w.+/-]*")
CONTENT_TYPE_BEFORE_TEXT = re.compile(r"\s*([\w.+/-]+)(?=\s*[{\[]|\s*$)")


class Recipient(NamedTuple):
    """A recipient as it is written: `to="functions.f",` names functions.f; glued if a word stands right before it."""

    begin: int
    end: int
    written: str
    name: str
    glued: bool


def recipients(text: str) -> Iterator[Recipient]:
    """Those that stand in text, the first of them if there are very many."""
    begin = 0
    for _ in range(MOST):
        if not (found := _ANYWHERE.search(text, begin)):
            return
        name, begin = found["name"] or "", found.end()
        if name.lower() == "functions" and (apart := _FUNCTIONS_ALONE.match(text, begin)) and not known(apart[1]):
            name, begin = f"functions.{apart[1]}", apart.end()  # "to=functions f"
        glued = found.start() > 0 and not text[found.start() - 1].isspace()
        yield Recipient(found.start(), begin, text[found.start() : begin], name, glued)


def without_recipients(text: str) -> str:
    """text, a blank in the place of every recipient."""
    parts, begin = [], 0
    for found in recipients(text):
        parts.append(text[begin : found.begin])
        begin = found.end
    return " ".join([*parts, text[begin:]])


def recipient(name: str) -> str | None:
    """What a recipient's name means: "functions.f", also for what says functions twice; people and channels in small letters."""
    found = _PREFIX.match(name)
    base = name[found.end() :] if found else name
    if found:
        name = f"functions.{base}"
    elif name.casefold() in (*_KNOWN, "all"):
        name = name.casefold()
    return name if 0 < len(base) <= LONGEST else None


def bare(recipient: str) -> bool:
    """Whether a recipient is in no namespace, and not one of the tools that gpt-oss knows without one."""
    return not re.search(r"[.:/]", recipient) and recipient != "python"


def function_in(word: str) -> str | None:
    """The recipient that a word names which is none: "for:functions.f"."""
    found = _FUNCTION.search(word)
    return recipient(found[0]) if found else None


def without_function(word: str) -> str:
    """A word without what `function_in` found in it."""
    return _FUNCTION.sub("", word)


def is_type(word: str) -> bool:
    """Whether a word behind a recipient can be the content type."""
    return bool(CONTENT_TYPE.fullmatch(word)) and not function_in(word) and not set(known(word)) - set(TYPES)


def known(word: str) -> list[str]:
    """The known words that a word consists of, in small letters: of "commentaryjson?" two; [] if there is anything else in it."""
    return [one.casefold() for one in _ONE.findall(word)] if len(word) <= LONGEST and _GLUED.fullmatch(word) else []


def without_control(text: str) -> str:
    """text without control tokens that are spelled out in it."""
    return _CONTROL.sub(" ", text)
