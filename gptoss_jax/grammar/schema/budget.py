"""How large a JSON schema may be, counted as the library will read it: references followed, combinations multiplied out."""

from collections.abc import Mapping
import dataclasses
from decimal import Decimal
import math

from gptoss_jax.grammar.budget import LITERAL, PATTERNS, count_regex
from gptoss_jax.schemas.pointers import reachable, resolve
from gptoss_jax.schemas.size import SCHEMAS, at_most

PROPERTIES, OPTIONAL = 5_000, 2_000  # names in one object; of them, names that are not required
SQUARES = 30_000_000  # of the names of all objects, each object's by itself
PATTERN_PROPERTIES = 32  # in one patternProperties
VALUES = 10_000  # in all of enum and const
DEPTH = 250  # schemas in each other, references followed
COMBINED, COPIED = 20_000, 5_000_000  # schemas that allOf and its like make of each other; those that are copied for it
REGEXES = 4  # that one text must match
MULTIPLE = 10_000  # the least number that is a multiple of all that multipleOf asks for

_LISTS, _MAPS, _SINGLE = ("prefixItems",), ("properties", "patternProperties"), ("items", "additionalProperties")


def count_schema(schema: Mapping, where: str) -> None:
    """Raises a ValueError if a valid schema is more than the library can read in a second."""
    schemas = squares = values = 0
    patterns: list[str] = []
    for _, part in reachable(schema):
        schemas += 1
        at_most(schemas, SCHEMAS, "schemas", where)
        named, required = part.get("properties", {}), part.get("required", ())
        names = len(named.keys() | set(required))
        at_most(names, PROPERTIES, "properties in one object", where)
        optional = names - len(set(required))
        at_most(optional, OPTIONAL, "properties in one object that are not required", where)
        squares += names * names + 10 * names * optional
        at_most(squares, SQUARES, "pairs of properties of one object", where)
        at_most(len(part.get("patternProperties", ())), PATTERN_PROPERTIES, "patternProperties in one object", where)
        patterns += [*part.get("patternProperties", ()), part.get("pattern", "")]
        literals = [*part.get("enum", ()), *([part["const"]] if "const" in part else ())]
        values += _values(literals, where)
        at_most(values, VALUES, "values in enum and const", where)
        for name in named.keys() | set(required):
            at_most(len(name), LITERAL, "characters in one name", where)
    count_regex(patterns, where, PATTERNS)
    _Sizes(schema, where).of(schema, 1)


def _values(literals: list, where: str) -> int:
    count, todo = 0, list(literals)
    while todo:
        value = todo.pop()
        count += 1
        if isinstance(value, str):
            at_most(len(value), LITERAL, "characters in one text of enum or const", where)
        elif isinstance(value, list):
            todo += value
        elif isinstance(value, Mapping):
            todo += [*value, *value.values()]
    return count


@dataclasses.dataclass(frozen=True)
class _Size:
    """Of a schema: the alternatives it has, there and further in; the schemas in it; what must hold for one text or number."""

    here: int = 1
    within: int = 1
    schemas: int = 1
    regexes: int = 0
    multiple: int = 1


class _Sizes:
    """Sizes of the schemas of one root, each target of a reference measured once, in the library's order."""

    def __init__(self, root: Mapping, where: str):
        self._root, self._where = root, where
        self._known: dict[str, _Size] = {}

    def of(self, schema: object, depth: int) -> _Size:
        """Raises a ValueError if the schema is above a limit."""
        at_most(depth, DEPTH, "schemas in each other where references are followed", self._where)
        if not isinstance(schema, Mapping):
            return _Size()
        inner = [part for key in _SINGLE for part in [schema.get(key)] if isinstance(part, Mapping)]
        inner += [part for key in _MAPS for part in schema.get(key, {}).values()]
        inner += [part for key in _LISTS for part in schema.get(key, ())]
        sizes = [self.of(part, depth + 1) for part in inner]
        merged = [
            _Size(
                within=max((size.within for size in sizes), default=1),
                schemas=1 + sum(size.schemas for size in sizes),
                regexes=max([size.regexes for size in sizes] + [int("pattern" in schema) + int("format" in schema)]),
                multiple=max([size.multiple for size in sizes] + [_whole(schema.get("multipleOf", 1))]),
            )
        ]
        for key in ("anyOf", "oneOf"):
            if key in schema:
                merged.append(_either([self.of(part, depth + 1) for part in schema[key]]))
        if "enum" in schema:
            values = max(1, len(schema["enum"]))
            merged.append(_Size(here=values, within=values, schemas=values))
        merged += [self.of(part, depth + 1) for part in schema.get("allOf", ())]
        if "$ref" in schema:
            merged.append(self._target(schema["$ref"], depth))
        return self._all(merged)

    def _target(self, ref: str, depth: int) -> _Size:
        if ref not in self._known:
            self._known[ref] = _Size()  # where it stands in itself
            self._known[ref] = self.of(resolve(self._root, ref), depth)
        return self._known[ref]

    def _all(self, sizes: list[_Size]) -> _Size:
        sizes = [size for size in sizes if size != _Size()]
        if len(sizes) < 2:
            found = sizes[0] if sizes else _Size()
            at_most(found.multiple, MULTIPLE, "as the least common multiple of multipleOf", self._where)
            return found
        here, within = math.prod(size.here for size in sizes), math.prod(size.within for size in sizes)
        combined = here * math.ceil(sum(size.schemas / size.here for size in sizes))
        copied = within * math.ceil(sum(size.schemas / size.within for size in sizes))
        found = _Size(here, within, combined, sum(size.regexes for size in sizes), math.prod(size.multiple for size in sizes))
        at_most(combined, COMBINED, "schemas after allOf, anyOf and $ref are combined", self._where)
        at_most(copied, COPIED, "schemas to combine with each other", self._where)
        at_most(found.regexes, REGEXES, "patterns and formats for one text", self._where)
        at_most(found.multiple, MULTIPLE, "as the least common multiple of multipleOf", self._where)
        return found


def _either(sizes: list[_Size]) -> _Size:
    return _Size(
        here=sum(size.here for size in sizes),
        within=sum(size.within for size in sizes),
        schemas=1 + sum(size.schemas for size in sizes),
        regexes=max((size.regexes for size in sizes), default=0),
        multiple=max((size.multiple for size in sizes), default=1),
    )


def _whole(number: int | float) -> int:
    """The digits of a number as a whole one: 25 of 0.25."""
    sign, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    return int("".join(map(str, digits))) * 10 ** max(0, exponent if isinstance(exponent, int) else 0)
