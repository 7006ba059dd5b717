"""Numbers in JSON that a float holds: schemas that bound none let 1e999 through, which no reader takes for a finite number.

What comes before is read byte by byte; a number may go on as long as the digits before its point and its exponent make at most 308. So a
number may end wherever the grammar lets it, and nothing is written that cannot be.
"""

from collections.abc import Sequence
import re

import numpy as np

MOST = 308  # 10**308 is a float, and 10**309 none
_GOES_ON = b"0123456789+-"
_ALONE = re.compile(rb"[eE]\+?[0-9]|[0-9]{50}")  # what may make a number too large, whatever comes before


class Dangerous:
    """The tokens of a vocabulary that can make a number too large.

    Attributes:
        digits: ids that begin with a digit or a sign, and their bytes.
        others: ids that hold an exponent, or very many digits.
    """

    def __init__(self, tokens: Sequence[bytes]):
        self.digits = [(i, data) for i, data in enumerate(tokens) if data[:1] and data[0] in _GOES_ON]
        self.others = [(i, data) for i, data in enumerate(tokens) if _ALONE.search(data)]


class Numbers:
    """How far a text of JSON has come, as far as its numbers go. Immutable."""

    __slots__ = ("digits", "escaped", "exponent", "quoted", "where")

    def __init__(self, quoted=False, escaped=False, where="", digits=0, exponent=""):
        self.quoted, self.escaped = quoted, escaped  # in a string, behind a backslash
        self.where = where  # in a number: "whole", "fraction" or "exponent"; else ""
        self.digits = digits  # before the point
        self.exponent = exponent  # with its sign

    def after(self, data: bytes) -> "Numbers | None":
        """What follows data; None if that makes a number too large."""
        now = Numbers(self.quoted, self.escaped, self.where, self.digits, self.exponent)
        for byte in data:
            if not now._take(byte):
                return None
        return now

    def forbid(self, out: np.ndarray, dangerous: Dangerous) -> None:
        """Takes the ids that would make a number too large out of a mask."""
        close = self.where == "exponent" or (self.where == "whole" and self.digits > MOST - 100)
        for i, data in (dangerous.digits if close else []) + dangerous.others:
            if out[i // 32] >> np.uint32(i % 32) & 1 and self.after(data) is None:
                out[i // 32] &= ~np.uint32(1 << i % 32)

    def _take(self, byte: int) -> bool:
        char = chr(byte)
        if self.quoted:
            self.escaped, self.quoted = char == "\\" and not self.escaped, char != '"' or self.escaped
        elif char.isascii() and char.isdigit():
            return self._digit(char)
        elif self.where == "exponent" and char in "+-":
            self.exponent = char
        elif self.where == "whole" and char == ".":
            self.where = "fraction"
        elif self.where and char in "eE":
            self.where, self.exponent = "exponent", ""
        else:
            self.quoted, self.where, self.digits, self.exponent = char == '"', "", 0, ""
        return True

    def _digit(self, char: str) -> bool:
        if self.where in ("", "whole"):
            self.where, self.digits = "whole", self.digits + 1
            return self.digits <= MOST
        if self.where == "exponent":
            self.exponent = (self.exponent + char).replace("+", "").lstrip("0")
            return self.exponent.startswith("-") or self.digits + int(self.exponent or 0) <= MOST
        return True
