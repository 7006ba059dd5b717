"""The collectives of a compiled program, read from its optimised HLO. A pure function of text."""

import dataclasses
import math
import re

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_COLLECTIVE = re.compile(rf"\s*(?:ROOT )?%?(\S+) = (.*?) ({_KINDS})(-start)?\(")
_COMPUTATION = re.compile(r"(?:ENTRY )?%?(\S+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_LOOP = re.compile(r"(?:body|condition)=%?([\w.-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_ARRAY = re.compile(r"([a-z]+)(\d*)(?:e\w+)?\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
      kind: XLA's, such as "all-reduce", whether it is waited for at once or later.
      shapes: its results on one device, such as ("f32[16,2880]",).
      bytes: of these.
      op_name: the Python scopes that it comes from; "" where XLA made it.
      loop: whether it lies in a loop, and so may run many times.
      name: of the HLO instruction.
    """

    kind: str
    shapes: tuple[str, ...]
    bytes: int
    op_name: str
    loop: bool
    name: str

    @property
    def elements(self) -> int:
        """Of its results."""
        return sum(_elements(shape) for shape in self.shapes)


def collectives(hlo: str) -> list[Collective]:
    """The collectives in the order of the text, each once, however often its loop runs."""
    lines: dict[str, list[str]] = {}
    current: list[str] = []
    for line in hlo.splitlines():
        if not line.startswith(" ") and (begins := _COMPUTATION.match(line)):
            current = lines.setdefault(begins[1], [])
        else:
            current.append(line)
    looped = _reachable(lines, {name for body in lines.values() for line in body for name in _LOOP.findall(line) if " while(" in line})
    return [_collective(found, line, name in looped) for name, body in lines.items() for line in body if (found := _COLLECTIVE.match(line))]


def _collective(found: re.Match, line: str, loop: bool) -> Collective:
    name, result, kind, started = found.groups()
    # What is started has its operands beside its results; an all-reduce of one array may leave them out.
    parts = _elements_of(result) if started else [result]
    result = parts[1] if len(parts) > 1 and (kind != "all-reduce" or parts[0].startswith("(")) else result
    arrays = [array for array in _ARRAY.finditer(result)]
    size = sum(_elements(array[0]) * int(array[2] or 8) // 8 for array in arrays)
    scopes = _OP_NAME.search(line)
    return Collective(kind, tuple(array[0] for array in arrays), size, scopes[1] if scopes else "", loop, name)


def _elements_of(text: str) -> list[str]:
    """The elements of a tuple's shape "((f32[2]{0}), f32[2]{0})"; of another shape, itself."""
    if not text.startswith("("):
        return [text]
    parts, depth = [""], 0
    for character in text[1:-1]:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _elements(shape: str) -> int:
    return math.prod(int(size) for size in _ARRAY.match(shape)[3].split(",") if size)


def _reachable(lines: dict[str, list[str]], roots: set[str]) -> set[str]:
    """Names of the computations that some computations call, and their own."""
    seen, todo = set(), [name for name in roots if name in lines]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        text = "\n".join(lines[name])
        called = _CALLED.findall(text) + [name.strip(" %") for names in _BRANCHES.findall(text) for name in names.split(",")]
        todo += [name for name in called if name in lines]
    return seen
