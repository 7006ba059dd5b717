"""A caller's value in an error message: whatever it is, a few words that take no time to make. Every wing may import this."""

from collections.abc import Iterator, Sized
import math

MOST = 200  # characters
_DEEPEST = 20  # containers in each other; those further in are three dots
_JSON = {None: "null", True: "true", False: "false"}
_BRACKETS = {list: "[]", tuple: "()", dict: "{}", set: "{}", frozenset: ("frozenset({", "})")}


def quoted(value: object, most: int = MOST, *, json: bool = False) -> str:
    """The `repr` of a value, of at most so many characters: what is longer ends in three dots. `json`: None, True, False as JSON has them.

    Never raises, and looks at no more of a text or a container than it shows. A whole number of more digits is said to be one, an object
    of more items, or one that has no `repr`, is named by its type.
    """
    found, room = [], most
    try:
        for word in _words(value, most, _DEEPEST, json):
            found.append(word)
            room -= len(word)
            if room < 0:
                break
    except Exception:  # of a `repr` that is not ours
        found.append(_named(value))
    text = "".join(found)
    return text if len(text) <= most else text[: max(0, most - 3)] + "..."


def _words(value: object, most: int, depth: int, json: bool) -> Iterator[str]:
    """The `repr`, piece by piece."""
    kind = type(value)
    if kind in (str, bytes, bytearray):
        yield repr(value[: most + 1])
    elif json and kind in (bool, type(None)):
        yield _JSON[value]
    elif kind is int and value.bit_length() > 1 + most * math.log2(10):
        yield f"a whole number of some {math.ceil(value.bit_length() / math.log2(10)):,} digits"
    elif kind in _BRACKETS and (value or kind in (list, tuple, dict)):
        begin, end = _BRACKETS[kind]
        yield begin
        if depth == 0 and value:
            yield "..."
        else:
            yield from _items(value, most, depth - 1, json)
        yield f",{end}" if kind is tuple and len(value) == 1 else end
    elif kind not in _BRACKETS and isinstance(value, Sized) and len(value) > most:
        yield f"{_named(value)} of {len(value):,}"
    else:
        yield repr(value)


def _items(value, most: int, depth: int, json: bool) -> Iterator[str]:
    for i, item in enumerate(value):
        if i:
            yield ", "
        yield from _words(item, most, depth, json)
        if type(value) is dict:
            yield ": "
            yield from _words(value[item], most, depth, json)


def _named(value: object) -> str:
    return f"a {type(value).__name__}"


def said(error: BaseException) -> str:
    """An exception in one line of its type and at most `MOST` characters, whatever it holds. Never raises."""
    try:
        text = " ".join(str(error)[: 4 * MOST].split())
    except BaseException:  # of a `__str__` that is not ours
        text = "and it could not say what"
    return f"{type(error).__name__}: {text[:MOST]}" if text else type(error).__name__
