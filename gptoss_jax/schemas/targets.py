"""What the references of a schema name, followed from one to the next: which of it holds itself, and what a reader may call it."""

from collections import Counter
from collections.abc import Mapping
import re
from urllib.parse import unquote

from gptoss_jax.quoting import quoted
from gptoss_jax.schemas.pointers import Path, children, resolve, subschemas

ANNOTATIONS = ("title", "description", "default", "examples")
_SAY_NOTHING = (*ANNOTATIONS, "$ref", "$defs", "definitions", "$comment")
LEVELS = 120
_LOOKS = 100_000
_STEPS = 3_000_000  # in putting the parts of schemas together
_TAKEN = ("any", "array", "boolean", "never", "null", "number", "object", "string", "unknown")


class Targets:
    """The references of one schema. Those that name the same place are the same, however they are spelt.

    Args:
        root: a schema as `checked` makes it, of which no part is shared.
        where: what the caller calls it, for the refusals.

    Attributes:
        looks: how often a schema has been looked at.
    """

    def __init__(self, root: Mapping, where: str):
        self._root, self._where = root, where
        self._found: dict[str, object] = {}
        self._recursive: dict[int, bool] = {}
        self._names: dict[int, str] = {}
        self._taken: set[str] = set()
        self._numbers: Counter[str] = Counter()
        self._times: Counter[int] | None = None
        self._steps = self.looks = 0

    def look(self, level: int = 0) -> None:
        """Counts a look at a schema, below so many references. Raises a ValueError after too many, for they may double at every step."""
        self.looks += 1
        if level > LEVELS:
            raise ValueError(f"{self._where} must be nested at most {LEVELS} schemas deep where $ref is followed; got more; flatten it")
        if self.looks > _LOOKS:
            raise ValueError(f"{self._where} must hold at most {_LOOKS:,} schemas where $ref is followed; got more; make it smaller")

    def spend(self, steps: int) -> None:
        """Counts what it takes to compare a part of a schema with those before it. Raises a ValueError after too much."""
        self._steps += steps
        if self._steps > _STEPS:
            raise ValueError(
                f"{self._where} must hold fewer schemas that hold together, by allOf and $ref; putting them together takes more than "
                f"{_STEPS:,} steps; write them as one schema"
            )

    def of(self, ref: str) -> object:
        """The schema that a reference names. Raises a ValueError if there is none in this schema."""
        if ref not in self._found:
            target = resolve(self._root, ref)
            if not isinstance(target, Mapping | bool):
                raise ValueError(
                    f"{self._where} must hold every schema that it refers to; got $ref {quoted(ref, 100)}, which names none in it; "
                    "add that to its $defs"
                )
            self._found[ref] = target
            if isinstance(target, Mapping):
                self._names.setdefault(id(target), self._called(ref))
        return self._found[ref]

    def name(self, target: Mapping) -> str:
        """What a reader may call a schema that a reference names: an identifier, another for each."""
        return self._names[id(target)]

    def chain(self, schema: object) -> list[Mapping]:
        """The schemas of which this is another name, each the next one's, beside which it says no more than annotations do."""
        found: dict[int, Mapping] = {}
        while (schema := self._plain(schema)) is not None and id(schema) not in found:
            self.look()
            found[id(schema)] = schema
        return list(found.values())

    def recursive(self, target: object) -> bool:
        """Whether a schema holds itself, through whatever other references."""
        if not isinstance(target, Mapping):
            return False
        if id(target) not in self._recursive:
            self._walk(target)
        return self._recursive[id(target)]

    def times(self, target: Mapping) -> int:
        """At how many places of the schema a reference names it."""
        if self._times is None:
            named = [part["$ref"] for _, part in subschemas(self._root) if "$ref" in part]
            self._times = Counter(id(resolve(self._root, ref)) for ref in named)
        return self._times[id(target)]

    def _plain(self, schema: object) -> Mapping | None:
        """The one schema that a schema is another name of."""
        if not isinstance(schema, Mapping):
            return None
        parts = schema.get("allOf", ())
        if len(parts) == 1 and isinstance(parts[0], Mapping) and list(parts[0]) == ["$ref"] and "$ref" not in schema:
            schema = {key: value for key, value in schema.items() if key != "allOf"} | parts[0]
        if "$ref" not in schema or set(schema) - set(_SAY_NOTHING):
            return None
        target = self.of(schema["$ref"])
        return target if isinstance(target, Mapping) else None

    def _walk(self, start: Mapping) -> None:
        """Finds out which schemas that start holds, or refers to, hold themselves: strongly connected parts, as Tarjan finds them."""
        number: dict[int, int] = {}  # by id, in the order in which they were come upon
        least: dict[int, int] = {}  # of those that can be reached and are not in a part yet
        waiting: list[Mapping] = []
        above = [(start, iter(self._within(start)))]
        while above:
            here, others = above[-1]
            if id(here) not in number:
                number[id(here)] = least[id(here)] = len(number)
                waiting.append(here)
            other = next(others, None)
            if other is not None:
                if id(other) not in number and id(other) not in self._recursive:
                    above.append((other, iter(self._within(other))))
                elif id(other) not in self._recursive:
                    least[id(here)] = min(least[id(here)], number[id(other)])
                continue
            above.pop()
            if above:
                least[id(above[-1][0])] = min(least[id(above[-1][0])], least[id(here)])
            if least[id(here)] == number[id(here)]:
                part = waiting[next(i for i in range(len(waiting) - 1, -1, -1) if waiting[i] is here) :]
                del waiting[len(waiting) - len(part) :]
                itself = any(other is here for other in self._within(here))
                self._recursive |= {id(schema): len(part) > 1 or itself for schema in part}

    def _within(self, schema: Mapping) -> list[Mapping]:
        """The schemas that one holds or refers to, itself and not in its parts."""
        parts = [part for _, part in children(schema, Path())] + ([self.of(schema["$ref"])] if "$ref" in schema else [])
        return [part for part in parts if isinstance(part, Mapping)]

    def _called(self, ref: str) -> str:
        last = unquote(ref.rpartition("/")[2]).replace("~1", "/").replace("~0", "~")
        plain = re.sub(r"\W+", "_", last)[:64] if ref != "#" else "Arguments"
        plain = plain if plain.isidentifier() and plain not in _TAKEN else f"_{plain}"
        name = plain
        while name in self._taken:
            self._numbers[plain] += 1
            name = f"{plain}_{self._numbers[plain] + 1}"
        self._taken.add(name)
        return name
