"""What the references of a schema name, by pointer, by anchor or by address, and those references as pointers from its root."""

from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote

from gptoss_jax.schemas.drafts import draft_of
from gptoss_jax.schemas.pointers import URI, Path, children, resolve

Reference = tuple[dict, str, object]  # a schema, its keyword, what that names
_KEYWORDS = ("$ref", "$dynamicRef", "$recursiveRef")
_SPECIFICATIONS = {"draft-04": "DRAFT4", "draft-06": "DRAFT6", "draft-07": "DRAFT7", "2019-09": "DRAFT201909"}


def are_plain(schema: Mapping, parts: Sequence[tuple[Path, dict, str]]) -> bool:
    """Whether every reference is a pointer from the root of the schema, spelt as URIs are."""
    for _, part, draft in parts:
        name = part.get("id" if draft == "draft-04" else "$id")
        if part is not schema and isinstance(name, str) and not name.startswith("#"):
            return False
        if any(key in part for key in _KEYWORDS[1:]) or not URI.fullmatch(part.get("$ref", "#")):
            return False
    return True


def references(schema: Mapping, parts: Sequence[tuple[Path, dict, str]]) -> list[Reference]:
    """The references of a valid schema that name something in it; others are left out."""
    if not are_plain(schema, parts):
        return list(_by_library(schema))
    found = [(part, "$ref", resolve(schema, part["$ref"])) for _, part, _ in parts if "$ref" in part]
    return [reference for reference in found if isinstance(reference[2], Mapping | bool)]


def _by_library(schema: Mapping) -> Iterator[Reference]:
    """As `references`, each part looked at from where it stands: an address in it moves what stands further in."""
    from referencing import Registry, exceptions
    from referencing import jsonschema as drafts

    def resource(part: object, draft: str):
        return getattr(drafts, _SPECIFICATIONS.get(draft, "DRAFT202012")).create_resource(part)

    draft = draft_of(schema, "")
    todo, seen = [(Registry().resolver_with_root(resource(schema, draft)), schema, draft)], set()
    while todo:
        above, part, draft = todo.pop()
        if not isinstance(part, Mapping) or id(part) in seen:
            continue
        seen.add(id(part))
        draft = draft_of(part, draft)
        here = above.in_subresource(resource(part, draft))
        for key in _KEYWORDS:
            if key not in part:
                continue
            try:
                found = drafts.lookup_recursive_ref(here) if key == "$recursiveRef" else here.lookup(part[key])
            except (exceptions.Unresolvable, ValueError, AttributeError, TypeError):  # the last two of lists and bools that a draft has not
                continue
            if isinstance(found.contents, Mapping | bool):
                yield part, key, found.contents
            todo.append((found.resolver, found.contents, draft))
        todo += [(here, inner, draft) for _, inner in children(part, Path())]


def repoint(schema: dict, found: Sequence[Reference]) -> None:
    """Points each reference to where what it names stands now; what stands nowhere any more gets a place in the root's $defs."""
    places: dict[int, tuple[int, str] | None] = {id(schema): None}
    _place(schema, places)
    for part, key, target in found:
        if key != "$ref":
            del part[key]
        if not isinstance(target, dict):
            part.pop("$ref", None)
            part.setdefault("allOf", []).append(target)
            continue
        if id(target) not in places:
            shelf = schema.setdefault("$defs", {})
            name = next(name for i in range(len(shelf) + 1) if (name := f"beside-{i}") not in shelf)
            shelf[name] = target
            places.setdefault(id(shelf), (id(schema), "$defs"))
            places[id(target)] = id(shelf), name
            _place(target, places)
        pointer = _pointer(target, places)
        if key != "$ref" and "$ref" in part:
            part.setdefault("allOf", []).append({"$ref": pointer})
        else:
            part["$ref"] = pointer


def _place(value: object, places: dict) -> None:
    """Writes down where every container in a value stands: the id of what holds it, and the step from there."""
    todo = [value]
    while todo:
        here = todo.pop()
        steps = here.items() if isinstance(here, dict) else enumerate(here)
        for step, inner in steps:
            if isinstance(inner, dict | list):
                places[id(inner)] = id(here), str(step)
                todo.append(inner)


def _pointer(target: object, places: Mapping) -> str:
    steps, here = [], places[id(target)]
    while here is not None:
        steps.append(quote(here[1].replace("~", "~0").replace("/", "~1"), safe="~!$&'()*+,;=:@"))
        here = places[here[0]]
    return "/".join(["#", *reversed(steps)])
