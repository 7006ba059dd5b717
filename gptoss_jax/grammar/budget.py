"""How large a grammar may be. The library cannot be interrupted, so that what would take it long is counted before it sees it.

Each count is such that what it lets through is compiled, or refused, within a second and 200 MB, and never ends the process: the
library walks rules and references by recursion. docs/structured.md names them.
"""

from collections.abc import Iterable, Iterator, Sequence
import json
import re

from gptoss_jax.schemas.size import at_most

LITERAL = 32_768  # characters of one text that must come as it is
CHOICES, CHOICE_CHARACTERS = 10_000, 500_000
REGEX, REGEX_ANY_CASE = 20_000, 2_000  # characters; classes that ignore case take the library a hundred times as long
REPEATS, LARK_REPEATS = 500, 1_000  # * + ? {} of one expression, whose time goes with their square; of all in a grammar
PATTERNS = 100_000  # characters in all patterns of a schema
LARK, LARK_LEVELS, LARK_SETS = 20_000, 1_000, 8  # characters; rules and brackets, which may all lie in each other; & and ~

_LARK_LITERAL = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|#[^\n]*|/(?:\\.|[^/\\\n])+/')


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


def lark_schemas(lark: str) -> Iterator[tuple[object, int, int]]:
    """The JSON schemas that a grammar holds behind %json, each with its begin and end, if they are JSON; the library refuses others."""
    at = 0
    while found := re.compile(rf"(?:{_LARK_LITERAL.pattern}|(%json)\s*)").search(lark, at):
        begin = at = found.end()
        if found[1]:
            try:
                schema, at = json.JSONDecoder().raw_decode(lark, at)
            except (ValueError, RecursionError):
                continue
            yield schema, begin, at


def _repeats(regex: str) -> int:
    return len(re.findall(r"\\.|([*+?{])", regex, re.DOTALL)) - len(re.findall(r"\\.", regex, re.DOTALL))


def _literals(lark: str) -> list[str]:
    return [found[0] for found in re.finditer(f"(?:{_LARK_LITERAL.pattern})[imslux]*", lark)]
