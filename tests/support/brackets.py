"""Brackets of TypeScript, of which strings and comments may hold any."""

import re

BETWEEN = re.compile(r'"(?:[^"\\]|\\.)*"|// .*|//$', re.MULTILINE)
"""A string or a comment."""


def balanced(text):
    """Whether brackets close each other outside strings and comments."""
    open_ones = []
    for sign in re.findall(r"[()\[\]{}]", BETWEEN.sub("", text)):
        if sign in "([{":
            open_ones.append(sign)
        elif not open_ones or open_ones.pop() + sign not in ("()", "[]", "{}"):
            return False
    return not open_ones
