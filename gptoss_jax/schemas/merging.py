"""A schema and all that it is made of, `$ref` and `allOf`, as one set of keywords, as far as one set says the same."""

from collections.abc import Collection, Iterable, Mapping, Sequence
import dataclasses
import json

from gptoss_jax.schemas.pointers import LISTS, MAPS, SINGLE
from gptoss_jax.schemas.targets import ANNOTATIONS, Targets

OBJECT = ("properties", "required", "patternProperties", "additionalProperties")
ARRAY = ("prefixItems", "items")
VALUES = ("enum", "const")
UNIONS = ("anyOf", "oneOf")
_SHAPE = ("type", *VALUES, *OBJECT, *ARRAY, *UNIONS, "nullable")
_KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null", list: "array", dict: "object"}
RULES = (
    *("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"),
    *("minLength", "maxLength", "pattern", "format", "contentEncoding", "contentMediaType", "contentSchema"),
    *("minItems", "maxItems", "uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems"),
    *("minProperties", "maxProperties", "propertyNames", "dependentRequired", "dependentSchemas", "unevaluatedProperties"),
    *("not", "if", "then", "else", "deprecated", "readOnly", "writeOnly"),
    *("$dynamicRef", "$recursiveRef"),  # that `checked` left, for they name nothing here
)


@dataclasses.dataclass
class Merged:
    """What all parts of a schema say together.

    Attributes:
        keywords: the annotations, and what says which values there are and what they are made of. No `$ref`, no `allOf`.
        rules: of each part that has some, the other keywords that bind, and those that warn.
        more: schemas that hold as well, and that one set of keywords cannot say: recursive ones, and two unions.
        never: one part accepts nothing.
    """

    keywords: dict = dataclasses.field(default_factory=dict)
    rules: list[dict] = dataclasses.field(default_factory=list)
    more: list = dataclasses.field(default_factory=list)
    never: bool = False


def merged(schema: object, targets: Targets) -> Merged:
    """The parts of a schema of a root in 2020-12 form, put together. Where it is another name only, of the schema that has that name."""
    chain = targets.chain(schema)
    out, taken = Merged(), [schema, *chain][:-1] if chain else []
    todo, seen = [chain[-1] if chain else schema], {id(target) for target in chain}
    while todo:
        part = todo.pop()
        targets.look()
        if not isinstance(part, Mapping):
            out.never = out.never or part is False
            continue
        targets.spend(sum(len(value) for value in out.keywords.values() if isinstance(value, list | dict)))
        taken.append(part)
        _add(out, part)
        parts = []
        if "$ref" in part:
            target = targets.of(part["$ref"])
            if targets.recursive(target):
                out.more.append({"$ref": part["$ref"]})
            elif id(target) not in seen:
                parts.append(target)
                seen.add(id(target))
        todo += reversed([*parts, *part.get("allOf", ())])
    out.keywords |= annotations(taken)
    out.rules = _each_once([rules] for part in taken if (rules := {key: part[key] for key in RULES if key in part}))
    return out


def inlined(key: str, value: object, targets: Targets) -> object:
    """A keyword's value with the schemas that it refers to in their places; what holds itself is a reference inside itself."""
    if key in SINGLE:
        return _in_place(value, targets, ())
    if key in LISTS:
        return [_in_place(part, targets, ()) for part in value]
    return {name: _in_place(part, targets, ()) for name, part in value.items()} if key in MAPS else value


def _in_place(schema: object, targets: Targets, above: tuple[object, ...]) -> object:
    targets.look(len(above))
    if not isinstance(schema, Mapping):
        return schema
    out, parts = {}, []
    for key, value in schema.items():
        if key == "$ref":
            target = targets.of(value)
            if any(target is other for other in above):
                out[key] = value
            else:
                parts.append(_in_place(target, targets, (*above, target)))
        elif key in SINGLE:
            out[key] = _in_place(value, targets, above)
        elif key in LISTS:
            out[key] = [_in_place(part, targets, above) for part in value]
        elif key in MAPS and key not in ("$defs", "definitions"):
            out[key] = {name: _in_place(part, targets, above) for name, part in value.items()}
        elif key not in MAPS:
            out[key] = value
    if len(parts) == 1 and not out:
        return parts[0]
    return out | {"allOf": [*out.get("allOf", ()), *parts]} if parts else out


def annotations(parts: Collection[Mapping]) -> dict:
    """What several parts say about the same value."""
    out: dict = {}
    for key in ANNOTATIONS:
        given = [part[key] for part in parts if key in part]
        if given and key == "examples":
            out[key] = _each_once(given)
        elif given:
            out[key] = _paragraphs(given) if key == "description" else given[0]
    return out


def same(one: object, other: object) -> bool:
    """Whether two values are the same JSON; 1, 1.0 and true are not. Takes no longer than the smaller of them is large."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return len(one) == len(other) and all(key in other and same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other) if isinstance(one, float) else one == other


def types(keywords: Mapping) -> list[str] | None:
    """The types that keywords allow; None if they do not say."""
    given = keywords.get("type")
    return [given] if isinstance(given, str) else given


def values(keywords: Mapping) -> list:
    """The values that keywords name."""
    return [*([keywords["const"]] if "const" in keywords else []), *keywords.get("enum", ())]


def is_of(value: object, kinds: Iterable[str]) -> bool:
    """Whether a JSON value is of one of some types."""
    kind = "integer" if isinstance(value, float) and value.is_integer() else _KINDS[type(value)]
    return kind in kinds or (kind == "integer" and "number" in kinds)


def _add(out: Merged, part: Mapping) -> None:
    """Takes which values a part allows itself."""
    shape = {key: part[key] for key in _SHAPE if key in part}
    if _conflict(out.keywords, shape):
        out.more.append(shape)
        return
    for key, value in shape.items():
        out.keywords[key] = _both(key, out.keywords[key], value) if key in out.keywords else value


def _each_once(lists: Iterable[Sequence]) -> list:
    """The values of several lists, without those that stand in one before."""
    out, seen = [], set()
    for values in lists:
        spelt = [json.dumps(value, sort_keys=True) for value in values]
        out += [value for value, text in zip(values, spelt, strict=True) if text not in seen]
        seen.update(spelt)
    return out


def _paragraphs(texts: Sequence[str]) -> str:
    """Descriptions below each other, without those that stand in others already."""
    out, seen = [texts[0]], set(texts[0].split("\n\n"))
    for text in texts[1:]:
        if text and text not in seen:
            out.append(text)
            seen.update(text.split("\n\n"))
    return "\n\n".join(out)


def _both(key: str, one: object, other: object) -> object:
    """A keyword of which two parts have their own, which `_conflict` has let through."""
    if key == "properties":
        return one | {name: _all_of(one[name], part) if name in one else part for name, part in other.items()}
    if key == "required":
        return one + [name for name in other if name not in one]
    if key == "type":
        common = _common(types({key: one}), types({key: other}))
        return common[0] if len(common) == 1 else common
    if key == "nullable":
        return one or other
    return one if same(one, other) else _all_of(one, other)


def _all_of(one: object, other: object) -> object:
    if same(one, other):
        return one
    return {"allOf": [*one["allOf"], other]} if isinstance(one, dict) and list(one) == ["allOf"] else {"allOf": [one, other]}


def _common(one: list[str], other: list[str]) -> list[str]:
    integer = [name for name in one if name == "integer" and "number" in other and name not in other]
    narrowed = ["integer"] if "number" in one and "integer" in other and "number" not in other and "integer" not in one else []
    return [name for name in one if name in other] + integer + narrowed


def _conflict(one: Mapping, other: Mapping) -> bool:
    """Whether one set of keywords cannot say what the two say together."""
    if "type" in one and "type" in other and not _common(types(one), types(other)):
        return True
    if any(key in one and key in other and not same(one[key], other[key]) for key in UNIONS):
        return True
    given = [{key: part[key] for key in VALUES if key in part} for part in (one, other)]
    if all(given) and not same(*given):
        return True
    lists = [{key: part[key] for key in ARRAY if key in part} for part in (one, other)]
    if all(lists) and "prefixItems" in lists[0] | lists[1] and not same(*lists):
        return True
    return any(_passes_by(*parts) or _closes(*parts) for parts in ((one, other), (other, one)))


def _passes_by(one: Mapping, other: Mapping) -> bool:
    """Whether one has types or values for which the other, beside them, would say nothing."""
    kinds = types(one)
    if kinds is not None and not all(is_of(value, kinds) for value in values(other)):
        return True
    for kind, keys in (("object", OBJECT), ("array", ARRAY)):
        if any(key in other for key in keys) and (any(key in one for key in VALUES) or (kinds is not None and kind not in kinds)):
            return True
    return False


def _closes(one: Mapping, other: Mapping) -> bool:
    """Whether one says something about properties by another way than their names, and the other names some that it does not."""
    others = other.get("properties", {}).keys() - one.get("properties", {}).keys()
    if "patternProperties" in one:
        return any(key in other for key in OBJECT if key != "required")
    rest = one.get("additionalProperties", True)
    return rest is not True and (bool(others) or not same(rest, other.get("additionalProperties", rest)))
