"""A JSON schema at the door: plain, valid data of which some value can be written; every refusal says where.

llguidance refuses what is left that it cannot honour, in `compiling.py`. Here is refused what it would let through.
"""

from collections.abc import Mapping
from decimal import Decimal
import json

from gptoss_jax.grammar.kept import Kept
from gptoss_jax.grammar.schema.budget import count_schema
from gptoss_jax.grammar.schema.followed import followed
from gptoss_jax.quoting import quoted
from gptoss_jax.schemas.checking import as_text, current
from gptoss_jax.schemas.pointers import reachable, resolve
from gptoss_jax.schemas.size import at_most

_FURTHEST = 2**53
_LOOKS = 200_000  # at schemas for an end


def canonical(schema: object, where: str) -> str:
    """The schema as compact JSON text in the keywords that a grammar follows. Properties are written in their order.

    Args:
        schema: a JSON schema of the draft that it names, see `schemas.drafts`.
        where: what the caller calls it, for the refusals.

    Raises:
        ValueError: not JSON, not a valid schema, or one that no value or no finite value satisfies, as far as is seen here.
    """
    if schema is False:
        raise ValueError(f"{where} must accept some value; got false, which accepts none; pass a schema of an object")
    if schema is not True and not isinstance(schema, Mapping):
        raise ValueError(f'{where} must be a JSON schema such as {{"type": "object", ...}}; got {type(schema).__name__}; pass a dict')
    text = as_text({} if schema is True else schema, where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} must hold nothing but JSON; got {str(error)[:200]}; drop the lone surrogate") from error
    return _checked.get(text, len(text), lambda: _check(text, where))


_checked: Kept[str] = Kept(256, 4_000_000)


def _check(text: str, where: str) -> str:
    schema = json.loads(text)
    if "x-guidance" in schema:
        raise ValueError(f"{where} must not set x-guidance, which would change the grammar's rules; got it at $; drop it")
    try:
        schema = followed(current(schema, where), where)
        for _, part in reachable(schema):
            _narrow(part)
        count_schema(schema, where)
        _refuse_the_endless(schema, where)
    except RecursionError as error:
        raise ValueError(f"{where} must not be nested as deeply as Python's recursion limit; got more; flatten it") from error
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    json.loads(text, parse_int=lambda digits: _exact(digits, int, where), parse_float=lambda digits: _exact(digits, float, where))
    return text


def _narrow(part: dict) -> None:
    """Bounds that are further from 0 than the numbers that llguidance reads exactly become the furthest of those."""
    for bound, exclusive, sign in (("maximum", "exclusiveMaximum", 1), ("minimum", "exclusiveMinimum", -1)):
        for key in (bound, exclusive):
            if sign * part.get(key, 0) > _FURTHEST:
                del part[key]
                part.setdefault(bound, sign * _FURTHEST)
    for key in ("maxLength", "maxItems", "maxProperties"):
        if part.get(key, 0) > _FURTHEST:  # which nothing reaches
            del part[key]


def _exact(digits: str, kind: type, where: str) -> int | float:
    value, decimal = kind(digits), Decimal(digits).normalize()
    short = kind is int or (len(decimal.as_tuple().digits) <= 15 and abs(decimal.as_tuple().exponent) <= 22)
    if abs(value) > _FURTHEST or not short:  # llguidance reads doubles, and reads longer ones a bit wrong
        raise ValueError(
            f"{where} must hold numbers up to 2**53, fractions of 15 digits, or they would be rounded; got {digits[:40]}; shorten it"
        )
    return value


def _refuse_the_endless(schema: Mapping, where: str) -> None:
    """Refuses schemas that only an endless value satisfies, and counts of properties that the grammar cannot keep."""
    targets: dict[str, object] = {}
    for path, part in reachable(schema):
        least, named = part.get("minProperties", 0), len(part.get("required", ()))
        if least > max(1, named):
            raise ValueError(
                f"{where} must require by name as many properties as its minProperties; got {quoted(least)} and {named} at {path}; the "
                "names that a model invents may repeat, name more in required"
            )
        if (ref := part.get("$ref")) is not None and ref not in targets:
            targets[ref] = resolve(schema, ref)
    ends = _Ends(where)
    ends.known |= {ref for ref, target in targets.items() if target is None}  # llguidance says what is wrong with those
    more = True
    while more:
        before = len(ends.known)
        for ref, target in reversed(targets.items()):  # what others refer to comes first, mostly
            if ref not in ends.known and ends.finite(target):
                ends.known.add(ref)
        more = len(ends.known) > before
    endless = sorted(targets.keys() - ends.known)
    if endless and not ends.finite(schema):
        raise ValueError(
            f"{where} must accept some value that ends; got {quoted(endless[0])[1:-1]}, which always requires itself; "
            'let the recursion end, with "anyOf": [..., {"type": "null"}] or without "required"'
        )


class _Ends:
    """Which schemas a finite value satisfies, if those that the references in known name are satisfied by one, and no others are."""

    def __init__(self, where: str):
        self.known: set[str] = set()
        self._where, self._looks = where, 0

    def finite(self, schema: object) -> bool:
        """Raises a ValueError after too many looks."""
        self._looks += 1
        at_most(self._looks, _LOOKS, "schemas to look at for an end, each once for every reference that it is in", self._where)
        if not isinstance(schema, Mapping):
            return schema is not False
        if "$ref" in schema and schema["$ref"] not in self.known:
            return False
        parts = list(schema.get("allOf", ()))
        if schema.get("type") in ("object", ["object"]):
            rest = True if "patternProperties" in schema else schema.get("additionalProperties", True)
            parts += [schema.get("properties", {}).get(name, rest) for name in schema.get("required", ())]
        if schema.get("type") in ("array", ["array"]):
            first, least = schema.get("prefixItems", []), schema.get("minItems", 0)
            parts += first[: int(least)] + [schema.get("items", True)] * (least > len(first))
        if not all(self.finite(part) for part in parts):
            return False
        return all(any(self.finite(part) for part in schema[key]) for key in ("anyOf", "oneOf") if key in schema)
