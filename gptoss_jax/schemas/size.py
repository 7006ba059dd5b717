"""How large a schema, or any value of JSON, may be: counted before anything else looks at it, for others walk it by recursion."""

from collections.abc import Mapping

CHARACTERS = 1_000_000  # of a schema as JSON
VALUES = 200_000  # in a schema, of any kind
SCHEMAS = 20_000  # in a schema
NESTED = 120  # containers in each other


def at_most(count: int, most: int, what: str, where: str) -> None:
    """Raises a ValueError if count is above most."""
    if count > most:
        found = f"{count:,}" if count < 10**15 else "more than 10**15"  # it may have more digits than Python writes
        raise ValueError(f"{where} must hold at most {most:,} {what}; got {found}; make it smaller")


def count_json(value: object, where: str) -> None:
    """Raises a ValueError if a value of JSON is too large to look at, also where its parts are shared or hold each other."""
    values = characters = 0
    todo = [(value, 1)]
    while todo:
        inner, depth = todo.pop()
        if depth > NESTED:
            raise ValueError(f"{where} must be nested at most {NESTED} deep; got more; flatten it, or name parts of it in $defs")
        if isinstance(inner, Mapping):
            values += len(inner)
            characters += sum(len(name) for name in inner if isinstance(name, str))
            todo += [(part, depth + 1) for part in inner.values()] if values <= VALUES else []
        elif isinstance(inner, list | tuple):
            values += len(inner)
            todo += [(part, depth + 1) for part in inner] if values <= VALUES else []
        elif isinstance(inner, str):
            characters += len(inner)
        elif isinstance(inner, int):
            characters += inner.bit_length() // 4
            if inner.bit_length() > 1024:
                raise ValueError(f"{where} must hold numbers that a double can hold; got a number out of range; drop it")
        if values > VALUES:
            raise ValueError(f"{where} must hold at most {VALUES:,} values; got more; make it smaller")
        if characters > CHARACTERS:
            raise ValueError(f"{where} must hold at most {CHARACTERS:,} characters; got more; make it smaller")
