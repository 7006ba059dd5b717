"""Which draft of JSON Schema a schema is of, and the same schema in the words of draft 2020-12, which all others here speak.

A schema is of the draft that its `$schema` names, 04 to 2020-12. Where it names none, or one that nobody here knows (servers write their
own address there), it is of 2020-12, and older words that can mean one thing only are taken for that: a list as `items`, a bool as
`exclusiveMinimum`, `dependencies`. Words that came after the draft that is named are taken for what they say.
"""

from collections.abc import Iterator, Mapping
import re

from gptoss_jax.schemas.pointers import LISTS, MAPS, SINGLE, Path, children, resolve

NEWEST = "2020-12"
OLD = ("draft-04", "draft-06", "draft-07")  # where what stands beside a $ref is not looked at
UNNAMED = ""
_SCHEMA = re.compile(r"\s*https?://json-schema\.org/(?:draft-0(\d)/|draft/(20\d\d-\d\d)/)(?:hyper-)?schema/?#?\s*")
_NAMED = {"4": "draft-04", "5": "draft-04", "6": "draft-06", "7": "draft-07", "2019-09": "2019-09", "2020-12": NEWEST}
_BEARING = {  # on values: what an old draft does not look at beside a $ref
    *("type", "enum", "const", "format", "pattern", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("minLength", "maxLength", "minItems", "maxItems", "uniqueItems", "minContains", "maxContains", "minProperties", "maxProperties"),
    *("required", "dependentRequired", "$id", *SINGLE, *LISTS, *(set(MAPS) - {"$defs", "definitions"})),
}
_WHERE_IT_IS = ("$schema", "$id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary")


def draft_of(schema: Mapping, around: str) -> str:
    """The draft that a schema names, of the one around it if it names none; draft-03 and older as they are called."""
    name = schema.get("$schema")
    if not isinstance(name, str):
        return around
    if not (found := _SCHEMA.fullmatch(name)):
        return UNNAMED
    return _NAMED.get(found[1] or found[2], UNNAMED if found[2] else f"draft-0{found[1]}")


def parts_of(schema: Mapping) -> Iterator[tuple[Path, dict, str]]:
    """Every schema inside a schema with its path and its draft, also what pointers name elsewhere; each once, and valid or not."""
    todo, later, seen, named = [(Path(), schema, UNNAMED)], [], set(), set()
    while todo or later:
        here, part, draft = todo.pop() if todo else later.pop()
        if not isinstance(part, Mapping) or id(part) in seen:
            continue
        seen.add(id(part))
        draft = draft_of(part, draft)
        yield here, part, draft
        if isinstance(ref := part.get("$ref"), str) and ref not in named:
            named.add(ref)
            later.append((Path(ref), resolve(schema, ref), draft))
        todo += reversed([(path, inner, draft) for path, inner in children(part, here)])


def is_older(part: Mapping, draft: str) -> bool:
    """Whether a schema, itself and not what stands in it, says something that is said otherwise in 2020-12."""
    return (
        isinstance(part.get("items"), list)
        or any(isinstance(part.get(key), bool) for key in ("exclusiveMinimum", "exclusiveMaximum"))
        or any(key in part for key in ("additionalItems", "dependencies"))
        or (draft in OLD and "$ref" in part and not _BEARING.isdisjoint(part))
    )


def modernise(part: dict, draft: str) -> None:
    """Puts one schema, valid in its draft, in the words of 2020-12; in place, and nothing that stands in it but what moves."""
    if draft in OLD and "$ref" in part:
        for key in _BEARING & part.keys():
            del part[key]
    for key, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(part.get(key), bool):
            if part.pop(key) and bound in part:
                part[key] = part.pop(bound)
    more = part.pop("additionalItems", None)
    if isinstance(part.get("items"), list):
        first = part.pop("items")
        part.pop("prefixItems", None)
        if first:
            part["prefixItems"] = first
        if more is not None:
            part["items"] = more
    for name, needs in part.pop("dependencies", {}).items():
        if isinstance(needs, list):
            names = part.setdefault("dependentRequired", {}).setdefault(name, [])
            names += [other for other in needs if other not in names]
        elif name in (others := part.setdefault("dependentSchemas", {})):
            others[name] = {"allOf": [others[name], needs]}
        else:
            others[name] = needs


def forget_names(part: dict, draft: str) -> None:
    """Drops what names a schema or its draft, once every reference to it is a pointer."""
    for key in (*_WHERE_IT_IS, *(["id"] if draft == "draft-04" else [])):
        part.pop(key, None)
