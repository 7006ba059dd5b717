"""Whether a schema is valid. jsonschema takes a third of a millisecond a schema: it only says what is wrong with what looks so here.

Patterns are the library's to judge: Python has another language of them, and takes long over some.
"""

from collections.abc import Mapping

from gptoss_jax.schemas.pointers import LISTS, MAPS, SINGLE, Path, reachable

_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")


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
    "$vocabulary": lambda value: isinstance(value, Mapping),
}


def fault(schema: Mapping) -> str:
    """What is wrong with a schema, or with what it refers to, and where, "at $.type: ..."; "" if it is valid in draft 2020-12."""
    for here, part in reachable(schema):
        odd = {key: value for key, value in part.items() if key in _PLAIN and not _PLAIN[key](value)}
        if found := odd and _said_by_jsonschema(odd, here):
            return found
    return ""


def _said_by_jsonschema(odd: Mapping, here: Path) -> str:
    import jsonschema

    try:
        jsonschema.Draft202012Validator.check_schema(odd, format_checker=jsonschema.FormatChecker(formats=()))
    except jsonschema.SchemaError as error:
        return f"at {here}{error.json_path[1:]}: {error.message[:200]}"
    return ""
