"""Docstrings as the API's pages show them: with shapes, with an entry for each name, and with stars that are stars."""

import re

import griffe

SECTION = re.compile(r"(Args|Attributes|Raises):\n")
SHARED = re.compile(r"^( +)(\w+(?:, \w+)+):(.*(?:\n\1 +.*)*)", re.M)
STAR = re.compile(r"(`[^`]*`|^ +\*+\w+:)|\*", re.M)  # but for code and entries such as "**options:"
ARGUMENT = re.compile(r"^    (\w+): .*,\s+# (\[.*)$", re.M)
RESULT = re.compile(r"^\) -> .*:\s+# (.*)$", re.M)


class Docstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring is None:
            return
        first, *rest = [_readable(paragraph) for paragraph in obj.docstring.value.split("\n\n")]
        if obj.is_function and (shapes := _shapes(obj)):
            rest = [f"Shapes: {', '.join(shapes)}.", *rest]
        obj.docstring.value = "\n\n".join([first, *rest])


def _readable(paragraph: str) -> str:
    if paragraph.startswith(" "):  # code
        return paragraph
    if SECTION.match(paragraph):  # "a, b: of both" becomes an entry for each, which then has its own type
        paragraph = SHARED.sub(lambda m: "\n".join(f"{m[1]}{name}:{m[3]}" for name in m[2].split(", ")), paragraph)
    return STAR.sub(lambda m: m[1] or r"\*", paragraph)


def _shapes(function: griffe.Function) -> list[str]:
    """Of arrays, which the code has in comments behind arguments and results, and a signature does not show."""
    header = function.source.split('"""')[0]
    shapes = [f"`{name} {shape}`" for name, shape in ARGUMENT.findall(header)]
    return shapes + [f"result `{shape}`" for shape in RESULT.findall(header)]
