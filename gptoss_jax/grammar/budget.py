"""How large a grammar may be. The library cannot be interrupted, so that what would take it long is counted before it sees it.

Each count is such that what it lets through is compiled, or refused, within a second and 200 MB, and never ends the process: the
library walks rules and references by recursion. docs/structured.md names them.
"""

from collections.abc import Iterable, Mapping, Sequence
import json
import re

CHARACTERS = 1_000_000  # of a schema as JSON
VALUES = 200_000  # in a schema, of any kind
NESTED = 120  # containers in each other
LITERAL = 32_768  # characters of one text that must come as it is
CHOICES, CHOICE_CHARACTERS = 10_000, 500_000
REGEX, REGEX_ANY_CASE = 20_000, 2_000  # characters; classes that ignore case take the library a hundred times as long
REPEATS, LARK_REPEATS = 500, 1_000  # * + ? {} of one expression, whose time goes with their square; of all in a grammar
PATTERNS = 100_000  # characters in all patterns of a schema
LARK, LARK_LEVELS, LARK_SETS = 20_000, 1_000, 8  # characters; rules and brackets, which may all lie in each other; & and ~

_LARK_LITERAL = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|#[^\n]*|/(?:\\.|[^/\\\n])+/')


def at_most(count: int, most: int, what: str, where: str) -> None:
    """Raises a ValueError if count is above most."""
    if count > most:
        raise ValueError(f"{where} must hold at most {most:,} {what}; got {count:,}; make it smaller")


def count_json(value: object, where: str) -> None:
    """Raises a ValueError if a value of JSON is too large to look at, also where its parts are shared or hold each other."""
    values = characters = 0
    todo = [(value, 1)]
    while todo:
        inner, depth = todo.pop()
        if depth > NESTED:
            raise ValueError(f"{where} must be nested at most {NESTED} deep; got more; flatten it, or name parts of it in $defs")
        if isinstance(inner, Mapping):
            values += len(inner)
            characters += sum(len(name) for name in inner if isinstance(name, str))
            todo += [(part, depth + 1) for part in inner.values()] if values <= VALUES else []
        elif isinstance(inner, list | tuple):
            values += len(inner)
            todo += [(part, depth + 1) for part in inner] if values <= VALUES else []
        elif isinstance(inner, str):
            characters += len(inner)
        elif isinstance(inner, int):
            characters += inner.bit_length() // 4
        if values > VALUES:
            raise ValueError(f"{where} must hold at most {VALUES:,} values; got more; make it smaller")
        if characters > CHARACTERS:
            raise ValueError(f"{where} must hold at most {CHARACTERS:,} characters; got more; make it smaller")


def count_choices(choices: Sequence[str], where: str) -> None:
    """Raises a ValueError if there are too many choices, or too much text in them."""
    at_most(len(choices), CHOICES, "choices", where)
    lengths = [len(choice) for choice in choices if isinstance(choice, str)]
    at_most(sum(lengths), CHOICE_CHARACTERS, "characters in all choices", where)
    at_most(max(lengths, default=0), LITERAL, "characters in one choice", where)


def count_regex(regexes: Iterable[str], where: str, most: int = REGEX) -> None:
    """Raises a ValueError if regular expressions are too long, all together."""
    regexes = list(regexes)
    at_most(sum(map(len, regexes)), most, "characters of regular expressions", where)
    at_most(max(map(_repeats, regexes), default=0), REPEATS, "of * + ? {} in a regular expression", where)
    any_case = sum(len(regex) for regex in regexes if re.search(r"\(\?[a-zA-Z-]*i|^[/\"].*[/\"][a-z]*i", regex, re.DOTALL))
    at_most(any_case, REGEX_ANY_CASE, "characters of regular expressions where case does not count", where)


def count_lark(lark: str, where: str) -> None:
    """Raises a ValueError if a grammar is too long, or too many things could lie in each other in it."""
    at_most(len(lark), LARK, "characters", where)
    bare = without_literals(lark)
    at_most(len(re.findall(r"[(\[{:]", bare)), LARK_LEVELS, "rules and brackets", where)
    at_most(len(re.findall(r"[&~]", bare)), LARK_SETS, "of & and ~", where)
    count_regex(_literals(lark), where)
    at_most(sum(map(_repeats, _literals(lark))), LARK_REPEATS, "of * + ? {} in all regular expressions", where)


def without_literals(lark: str) -> str:
    """A grammar without its quoted texts, regular expressions and comments."""
    return _LARK_LITERAL.sub("", lark)


def lark_schemas(lark: str) -> list:
    """The JSON schemas that a grammar holds behind %json, as far as they are JSON; the library refuses others."""
    schemas, at = [], 0
    while found := re.compile(rf"(?:{_LARK_LITERAL.pattern}|(%json)\s*)").search(lark, at):
        at = found.end()
        if found[1]:
            try:
                schema, at = json.JSONDecoder().raw_decode(lark, at)
            except (ValueError, RecursionError):
                continue
            schemas.append(schema)
    return schemas


def _repeats(regex: str) -> int:
    return len(re.findall(r"\\.|([*+?{])", regex, re.DOTALL)) - len(re.findall(r"\\.", regex, re.DOTALL))


def _literals(lark: str) -> list[str]:
    return [found[0] for found in re.finditer(f"(?:{_LARK_LITERAL.pattern})[imslux]*", lark)]
