"""The door of every schema, a tool's or an answer's: plain data of a bounded size, valid in its draft, in the words of 2020-12."""

from collections.abc import Mapping
import json

from gptoss_jax.schemas.drafts import NEWEST, UNNAMED, forget_names, is_older, modernise, parts_of
from gptoss_jax.schemas.references import are_plain, references, repoint
from gptoss_jax.schemas.size import CHARACTERS, SCHEMAS, at_most, count_json
from gptoss_jax.schemas.validity import fault


def checked(schema: Mapping, where: str) -> dict:
    """A schema as plain data of its own, valid, in the words of draft 2020-12, its references pointers from its root.

    Args:
        schema: a JSON schema of the draft that it names, as `drafts` has it. Texts in it may hold lone surrogates.
        where: what the caller calls it, for the refusals.

    Raises:
        ValueError: it is too large, not JSON, or not valid in its draft; the sentence says where and what to do.
    """
    return current(json.loads(as_text(schema, where)), where)


def as_text(value: object, where: str) -> str:
    """A schema as compact JSON, its keys in their order; raises a ValueError if it is too large, or no JSON."""
    count_json(value, where)
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} must hold nothing but JSON; got {str(error)[:200]}; convert the values first") from error
    at_most(len(text), CHARACTERS, "characters as JSON", where)
    return text


def current(schema: dict, where: str) -> dict:
    """Plain data that is the caller's, as `checked`; changed in place.

    Raises:
        ValueError: it is not a valid schema of its draft, or holds too many.
    """
    try:
        parts = list(parts_of(schema))
        at_most(len(parts), SCHEMAS, "schemas", where)
        _refuse(fault(parts), where)
        if older := any(is_older(part, draft) for _, part, draft in parts) or not are_plain(schema, parts):
            found = references(schema, parts)
            for _, part, draft in parts:
                modernise(part, draft)
            repoint(schema, found)
        for _, part, draft in parts:
            forget_names(part, draft)
        if older or any(draft not in (UNNAMED, NEWEST) for _, _, draft in parts):
            _refuse(fault([(path, part, NEWEST) for path, part, _ in parts_of(schema)]), where)  # words that came after its draft
    except RecursionError as error:
        raise ValueError(f"{where} must not be nested as deeply as Python's recursion limit; got more; flatten it") from error
    return schema


def _refuse(found: str, where: str) -> None:
    if found:
        raise ValueError(f"{where} must be a valid JSON schema; got {found}; correct it")
