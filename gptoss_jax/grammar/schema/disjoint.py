"""Whether no value satisfies two schemas at once, as far as their types, constants, bounds and required properties tell."""

from collections.abc import Iterable, Mapping, Sequence
import json

_KINDS = {"number": ("integer", "fraction")}  # a value is of one kind; a whole number is of two types
_EVERY = frozenset(("null", "boolean", "integer", "fraction", "string", "array", "object"))
_DEEPEST, _PARTS, _ITEMS, _NAMES, _LOOKS = 8, 64, 16, 64, 50_000  # beyond which nothing is proven


class Prover:
    """Proves schemas of one root apart, within so many looks. What it cannot prove need not be false."""

    def __init__(self, targets: Mapping[int, object]):
        """targets: what the $ref of a schema names, by the schema's id."""
        self._targets = targets
        self._looks = 0

    def overlap(self, shared: Mapping, schemas: Sequence[object]) -> tuple[int, int] | None:
        """The places of two schemas that one value may satisfy, one that satisfies shared too; None if there are none."""
        if self._told_apart([parts for schema in schemas if (parts := self._all((shared, schema))) is not None]):
            return None
        for i, one in enumerate(schemas):
            for j, other in enumerate(schemas[:i]):
                if not self.apart((shared, other), (shared, one)):
                    return j, i
        return None

    def apart(self, ones: Iterable[object], others: Iterable[object], depth: int = _DEEPEST) -> bool:
        """Whether no value satisfies all of ones and all of others."""
        self._looks += 1
        if self._looks > _LOOKS or depth == 0:
            return False
        ones, others = self._all(ones), self._all(others)
        if ones is None or others is None:
            return True
        values, other_values = _values(ones), _values(others)
        if values is not None and other_values is not None:
            return values.keys().isdisjoint(other_values)
        kinds = _kinds(ones, values) & _kinds(others, other_values)
        if all(self._apart_in(kind, ones, others, depth - 1) for kind in kinds):
            return True
        for these, those in ((ones, others), (others, ones)):
            for part in these:
                for key in ("anyOf", "oneOf"):
                    if key in part and not part.get("nullable") and all(self.apart((each,), those, depth - 1) for each in part[key]):
                        return True
        return False

    def _told_apart(self, alls: list[list[Mapping]]) -> bool:
        """Whether constants tell schemas apart, all at once: their own, or those of a property that all of them require."""
        if not alls:
            return True
        if _differ([_values(parts) for parts in alls]):
            return True
        if any(_kinds(parts, None) != {"object"} for parts in alls):
            return False
        names = set.intersection(*({name for part in parts for name in part.get("required", ())} for parts in alls))
        few = [name for name in sorted(names) if _values(self._all(_of_property(alls[0], name)) or ()) is not None]
        return any(_differ([_values(self._all(_of_property(parts, name)) or ()) for parts in alls]) for name in few[:_NAMES])

    def _apart_in(self, kind: str, ones: list[Mapping], others: list[Mapping], depth: int) -> bool:
        both = [*ones, *others]
        if kind in ("integer", "fraction"):
            return _none_between(both, "minimum", "maximum")
        if kind == "string":
            return _none_between(both, "minLength", "maxLength")
        if kind == "array":
            least = max((part.get("minItems", 0) for part in both), default=0)
            places = range(int(min(least, _ITEMS)))
            return _none_between(both, "minItems", "maxItems") or any(
                self.apart(_of_item(ones, i), _of_item(others, i), depth) for i in places
            )
        if kind == "object":
            names = sorted({name for part in both for name in part.get("required", ())})[:_NAMES]
            return _none_between(both, "minProperties", "maxProperties") or any(
                self.apart(_of_property(ones, name), _of_property(others, name), depth) for name in names
            )
        return False

    def _all(self, schemas: Iterable[object]) -> list[Mapping] | None:
        """The schemas that must hold where these must, by $ref and allOf too; None if one of them is false."""
        found, todo, seen = [], list(schemas), set()
        while todo and len(found) < _PARTS:
            schema = todo.pop()
            if schema is False:
                return None
            if not isinstance(schema, Mapping) or id(schema) in seen:
                continue
            seen.add(id(schema))
            if schema.get("nullable") is True and not schema.keys().isdisjoint(("$ref", "allOf", "anyOf", "oneOf")):
                continue  # null, or what it says: nothing that is known for sure
            found.append(schema)
            if "$ref" in schema:
                todo.append(self._targets.get(id(schema), True))
            todo += schema.get("allOf", ())
        return found


def _values(parts: Iterable[Mapping]) -> dict[str, object] | None:
    """The only values that satisfy all parts, by a text that equal ones share; None if they are not known to be few."""
    for part in parts:
        if "const" in part or "enum" in part:
            values = [part["const"]] if "const" in part else [*part["enum"]]
            return {_spelt(value): value for value in values + [None] * (part.get("nullable") is True)}
    return None


def _kinds(parts: Iterable[Mapping], values: Mapping[str, object] | None) -> set[str]:
    kinds = set(_EVERY) if values is None else {_kind(value) for value in values.values()}
    for part in parts:
        if "type" in part:
            types = [part["type"]] if isinstance(part["type"], str) else [*part["type"]]
            types += ["null"] * (part.get("nullable") is True)
            kinds &= {kind for type in types for kind in _KINDS.get(type, (type,))}
    return kinds


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, int | float):
        return "integer" if value == int(value) else "fraction"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _spelt(value: object) -> str:
    """A text that values which JSON Schema takes for equal have in common."""
    return json.dumps(_whole(value), sort_keys=True)


def _whole(value: object) -> object:
    if isinstance(value, float) and value == int(value):
        return int(value)
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return {name: _whole(inner) for name, inner in value.items()} if isinstance(value, Mapping) else value


def _differ(all_values: Sequence[Mapping[str, object] | None]) -> bool:
    if any(values is None for values in all_values):
        return False
    return sum(map(len, all_values)) == len({text for values in all_values for text in values})


def _none_between(parts: list[Mapping], least: str, most: str) -> bool:
    """Whether nothing is at least the greatest lower bound of parts and at most the least upper one."""
    low = max((part[least] for part in parts if least in part), default=None)
    high = min((part[most] for part in parts if most in part), default=None)
    over = max((part["exclusiveMinimum"] for part in parts if least == "minimum" and "exclusiveMinimum" in part), default=None)
    under = min((part["exclusiveMaximum"] for part in parts if least == "minimum" and "exclusiveMaximum" in part), default=None)
    return (
        (low is not None and high is not None and low > high)
        or (low is not None and under is not None and low >= under)
        or (over is not None and high is not None and over >= high)
        or (over is not None and under is not None and over >= under)
    )


def _of_property(parts: list[Mapping], name: str) -> list[object]:
    """What parts ask of the property of a name."""
    found = []
    for part in parts:
        if name in part.get("properties", ()):
            found.append(part["properties"][name])
        elif "patternProperties" not in part:
            found.append(part.get("additionalProperties", True))
    return found


def _of_item(parts: list[Mapping], place: int) -> list[object]:
    first = [(part.get("prefixItems", ()), part.get("items", True)) for part in parts]
    return [items[place] if place < len(items) else rest for items, rest in first]
