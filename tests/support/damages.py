"""Random damages of a JSON text, seeded: bytes that flip or are lost, and values that no writer of such a file would write."""

import copy
import json
import random
from typing import Any

NASTY = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**9, 10**18, 10**30, 10**400, -(10**400), 0.5, -0.0, 1e-300, 1e300, float("inf"),
    float("-inf"), float("nan"), "", "x", "x" * 3000, "\ud800", "\x00", "..", "../../x", "/etc/passwd", "\u202e", [], [[]], [None], {},
    {"": {}}, [1, "2", None], [[1]] * 50, "9" * 5000, [0] * 100_000,
)  # fmt: skip
_RAW = (b"[" * 50_000, b"9" * 5000, b"1e400", b"-1e999", b'"\xff\xfe"', b'"\\ud83d"', b"NaN", b"{" * 40 + b"}" * 40, b"\x00", b"{}{}", b"")


def damaged(text: bytes, rng: random.Random) -> bytes:
    """The text with one to three damages."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        text = rng.choice((_flipped, _cut, _value, _value, _value, _value, _name, _raw, _twice))(text, rng)
    return text


def _flipped(text: bytes, rng: random.Random) -> bytes:
    if not text:
        return text
    at = rng.randrange(len(text))
    return text[:at] + bytes([text[at] ^ 1 << rng.randrange(8)]) + text[at + 1 :]


def _cut(text: bytes, rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    return text[:a] + (text[b:] if rng.random() < 0.5 else b"")


def _raw(text: bytes, rng: random.Random) -> bytes:
    """A piece of text where a value begins."""
    at = rng.choice([i for i, byte in enumerate(text) if byte in b":["] or [0])
    return text[: at + 1] + rng.choice(_RAW) + text[at + 1 + rng.choice((0, 1, 10)) :]


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _places(value: Any, found: list) -> list:
    """Of every value in a JSON value, what holds it and where."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(min(len(value), 50)):
            found.append((value, key))
            _places(value[key], found)
    return found


def _value(text: bytes, rng: random.Random) -> bytes:
    value = _parsed(text)
    places = _places(value, [])
    nasty = copy.deepcopy(rng.choice(NASTY))
    if not places or rng.random() < 0.02:
        return json.dumps(nasty).encode()
    where, key = rng.choice(places)
    where[key] = _near(where[key], rng) if rng.random() < 0.3 else nasty
    return json.dumps(value).encode()


def _near(value: Any, rng: random.Random) -> Any:
    """Another value of the same type."""
    if isinstance(value, int | float):
        return value * rng.choice((-1, 0, 2, 3)) + rng.choice((-1, 0, 1))
    return value[1:] + value[:1] if isinstance(value, str | list) else {}


def _name(text: bytes, rng: random.Random) -> bytes:
    """A field that is called otherwise, or is lost."""
    value = _parsed(text)
    places = [(where, key) for where, key in _places(value, []) if isinstance(where, dict)]
    if not places:
        return text
    where, key = rng.choice(places)
    lost = where.pop(key)
    if rng.random() < 0.7:
        where[rng.choice(("", "x" * 3000, "\ud800", key + "_", "__metadata__", "../x"))] = lost
    return json.dumps(value).encode()


def _twice(text: bytes, rng: random.Random) -> bytes:
    """A field that is there twice."""
    value = _parsed(text)
    if not isinstance(value, dict) or not value:
        return text
    key = rng.choice(list(value))
    return text[: text.index(b"{") + 1] + json.dumps({key: rng.choice(NASTY[:12])})[1:-1].encode() + b"," + text[text.index(b"{") + 1 :]
