"""What the library says of a grammar that it cannot follow, in our words: what is wrong, where in the caller's text, what to do.

It speaks of its own options and of what it made of the caller's text; here is what a caller can see and do.
"""

from collections.abc import Iterable, Iterator, Mapping
import json
import re

from gptoss_jax.quoting import quoted
from gptoss_jax.schemas.pointers import subschemas

# The library's words for its limits, and ours. Those of the first group are of one text, whatever others did.
OF_ONE_TEXT = (
    (r"Current row has [\d]+ items; max is (\d+)", "more than {} alternatives are open at one place of the grammar"),
    (r"Too many items \(limit (\d+)", "the grammar takes more than {} steps for one token"),
)
_OF_THE_AUTOMATON = (
    (r"too many expressions constructed()", "the grammar's regular expressions take too many steps for one token"),
    (r"too many states: \d+ >= (\d+)", "the grammar's regular expressions take more than {} states"),
)
CHANGE = "change or drop that part"
_SMALLER = "make it smaller"
# Of grammars, with what to do.
_OF_GRAMMARS = (
    (r"Unsatisfiable schema: Regex is empty", "a pattern, format, length or constant that no text satisfies beside the others", CHANGE),
    (r"Unsatisfiable schema: (?:anyOf is empty|No options)", "an enum or anyOf that no value satisfies", CHANGE),
    (r"Unsatisfiable schema: All options in anyOf", "an anyOf of which no schema can be satisfied", CHANGE),
    (r"Unsatisfiable schema: schema is false", "false, which no value satisfies", CHANGE),
    (r"Unsatisfiable schema: required > maxProperties", "more names in required than its maxProperties", CHANGE),
    (r"Unsatisfiable schema: incompatible (types|boolean values)", "incompatible {}, which no value has at once", CHANGE),
    (r"Unsatisfiable schema: (.*)", "{}", CHANGE),
    (
        r"patternProperty regexes /(.*)/ and /(.*)/ (?:are not|are) disjoint",
        "the patternProperties {} and {}, which may match the same name",
        "let them exclude each other, or put them together",
    ),
    (
        r"min/maxProperties only supported when",
        "minProperties or maxProperties beside properties that are not required",
        "require all that properties names, or drop the count",
    ),
    (
        r"circular references with sibling keys are not supported: [^#]*(.*)",
        "a $ref to {} that leads back to itself and has other keywords beside it",
        "put those into the schema that it names",
    ),
    (r"Schema intersection stack level exceeded|schema too large|DNF too large", "more schemas than can be combined", _SMALLER),
    (r"Unable to determine if regex is empty", "patterns, formats and lengths that are too much to combine", _SMALLER),
    (r"(?:lexer configuration|number of symbols)\D* too big", "more rules and expressions than can be read", _SMALLER),
    (r"too large|Failed to generate regex for|Infinite numbers|too many digits", "a number with too many digits", "shorten it"),
)
_LOOKS = {"Word": "a word boundary", "Start": "a ^ that does not begin the text", "End": "a $ that does not end the text"}
_LARK_LINE, _LARK_LISTING = re.compile(r"^(?:at )?(\d+)\((\d+)\): "), re.compile(r"\n *\d+ \| ")


def said(error: str) -> str:
    """What went wrong with a text, in few words, the library's limits in ours."""
    for pattern, words in OF_ONE_TEXT + _OF_THE_AUTOMATON:
        if found := re.search(pattern, error):
            return words.format(found[1])
    return " ".join(error.partition("\n<")[0].split())[:200] or "the grammar's library gave up"


def refusal(error: str, kind: str, text: str) -> tuple[str, str]:
    """What is wrong with a grammar, and what to do about it, a few words each.

    Args:
        error: the library's.
        kind, text: of the format that it refused.
    """
    line = "line {}, column {}: ".format(*found.groups()) if kind == "lark" and (found := _LARK_LINE.match(error)) else ""
    if found := re.search(r"regex parse error:\n(.*?)\nerror: ([^\n]+)", error, re.DOTALL):
        place = _place(found[1], kind, text)
        return f"{line}{place}: {found[2].strip()}", CHANGE
    if found := re.search(r"lookarounds not supported yet; (Word|Start|End)\w* in regex /(.*?)/(?:\n|$)", error, re.DOTALL):
        return f"{line}{_named(found[2], kind, text)} with {_LOOKS[found[1]]}, which cannot be followed", "write it without"
    if kind == "lark":
        return line + said(_LARK_LISTING.split(_LARK_LINE.sub("", error), maxsplit=1)[0]), CHANGE
    for pattern, words, remedy in _OF_GRAMMARS:
        if found := re.search(pattern, error):
            return words.format(*(quoted(part, 60) if "patternProperties" in words else part[:120] for part in found.groups())), remedy
    return said(error), CHANGE


def _place(shown: str, kind: str, text: str) -> str:
    """The expression and where in it the library stumbles, from its two lines: the text, and ^^^ below the place."""
    lines = shown.split("\n")
    if len(lines) != 2 or "^" not in lines[1]:
        return "an expression that cannot be read"
    read, column = lines[0][4:], lines[1].index("^") - 4
    for regex in _regexes(kind, text):
        for written, origin in _spellings(regex):
            if written == read and column <= len(origin):
                at = origin[column] if column < len(origin) else len(regex)
                rest = quoted(regex[at:], 30) if at < len(regex) else "its end"
                return f"{_word(kind)} {quoted(regex, 60)}, which cannot be read at its character {at + 1}, {rest}"
    return f"{_word(kind)} {quoted(read, 60)}, which cannot be read"


def _named(read: str, kind: str, text: str) -> str:
    own = (regex for regex in _regexes(kind, text) if any(written == read for written, _ in _spellings(regex)))
    return f"{_word(kind)} {quoted(next(own, read), 60)}"


def _word(kind: str) -> str:
    return {"json": "the pattern", "regex": "the regex"}.get(kind, "the expression")


def _regexes(kind: str, text: str) -> Iterable[str]:
    """The expressions that the caller wrote."""
    if kind != "json":
        return [text] if kind == "regex" else []
    parts = [part for _, part in subschemas(json.loads(text))]
    patterns = [part["pattern"] for part in parts if "pattern" in part]
    return [*patterns, *(name for part in parts if isinstance(names := part.get("patternProperties"), Mapping) for name in names)]


def _spellings(regex: str) -> Iterator[tuple[str, list[int]]]:
    """How the library may write an expression before it reads it, and for each character of that the place in what it was made of."""
    for classes in ({"d": "[0-9]", "w": "[0-9a-zA-Z_]", "D": "[^0-9]", "W": "[^0-9a-zA-Z_]"}, {}):
        pieces, escaped = [], False
        for i, c in enumerate(regex):
            if c == "\\" and not escaped:
                escaped = True
                continue
            out = {"/": "\\/", "\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(c)
            out = out or (classes.get(c, f"\\{c}") if escaped else c)
            pieces.append((out, i - escaped))
            escaped = False
        yield "".join(out for out, _ in pieces), [i for out, i in pieces for _ in out]
