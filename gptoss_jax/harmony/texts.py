"""Callers' texts at the door: strings that UTF-8 can hold, JSON, names of functions, keys of dicts; each refusal says where."""

from collections.abc import Collection, Mapping
import difflib
import json
import re

from gptoss_jax.harmony import words
from gptoss_jax.quoting import quoted
from gptoss_jax.tokenizer import clean

FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # it stands in a header: no blank, no dot, nothing to forge with
_NAMESPACE = re.compile(r"^(?:functions\.)+(?=.)")


def text_of(text: object, where: str) -> str:
    """A string that UTF-8 can hold."""
    if not isinstance(text, str):
        raise ValueError(f"{where} must be a string; got {shown(text)}")
    return clean(text)


def json_text(value: Mapping, where: str) -> str:
    """A value as JSON."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} must hold nothing but JSON ({str(error)[:200]}); convert the values first") from error
    return text_of(text, where)


def function_name(name: object, where: str) -> str:
    """The name of a function, without the namespace that it may be written with."""
    name = name.removeprefix("functions.") if isinstance(name, str) else name
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        raise ValueError(f"{where}: a function's name must be 1 to 64 letters, digits, _ or -; got {shown(name)}")
    return name


def recipient_of(name: object, where: str, own: Collection[str] = ()) -> str:
    """Whom a call of the history is for: a function, or what else a model once called, such as "browser.search", as it stands.

    Args:
        own: names of the functions that the model may call; python is gpt-oss' own tool where it is none of them.
    """
    if isinstance(name, str) and name == "python" and name not in own:
        return name
    base = _NAMESPACE.sub("", name) if isinstance(name, str) else ""
    if len(base) > words.LONGEST or not words.NAME.fullmatch(base):
        raise ValueError(f"{where}: a call's name must be 1 to 256 letters or signs without blanks, quotes and brackets; got {shown(name)}")
    return base if base == name and "." in name else f"functions.{base}"


def only(given: Mapping, known: Collection[str], where: str, instead: Mapping[str, str]) -> None:
    """Raises a ValueError for a key that is not read, unless it says nothing: null, false, empty.

    Args:
        known: keys that are read, or whose value changes nothing.
        instead: what to do about others that callers write.
    """
    for key, value in given.items():
        if key in known or value is None or value is False or (isinstance(value, str | list | tuple | Mapping) and not value):
            continue
        name = key if isinstance(key, str) and re.fullmatch("[A-Za-z_]{1,40}", key) else quoted(key, 60)
        near = difflib.get_close_matches(name, known, 1, 0.7)
        remedy = instead.get(key) or (f"the nearest that is read is {near[0]}" if near else f"drop it; {', '.join(known)} are read")
        raise ValueError(f"{where} must hold nothing that is not read; got {name}: {quoted(value, 40)}; {remedy}")


def no_arrays(given: object, where: str) -> None:
    """Raises a ValueError for a value that is an array, as tables hold lists: it cannot be compared as they are."""
    for key, value in given.items() if isinstance(given, Mapping) else ():
        if hasattr(value, "tolist") and not isinstance(value, str):
            raise ValueError(f"{where}: {quoted(key, 60)} must be a value of JSON; got {type(value).__name__}; pass its tolist()")


def shown(value: object) -> str:
    """What came, for a refusal."""
    if value is None:
        return "nothing"
    text = quoted(value, 60)
    return f"{type(value).__name__} {text if isinstance(value, str) else repr(text)}"
