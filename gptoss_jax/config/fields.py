"""One small reader of JSON that others have written: a file's text, and each field of it by its type, range and default.

Whatever such a file holds, what comes out is values that have been checked, or one sentence that names the file, before memory or time
is spent: ValueError, or FileNotFoundError where there is none. Knows no field of its own.
"""

import codecs
from collections.abc import Iterable, Iterator, Mapping
import contextlib
import dataclasses
import json
import os
import stat
from typing import Any, BinaryIO

from gptoss_jax import strict_json
from gptoss_jax.quoting import quoted

DESCRIPTION = 1 << 20  # bytes that a description of a model or an adapter may have; published ones have some thousand
INDEX = 16 << 20  # bytes that an index, or the header of a file of tensors, may have: some hundred thousand entries
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_DIGITS = 40  # of an integer; no field has more
_DEPTH = 32  # of lists and objects in each other


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A regular file, for reading; others (directories, pipes, devices) are refused, and waited for not even in opening them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else, or not readable.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"a file must be named by a path; got a {type(path).__name__}; pass a string or a pathlib.Path.")
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"a checkpoint needs {os.path.basename(path)}; there is no {path}; download it again.") from None
    except (OSError, ValueError) as error:  # a directory; a link to itself; a name that no file can have
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path} must be a file that can be read; got: {quoted(reason)}; put the file there.") from None
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} must be a file; got a pipe or a device; put the file there.")
        yield file


def read_json(path: str | os.PathLike, most: int = DESCRIPTION) -> Any:
    """The value of a JSON file of at most `most` bytes, whose text is UTF-8 and whose objects name nothing twice.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else; both name the file.
    """
    with opened(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path} must be JSON of at most {most:,} bytes; it has more; download it again.")
    return parse(data, path)


def parse(data: bytes, where: str | os.PathLike) -> Any:
    """The value of JSON text. Raises ValueError, which names where it comes from."""
    refuse_pointer(data, where)
    try:
        if data.startswith(_MARKS):
            raise ValueError("a byte order mark, which JSON does not begin with")
        text = data.decode()
        value = strict_json.loads(text, deepest=_DEPTH, whole=_integer, pairs=_object)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no character
    except ValueError as error:  # the decoders' and ours alike
        raise ValueError(f"{where} must be JSON; reading it stopped at: {' '.join(str(error)[:200].split())}; download it again.") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{quoted(name)} is there twice")
        found[name] = value
    return found


def refuse_pointer(data: bytes, where: str | os.PathLike) -> None:
    """Raises ValueError where there is what git-lfs puts in a file's place until it is fetched."""
    if data.startswith(b"version https://git-lfs"):
        raise ValueError(f"{where} must be the file itself; it is a git-lfs pointer to it; run `git lfs pull` there, or download it again.")


def _integer(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"an integer of {len(text):,} digits")
    return int(text)


def called(value: Any) -> str:
    """What JSON calls a value."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "a text" if isinstance(value, str) else "a list" if isinstance(value, list) else "a number"


@dataclasses.dataclass(frozen=True)
class Field:
    """What the value of a field may be: any, if it is no subclass.

    Attributes:
        default: what it is where it is absent or null; keyword of every subclass.
    """

    default: Any = dataclasses.field(default=None, kw_only=True)

    def problem(self, name: str, value: Any) -> str:
        """ "name must be ..., got ...", or "" for a value that is allowed."""
        return "" if self.allows(value) else f"{name} must be {self.words()}, got {quoted(value)}"

    def allows(self, value: Any) -> bool:
        return True

    def words(self) -> str:
        """What it must be, for a sentence."""
        return "anything"


@dataclasses.dataclass(frozen=True)
class Whole(Field):
    """An integer."""

    least: int
    most: int

    def allows(self, value: Any) -> bool:
        return type(value) is int and self.least <= value <= self.most

    def words(self) -> str:
        return f"a positive integer of at most {self.most:,}" if self.least == 1 else f"an integer from {self.least:,} to {self.most:,}"


@dataclasses.dataclass(frozen=True)
class Number(Field):
    """A finite number: above zero and at most `most`, or of either sign."""

    most: float
    positive: bool = True

    def allows(self, value: Any) -> bool:
        return type(value) in (int, float) and (0 < value if self.positive else -self.most <= value) and value <= self.most

    def words(self) -> str:
        return f"a positive number of at most {self.most:g}" if self.positive else f"a number from {-self.most:g} to {self.most:g}"


@dataclasses.dataclass(frozen=True)
class Flag(Field):
    """True or false."""

    def allows(self, value: Any) -> bool:
        return type(value) is bool

    def words(self) -> str:
        return "true or false"


@dataclasses.dataclass(frozen=True)
class Text(Field):
    """A string: one of some, or of at most 1,000 characters."""

    choices: tuple[str, ...] = ()

    def allows(self, value: Any) -> bool:
        return isinstance(value, str) and (value in self.choices if self.choices else len(value) <= 1000)

    def words(self) -> str:
        return " or ".join(map(repr, self.choices)) or "a text of at most 1,000 characters"


@dataclasses.dataclass(frozen=True)
class Many(Field):
    """A list, or an object (`named`), of values that are all alike.

    Attributes:
        each: what a value may be.
        plural: what they are, for a sentence.
        most: how many there may be.
    """

    each: Field
    plural: str
    most: int
    named: bool = False

    def allows(self, value: Any) -> bool:
        return not self.problem("", value)

    def words(self) -> str:
        return f"{'an object' if self.named else 'a list'} of {self.plural}"

    def problem(self, name: str, value: Any) -> str:
        if not isinstance(value, dict if self.named else list | tuple):
            return f"{name} must be {self.words()}, got {quoted(value)}"
        if len(value) > self.most:
            return f"{name} must have at most {self.most:,} entries, got {len(value):,}"
        for key, one in value.items() if self.named else enumerate(value):
            if not self.each.allows(one):
                return f"{name} must be {self.plural}, got {quoted(one)}{f' for {quoted(key)}' if self.named else ''}"
        return ""


def problems(values: Mapping[str, Any], fields: Mapping[str, Field], names: Iterable[str] | None = None) -> list[str]:
    """What is wrong with fields that are present and not null; of those named, or of all."""
    chosen = [name for name in (fields if names is None else names) if values.get(name) is not None]
    return [problem for name in chosen if (problem := fields[name].problem(name, values[name]))]


def take(values: Any, fields: Mapping[str, Field], where: str | os.PathLike) -> dict[str, Any]:
    """The value of each field, or its default. What else there is is left alone.

    Args:
        values: of a JSON object.
        fields: by their names.
        where: the file, for the error.

    Raises:
        ValueError: it is no object, or values are not what the fields allow: one error names every one.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold a JSON object; got {called(values)}; download it again.")
    if wrong := problems(values, fields):
        raise ValueError(f"{where} must hold values that it can have; {'; '.join(wrong)}; download it again.")
    return {name: field.default if values.get(name) is None else values[name] for name, field in fields.items()}
