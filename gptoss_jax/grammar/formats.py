"""What a caller may ask the text of an answer to be: OpenAI's response_format in both its forms, and three kinds of our own.

{"type": "text"}                                                           anything
{"type": "json_object"}                                                    any JSON object
{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}     Chat Completions
{"type": "json_schema", "name": ..., "schema": {...}}                      Responses
{"type": "regex", "regex": "[0-9]{4}"}                                     the whole text matches
{"type": "choice", "choices": ["yes", "no"]}                               the text is one of them
{"type": "lark", "lark": "start: ..."}                                     llguidance's form of Lark
"""

from collections.abc import Mapping
import dataclasses

from gptoss_jax.grammar.budget import count_choices, count_lark, count_regex, lark_schemas, without_literals
from gptoss_jax.grammar.schema.canonical import canonical
from gptoss_jax.quoting import quoted

_TYPES = ("text", "json_object", "json_schema", "regex", "choice", "lark")
_ABOUT_SCHEMA = ("name", "description", "schema", "strict")


@dataclasses.dataclass(frozen=True)
class Format:
    """A grammar's text in one spelling, so that equal ones are compiled once. kind is "json", "regex" or "lark"."""

    kind: str
    text: str


ANY_OBJECT = Format("json", '{"type":"object"}')


def read_format(response_format: object, where: str = "response_format") -> Format | None:
    """The grammar that response_format asks for; None for free text.

    A schema binds whatever "strict" says. What only the library can find wrong with a grammar, `compiling.compiled` refuses.

    Args:
        response_format: one of the dicts above, or None for free text.
        where: what the caller calls it, for the refusals.

    Raises:
        ValueError: anything else, or a grammar that accepts nothing.
    """
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        raise ValueError(f'{where} must be a dict such as {{"type": "json_object"}}; got {type(response_format).__name__}')
    kind = response_format.get("type")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ValueError(f"{where}: type must be one of {', '.join(_TYPES)}; got {quoted(kind, 60)}; pass one of them")
    if kind in ("text", "json_object"):
        _refuse_others(response_format, ("type",), where)
        return None if kind == "text" else ANY_OBJECT
    if kind == "json_schema":
        return _json_schema(response_format, where)
    field = "choices" if kind == "choice" else kind
    _refuse_others(response_format, ("type", field), where)
    value = response_format.get(field)
    if kind == "choice":
        return Format("regex", "|".join(_literal(choice) for choice in _choices(value, where)))
    text = _text(value, f"{where}: {field}")
    if kind == "lark":
        text = _checked_lark(text, where)
    else:
        count_regex([text], f"{where}: regex")
    return Format(kind, text)


def of_schema(schema: object, where: str) -> Format:
    """The grammar of JSON that satisfies schema.

    Raises:
        ValueError: as `schema.canonical`.
    """
    return Format("json", canonical(schema, where))


def _json_schema(response_format: Mapping, where: str) -> Format:
    inner = response_format
    if "json_schema" in response_format:
        _refuse_others(response_format, ("type", "json_schema"), where)
        inner, where = response_format["json_schema"], f"{where}.json_schema"
        if not isinstance(inner, Mapping):
            raise ValueError(f'{where} must be a dict {{"name", "schema"}}; got {type(inner).__name__}')
        _refuse_others(inner, _ABOUT_SCHEMA, where)
    else:
        _refuse_others(inner, ("type", *_ABOUT_SCHEMA), where)
    if "schema" not in inner:
        raise ValueError(f'{where} must hold the JSON schema as "schema"; got no such field; add it')
    for name, kinds in (("name", str), ("description", str), ("strict", bool)):
        if not isinstance(inner.get(name), kinds | None):
            raise ValueError(f"{where}: {name} must be a {kinds.__name__}; got {type(inner[name]).__name__}; correct or drop it")
    return of_schema(inner["schema"], f"{where}.schema")


def _refuse_others(given: Mapping, known: tuple[str, ...], where: str) -> None:
    if others := [str(name)[:60] for name in given if name not in known]:
        raise ValueError(f"{where} may hold {', '.join(known)}; got {', '.join(others)} too; drop that")


def _checked_lark(text: str, where: str) -> str:
    """A grammar whose schemas are spelt as those alone are, each in as many lines as before."""
    count_lark(text, f"{where}: lark")
    bare = without_literals(text)
    if "<" in bare:
        raise ValueError(f"{where}: lark must not name control tokens, which end or begin messages; got a < outside quotes; drop it")
    pieces, after = [], 0
    for schema, begin, end in lark_schemas(text):
        said = canonical(schema, f"{where}: %json in lark")
        pieces += [text[after:begin], said[:1], "\n" * text.count("\n", begin, end), said[1:]]
        after = end
    return "".join([*pieces, text[after:]])


def _choices(choices: object, where: str) -> list[str]:
    if not isinstance(choices, list | tuple) or not choices:
        raise ValueError(f"{where}: choices must be a list of at least one string; got {quoted(choices, 60)}; name the answers")
    count_choices(choices, f"{where}: choices")
    return [_text(choice, f"{where}: choices[{i}]") for i, choice in enumerate(choices)]


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{where} must be a string with something in it; got {quoted(value, 60)}; write it out")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} must be text that UTF-8 can hold; got a lone surrogate at {error.start}; drop it") from error
    return value


def _literal(text: str) -> str:
    """A regex that matches text alone, in Rust's spelling."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)
