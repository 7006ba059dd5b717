"""The schemas within a schema, and what a reference in it names."""

from collections.abc import Iterator, Mapping
import dataclasses
import re
from urllib.parse import unquote

LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
SINGLE = (
    *("items", "additionalItems", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties", "contentSchema"),
)
POINTER = re.compile(r"#(/.*)?", re.DOTALL)
URI = re.compile(r"#(/([\w.~!$&'()*+,;=:@/?-]|%[0-9a-fA-F]{2})*)?", re.ASCII)  # a pointer that a URI may hold as it is


@dataclasses.dataclass(frozen=True)
class Path:
    """Where a schema stands, spelt only where it is told: a schema may hold many, each with long names above it."""

    step: str = "$"
    above: "Path | None" = None

    def __str__(self) -> str:
        steps, here = [], self
        while here:
            steps.append(here.step)
            here = here.above
        text = "".join(reversed(steps))
        return text if len(text) <= 200 else f"{text[:197]}..."


def subschemas(schema: object) -> Iterator[tuple[Path, Mapping]]:
    """Every schema inside a valid schema with its path, itself first, those it refers to only where they stand."""
    todo = [(Path(), schema)]
    while todo:
        here, inner = todo.pop()
        if isinstance(inner, Mapping):
            yield here, inner
            todo += reversed(list(children(inner, here)))


def reachable(schema: Mapping) -> Iterator[tuple[Path, Mapping]]:
    """As `subschemas`, and what references name, wherever that stands; each part once, and valid or not."""
    todo, seen, named = [(Path(), schema)], set(), set()
    while todo:
        here, inner = todo.pop()
        if not isinstance(inner, Mapping) or id(inner) in seen:
            continue
        seen.add(id(inner))
        yield here, inner
        if isinstance(ref := inner.get("$ref"), str) and ref not in named:
            named.add(ref)
            todo.append((Path(ref), resolve(schema, ref)))
        todo += reversed(list(children(inner, here)))


def children(schema: Mapping, here: Path) -> Iterator[tuple[Path, object]]:
    """What stands directly in a schema, of whatever draft, where a schema may stand, with its path."""
    for key in SINGLE:
        if key in schema:
            yield Path(f".{key}", here), schema[key]
    for key in (*LISTS, "items"):
        if isinstance(parts := schema.get(key), list):
            yield from ((Path(f".{key}[{i}]", here), part) for i, part in enumerate(parts))
    for key in MAPS:
        if isinstance(parts := schema.get(key), Mapping):
            yield from ((Path(f".{key}.{name}", here), part) for name, part in parts.items())


def resolve(schema: Mapping, ref: str) -> object:
    """What a pointer such as "#/$defs/node" names; None for every other kind of reference and where there is nothing."""
    if not POINTER.fullmatch(ref):
        return None
    here: object = schema
    for step in unquote(ref).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(here, list) and step.isdecimal() and int(step) < len(here):
            here = here[int(step)]
        elif isinstance(here, Mapping) and step in here:
            here = here[step]
        else:
            return None
    return here
