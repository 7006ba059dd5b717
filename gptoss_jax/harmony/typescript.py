"""The words of TypeScript that declare functions: literals, names, comments, types. Nothing breaks out of its line."""

from collections.abc import Mapping
import dataclasses
import json
import re

_ENDS_OF_LINES = re.compile("[\x7f\x85\u2028\u2029]")  # JSON escapes the others


@dataclasses.dataclass
class Type:
    """A type in words, and what is to be said where it stands.

    Attributes:
        text: the words; lines after the first have their indent.
        keywords: of the schema, for its annotations.
        notes: comments for above, of a line or several.
        union: it needs brackets before [] and beside &.
        unbracketed: but openai_harmony writes [] behind it without.
        commented: its last line ends in a comment.
        listed: the text is lines of variants to stand below a property's name, each with its end.
        exact: the words of a list with brackets that openai_harmony leaves out, for where it would not write the list at all.
        described: the text holds the description already.
    """

    text: str
    keywords: Mapping = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    union: bool = False
    unbracketed: bool = False
    commented: bool = False
    listed: bool = False
    exact: str = ""
    described: bool = False

    @property
    def about(self) -> list[str]:
        """Comments for a place that shows no other annotations."""
        described = self.described or "description" not in self.keywords
        return self.notes if described else [self.keywords["description"], *self.notes]

    @property
    def bracketed(self) -> str:
        """The words as part of others."""
        if self.exact:
            return self.exact
        if not self.union and not self.commented:
            return self.text
        return f"({self.text}\n)" if "\n" in self.text else f"({self.text})"

    @property
    def array(self) -> str:
        """The words of a list of them."""
        bare = (self.unbracketed or self.exact) and not self.commented
        return f"{self.text if bare else self.bracketed}[]"


def literal(value: object) -> str:
    """A JSON value as compact JSON, which TypeScript reads too, in one line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _ENDS_OF_LINES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def property_name(name: str) -> str:
    """The name of a property, quoted if it is no identifier."""
    return name if name.replace("$", "_").isidentifier() else literal(name)


def comment(text: str, indent: str = "") -> str:
    """Text as whole lines of comments, whatever ends its lines; an empty text is an empty comment."""
    return "".join(f"{indent}// {line}\n" for line in text.splitlines() or [""])


def default(value: object, *, bare: bool = False) -> str:
    """The words of a default; bare is a string without quotes, where it needs none."""
    words = literal(value)
    return f"default: {value if bare and isinstance(value, str) and words == f'"{value}"' else words}"
