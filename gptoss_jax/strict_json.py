"""JSON text as RFC 8259 has it, read in one place for what models, callers and files write, and written for those who read answers.

Python's own reader takes NaN and Infinity, which are no JSON, reads 1e999 as infinity, and goes as deep as its stack. Where a name stands
twice in an object the last one counts, as with every reader that is common.
"""

from collections.abc import Callable
import json
import math
import re
from typing import Any

DEEPEST = 500  # lists and objects in each other
_DIGITS = 4300  # of a whole number; Python refuses to read longer ones, for it takes long
_HALVES = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL)


def loads(
    text: str,
    *,
    deepest: int | None = DEEPEST,
    whole: Callable[[str], Any] | None = None,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    unicode: bool = False,
) -> Any:
    """The value of JSON text.

    Args:
        text: all of it, and nothing else.
        deepest: lists and objects in each other; None for as many as Python can read.
        whole: makes a value of a whole number's text; Python's int if None.
        pairs: makes a value of an object's names and values; a dict if None.
        unicode: half of a surrogate pair, which JSON can spell and UTF-8 cannot, becomes U+FFFD; else it stays.

    Raises:
        ValueError: it is no JSON, holds a number that no float can, or one of more than 4,300 digits, or is nested too deeply.
    """
    if unicode:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if unicode and "\\u" in text:
        text = _HALVES.sub(lambda found: "\\ufffd" if found[1] else found[0], text)
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=whole or _whole, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("lists and objects are nested too deeply") from None
    if deepest is not None and text.count("[") + text.count("{") > deepest and deeper(value, deepest):
        raise ValueError(f"more than {deepest} lists and objects in each other")
    return value


def dumps(value: Any) -> bytes:
    """A value as JSON in UTF-8; where it holds half of a surrogate pair, which UTF-8 cannot spell, all that is not ASCII is escaped."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False).encode()


def deeper(value: Any, most: int) -> bool:
    """Whether a value has more lists and objects in each other than that."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        inner = (one for outer in level for one in (outer.values() if isinstance(outer, dict) else outer))
        level = [one for one in inner if isinstance(one, dict | list)]
        if not level:
            return False
    return bool(level)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no number of JSON" if text[-1] in "Ny" else f"{text[:20]} is no number that a float holds")
    return value


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a whole number of {len(text):,} digits")
    return int(text)
