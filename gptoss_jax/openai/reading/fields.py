"""What an object of a body may hold: a table of fields, each with what its value must be and what becomes of it. Knows no endpoint."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools

from gptoss_jax.openai.asked import Reading
from gptoss_jax.openai.errors import Refused
from gptoss_jax.quoting import MOST, quoted

UNSUPPORTED = "unsupported_field"


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a value must be.

    Attributes:
        says: that, as it stands in a refusal after "must be" and in the docs.
        fits: whether a value is one; None is never asked for.
        hint: what to do about any other.
        code: of the refusal.
    """

    says: str
    fits: Callable[[object], bool]
    hint: str = ""
    code: str = "invalid_request"

    def refusal(self, name: str, value: object, field: str) -> Refused:
        hint = f"; {self.hint}" if self.hint else ""
        unsupported = ", which is not supported" if self.code == UNSUPPORTED else ""
        got = value if isinstance(value, str) and self.code == UNSUPPORTED else quoted(value, json=True)
        return Refused(f"{name} must be {self.says}; got {got[:MOST]}{unsupported}{hint}.", self.code, field)


def whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


ANY = Kind("anything", lambda value: True)
TEXT = Kind("a string", lambda value: isinstance(value, str))
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))
TEXT_OR_LIST = Kind("a string or a list", lambda value: isinstance(value, str | list))


def only(*served: object, hint: str = "") -> Kind:
    """One of few values; with none of them the field is not served."""
    says = " or ".join(one if isinstance(one, str) else quoted(one, json=True) for one in served) or "left out"
    return Kind(says, lambda value: any(type(value) is type(one) and value == one for one in served), hint, UNSUPPORTED)


def of_words(*words: str, hint: str = "") -> Kind:
    """One of some words."""
    return Kind(" or ".join(words), lambda value: isinstance(value, str) and value in words, hint)


def whole_number(least: int, most: int, hint: str = "", *, says: str | None = None) -> Kind:
    return Kind(says or f"a whole number, {least:,} to {most:,}", lambda value: whole(value) and least <= value <= most, hint)


NOTHING = only()
CHOICE = Kind('"auto", "none", "required", a function, allowed tools', ANY.fits)


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of an object.

    Attributes:
        kind: what its value must be.
        becomes: what is made of it, such as "sampling.top_p" or "task.tools", which names it where that is refused; "" for nothing.
        about: in the docs: what is done with it, or why nothing need be done.
        hint: values that are no more than a wish: ignored, and named among those, where unknown fields are; refused elsewhere.
        files: its kind where no client waits for the answer; None for the same.
        inner: the table of the object that it is.
    """

    name: str
    kind: Kind = ANY
    becomes: str = ""
    about: str = ""
    hint: Kind | None = None
    files: Kind | None = None
    inner: "Table | None" = None


def _printable(name: str) -> str:
    """A field's name as a log and a sentence can have it, whatever a client calls it."""
    return name[:MOST] if name.isprintable() else quoted(name)


def _becoming(field: Field) -> str:
    """What is made of a field, as Python calls it."""
    where, _, name = field.becomes.partition(".")
    return {"": "", "task": f"`Task({name}=)`", "sampling": f"`Sampling({name}=)`", "options": f"`Task(options={{'{name}':}})`"}[where]


class Table:
    """The fields of an object, by their names."""

    def __init__(self, *fields: Field):
        self.fields = {field.name: field for field in fields}

    def called(self, becomes: str, body: Mapping) -> str:
        """What a body calls what becomes that; where it does not, what it could."""
        names = [name for name, field in self.fields.items() if field.becomes == becomes]
        return next((name for name in names if name in body), names[0] if names else becomes.partition(".")[2])

    def rows(self, within: str = "") -> list[str]:
        """The table as Markdown has it: a field, what its value must be, what becomes of it."""
        found, never = [], []
        for field in self.fields.values():
            if field.kind == NOTHING and not field.about:
                never.append(f"`{within}{field.name}`")
                continue
            name = within + field.name
            value = field.kind.says if field.hint is None else f"{field.kind.says}; {field.hint.says} is a wish"
            if field.files is not None and field.files != field.kind:
                value += f"; in files {field.files.says}"
            found.append(f"| `{name}` | {value} | {'; '.join(filter(None, (_becoming(field), field.about)))} |".replace("|  |", "| |"))
            found += [] if field.inner is None else field.inner.rows(f"{name}.")
        return [*found, f"| {', '.join(never)} | {NOTHING.says} | |"] if never else found

    @functools.cached_property
    def becoming(self) -> dict[str, str]:
        """What is made of fields, also of those further in, to what the body calls it."""
        found = {}
        for field in self.fields.values():
            inner = {} if field.inner is None else {become: f"{field.name}.{name}" for become, name in field.inner.becoming.items()}
            found |= inner | ({field.becomes: field.name} if field.becomes else {})
        return found


@dataclasses.dataclass
class Taken:
    """What is read of a body, and what is passed over.

    Attributes:
        ignored: names of what is passed over, in order, each once.
    """

    reading: Reading
    ignored: dict[str, None] = dataclasses.field(default_factory=dict)

    def ignore(self, name: str) -> None:
        self.ignored[_printable(name)] = None

    def fields(self, body: Mapping, table: Table, within: str = "") -> dict:
        """The fields of a body that are not null.

        Args:
            within: the field of the request that the body is.

        Raises:
            Refused: there are others, and they are not to be ignored; a value is not what it must be.
        """
        found = {}
        for name, value in body.items():
            if value is None:
                continue
            shown = f"{within}.{_printable(name)}" if within else _printable(name)
            field, blamed = table.fields.get(name), within or name[:MOST]
            if field is None:
                self.unknown(f"{shown} is no field that is known here; remove it.", shown, blamed)
                continue
            kind = field.kind if field.files is None or self.reading.live else field.files
            if kind.fits(value):
                found[name] = value if field.inner is None else self.fields(value, field.inner, shown)
            elif field.hint is not None and not self.reading.strict and field.hint.fits(value):
                self.ignore(shown)
            else:
                raise kind.refusal(shown, value, blamed)
        return found

    def unknown(self, message: str, name: str, field: str) -> None:
        """What is not known is ignored by that name, or refused."""
        if self.reading.strict:
            raise Refused(message, "unknown_field", field)
        self.ignore(name)

    def known(self, given: Mapping, known: Iterable[str], where: str) -> dict:
        """An object without what is null or not known; where that is refused, the object as it is: its reader says why."""
        if self.reading.strict:
            return dict(given)
        for name, value in given.items():
            if name not in known and value not in (None, False, "", [], {}):
                self.ignore(f"{where}.{name[:MOST]}")
        return {name: value for name, value in given.items() if name in known and value is not None}
