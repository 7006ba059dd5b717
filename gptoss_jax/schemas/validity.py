"""Whether a schema is valid in its draft. jsonschema takes a third of a millisecond a schema: it only looks at what looks wrong here.

Patterns are the library's to judge that enforces them: Python has another language of them, and takes long over some.
"""

from collections.abc import Iterable, Mapping
import json
from urllib.parse import urlsplit

from gptoss_jax.quoting import quoted
from gptoss_jax.schemas.drafts import NEWEST, UNNAMED
from gptoss_jax.schemas.pointers import LISTS, MAPS, SINGLE, Path

_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")


def _is_address(value: str) -> bool:
    try:
        urlsplit(value)
        return True
    except ValueError:
        return False


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value)) and len(set(value)) == len(value)


def _is_schema(value: object) -> bool:
    return isinstance(value, Mapping | bool)


def _is_dict(value: object) -> bool:
    return isinstance(value, Mapping)


def _are_different(value: object) -> bool:
    return isinstance(value, list) and 0 < len({json.dumps(item, sort_keys=True) for item in value}) == len(value)


def _are_needs(value: object) -> bool:
    return isinstance(value, Mapping) and all(_is_schema(needs) or _are_names(needs) for needs in value.values())


_PLAIN = {
    **dict.fromkeys(("title", "description", "format", "pattern", "contentEncoding", "contentMediaType"), _is_text),
    **dict.fromkeys(("$ref", "$id", "$schema", "$anchor", "$dynamicRef", "$dynamicAnchor", "$comment"), _is_text),
    **dict.fromkeys(("deprecated", "readOnly", "writeOnly", "uniqueItems"), lambda value: isinstance(value, bool)),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains"), _is_count
    ),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _is_number),
    **dict.fromkeys(("enum", "examples"), lambda value: isinstance(value, list)),
    **dict.fromkeys(SINGLE, _is_schema),
    **dict.fromkeys(LISTS, lambda value: isinstance(value, list) and len(value) > 0 and all(map(_is_schema, value))),
    **dict.fromkeys(MAPS, lambda value: isinstance(value, Mapping) and all(map(_is_schema, value.values()))),
    "type": lambda value: value in _TYPES if isinstance(value, str) else _are_names(value) and bool(value) and set(value) <= set(_TYPES),
    "required": _are_names,
    "multipleOf": lambda value: _is_number(value) and value > 0,
    "dependentRequired": lambda value: isinstance(value, Mapping) and all(map(_are_names, value.values())),
    "dependencies": _are_needs,
    "$vocabulary": _is_dict,
}
_OLDER = _PLAIN | {
    "items": lambda value: _is_schema(value) or isinstance(value, list) and all(map(_is_schema, value)),
    "$recursiveRef": _is_text,
    "$recursiveAnchor": lambda value: isinstance(value, bool),
}
_BOUNDS = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}
_PLAIN_IN = {
    UNNAMED: _OLDER,
    **dict.fromkeys(("2019-09", "draft-07", "draft-06"), _OLDER),
    "draft-04": {
        **_OLDER,
        "id": _is_text,
        "enum": _are_different,
        "required": lambda value: _are_names(value) and bool(value),
        **dict.fromkeys(_BOUNDS, lambda value: isinstance(value, bool)),
        **dict.fromkeys(SINGLE, _is_dict),
        "items": lambda value: _is_dict(value) or isinstance(value, list) and all(map(_is_dict, value)),
        **dict.fromkeys(("additionalItems", "additionalProperties"), _is_schema),
        **dict.fromkeys(LISTS, lambda value: isinstance(value, list) and len(value) > 0 and all(map(_is_dict, value))),
        **dict.fromkeys(MAPS, lambda value: isinstance(value, Mapping) and all(map(_is_dict, value.values()))),
        "dependencies": _are_needs,
    },
    NEWEST: _PLAIN,
}
_OTHERWISE = {"items", "additionalItems", "dependencies", "enum", "required", *_BOUNDS}  # in older drafts than the newest
_OF_JSONSCHEMA = {"draft-04": "Draft4", "draft-06": "Draft6", "draft-07": "Draft7", "2019-09": "Draft201909", NEWEST: "Draft202012"}


def fault(parts: Iterable[tuple[Path, Mapping, str]]) -> str:
    """What is wrong with a schema and where, "at $.type: ..."; "" if each of its parts is valid in its draft."""
    for here, part, draft in parts:
        if draft not in _PLAIN_IN:
            return f"at {here}.$schema: {draft}, which is older than draft-04, the oldest that is read here"
        plain = _PLAIN_IN[draft]
        odd = {key: value for key, value in part.items() if key in plain and not plain[key](value)}
        if draft == UNNAMED:  # a bool there is of draft-04, true beside what it is about
            odd = {
                key: value
                for key, value in odd.items()
                if not (key in _BOUNDS and (value is False or value is True and _BOUNDS[key] in part))
            }
        elif draft == "draft-04":
            odd |= {key: part[key] for key, bound in _BOUNDS.items() if key in part and bound not in part}
        name = "id" if draft == "draft-04" else "$id"
        if isinstance(part.get(name), str) and not _is_address(part[name]):
            return f"at {here}.{name}: {quoted(part[name])}, which is no address"
        if isinstance(part.get("items"), list) and "prefixItems" in part:
            return f"at {here}.items: a list, beside prefixItems"
        later = {key: value for key, value in odd.items() if key not in _OTHERWISE}
        if found := odd and (_said_by_jsonschema(odd, here, draft) or _said_by_jsonschema(later, here, NEWEST)):
            return found
    return ""


def _said_by_jsonschema(odd: Mapping, here: Path, draft: str) -> str:
    import jsonschema

    looked_at = {key: {} if key in SINGLE and isinstance(value, Mapping) else _alone(value) for key, value in odd.items()}
    validator = getattr(jsonschema, f"{_OF_JSONSCHEMA[draft or NEWEST]}Validator")
    try:
        validator.check_schema(looked_at, format_checker=jsonschema.FormatChecker(formats=()))
    except jsonschema.SchemaError as error:
        return f"at {here}{error.json_path[1:]}: {error.message[:200]}"
    return ""


def _alone(value: object) -> object:
    """What stands under a keyword, its schemas empty: they are looked at by themselves, and jsonschema goes into them by recursion."""
    if isinstance(value, Mapping):
        return {name: {} if isinstance(inner, Mapping) else inner for name, inner in value.items()}
    return [{} if isinstance(inner, Mapping) else inner for inner in value] if isinstance(value, list) else value
