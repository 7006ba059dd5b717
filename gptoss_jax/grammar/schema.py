"""A JSON schema at the door: plain, valid data of which some value can be written; every refusal says where.

llguidance refuses most of what it cannot honour, in `matcher.py`. Here is refused what it would let through.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal
import functools
import json
import re
from urllib.parse import unquote

_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_SINGLE = ("items", "additionalProperties")


def canonical(schema: object, where: str) -> str:
    """The schema as compact JSON text. The order of keys is kept: properties are written in it.

    Args:
        schema: a JSON schema, draft 2020-12.
        where: what the caller calls it, for the refusals.

    Raises:
        ValueError: not JSON, not a valid schema, or one that no value or no finite value satisfies, as far as is seen here.
    """
    if schema is False:
        raise ValueError(f"{where} must accept some value; got false, which accepts none; pass a schema of an object")
    if schema is not True and not isinstance(schema, Mapping):
        raise ValueError(f'{where} must be a JSON schema such as {{"type": "object", ...}}; got {type(schema).__name__}; pass a dict')
    try:
        text = json.dumps({} if schema is True else schema, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} must hold nothing but JSON; got {str(error)[:200]}; convert the values first") from error
    _check(text, where)
    return text


@functools.lru_cache(maxsize=256)
def _check(text: str, where: str) -> None:
    import jsonschema

    schema = json.loads(text, parse_int=lambda digits: _exact(digits, int, where), parse_float=lambda digits: _exact(digits, float, where))
    if "x-guidance" in schema:
        raise ValueError(f"{where} must not set x-guidance, which would change the grammar's rules; got it at $; drop it")
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
        _refuse_the_endless(schema, where)
    except jsonschema.SchemaError as error:
        raise ValueError(f"{where} must be a valid JSON schema; got at {error.json_path}: {error.message[:200]}; correct it") from error
    except RecursionError as error:
        raise ValueError(f"{where} must not be nested as deeply as Python's recursion limit; flatten it") from error


def subschemas(schema: object, path: str = "$") -> Iterator[tuple[str, Mapping]]:
    """Every schema inside schema with its path, itself first, those it refers to only where they stand."""
    if not isinstance(schema, Mapping):
        return
    yield path, schema
    for key in _SINGLE:
        yield from subschemas(schema.get(key), f"{path}.{key}")
    for key in _LISTS:
        for i, part in enumerate(schema.get(key, ())):
            yield from subschemas(part, f"{path}.{key}[{i}]")
    for key in _MAPS:
        for name, part in schema.get(key, {}).items():
            yield from subschemas(part, f"{path}.{key}.{name}")


def _exact(digits: str, kind: type, where: str) -> int | float:
    value, decimal = kind(digits), Decimal(digits).normalize()
    short = kind is int or (len(decimal.as_tuple().digits) <= 15 and abs(decimal.as_tuple().exponent) <= 22)
    if abs(value) > 2**53 or not short:  # llguidance reads doubles, and reads longer ones a bit wrong
        raise ValueError(
            f"{where} must hold numbers up to 2**53, fractions of 15 digits, or they would be rounded; got {digits[:40]}; shorten it"
        )
    return value


def _refuse_the_endless(schema: Mapping, where: str) -> None:
    """Refuses schemas that only an endless value satisfies, and counts of properties that the grammar cannot keep."""
    targets: dict[str, object] = {}
    todo = [("$", schema)]
    while todo:
        start, inner = todo.pop()
        for path, part in subschemas(inner, start):
            least, named = part.get("minProperties", 0), len(part.get("required", ()))
            if least > max(1, named):
                raise ValueError(
                    f"{where} must require by name as many properties as its minProperties; got {least} and {named} at {path}; the names "
                    "that a model invents may repeat, name more in required"
                )
            if (ref := part.get("$ref")) is not None and ref not in targets:
                targets[ref] = _resolve(schema, ref)
                todo.append((ref, targets[ref]))
    finite = {ref for ref, target in targets.items() if target is None}  # llguidance says what is wrong with those
    while more := {ref for ref, target in targets.items() if ref not in finite and _finite(target, finite)}:
        finite |= more
    endless = sorted(targets.keys() - finite)
    if endless and not _finite(schema, finite):
        raise ValueError(
            f"{where} must accept some value that ends; got {', '.join(endless)}, which always requires itself; "
            'let the recursion end, with "anyOf": [..., {"type": "null"}] or without "required"'
        )


def _finite(schema: object, known: set[str]) -> bool:
    """False if no finite value satisfies schema when the $refs outside known are satisfied by none."""
    if not isinstance(schema, Mapping):
        return schema is not False
    if "$ref" in schema and schema["$ref"] not in known:
        return False
    parts = list(schema.get("allOf", ()))
    if schema.get("type") in ("object", ["object"]):
        rest = True if "patternProperties" in schema else schema.get("additionalProperties", True)
        parts += [schema.get("properties", {}).get(name, rest) for name in schema.get("required", ())]
    if schema.get("type") in ("array", ["array"]):
        first, least = schema.get("prefixItems", []), schema.get("minItems", 0)
        parts += first[: int(least)] + [schema.get("items", True)] * (least > len(first))
    if not all(_finite(part, known) for part in parts):
        return False
    return all(any(_finite(part, known) for part in schema[key]) for key in ("anyOf", "oneOf") if key in schema)


def _resolve(schema: Mapping, ref: str) -> object:
    """What a pointer such as "#/$defs/node" names; None for every other kind of reference and where there is nothing."""
    if not re.fullmatch(r"#(/.*)?", ref, re.DOTALL):
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
