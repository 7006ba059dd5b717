"""What the host does for a launch: tensor maps, geometry and arguments, read from MLIR. Emulates mosaic_gpu_init_tma_desc."""

import copy
import dataclasses
import re

from pallas_kernels.emulator.chip.memory import Fault

ELEMENT = {0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 2, 6: 4, 7: 2}  # of mosaic_gpu_init_tma_desc's types, bytes


@dataclasses.dataclass(frozen=True)
class Pointer:
    """Into an argument ("arg", number), the table of arguments ("table",), or a buffer of the host's."""

    to: object
    offset: int = 0

    def __add__(self, more: int) -> "Pointer":
        return Pointer(self.to, self.offset + more)


@dataclasses.dataclass
class Described:
    """A tensor map: argument and byte offset, sizes and strides in elements, outermost first."""

    argument: int
    offset: int
    element: int
    sizes: list[int]
    strides: list[int]
    swizzle: int
    box: list[int]


@dataclasses.dataclass
class Host:
    """A launch as the host makes it: `arguments` are Pointers, or a dict byte offset -> Described."""

    grid: tuple
    threads: int
    cluster: tuple
    shared_bytes: int
    arguments: list


class _Buffer:
    def __init__(self):
        self.words, self.maps = {}, {}


_ASSIGN = re.compile(r"\s*(%[\w#]+)(?::\d+)? = (.*)")
_SAME = ("builtin.unrealized_conversion_cast", "llvm.inttoptr", "llvm.ptrtoint", "llvm.sext", "llvm.zext", "llvm.trunc")
_NAME = r"%[\w]+(?:#\d+)?"


def read(text: str) -> Host:
    """The launch of a host function."""
    values, table = {}, None
    for line in text.splitlines():
        if "func.func @" in line:
            names = re.findall(r"(%\w+): !llvm.ptr", line)
            values[names[1]] = Pointer("table")
        line = re.sub(r" loc\(.*$", "", line)
        if found := _ASSIGN.match(line):
            values[found[1]] = _evaluate(found[2], values)
        elif "llvm.store" in line:
            value, to = re.search(rf"llvm.store ({_NAME}), ({_NAME})", line).groups()
            values[to].to.words[values[to].offset] = values[value]
        elif "call @mosaic_gpu_init_tma_desc" in line:
            _describe([values[n] for n in re.findall(_NAME, line[: line.index(") :")])])
        elif "gpu.launch_func" in line:
            return _launch(line, values)
    raise Fault("no launch")


def _evaluate(text: str, values: dict):
    op = text.split()[0]
    names = re.findall(_NAME, text)
    if op.startswith("llvm.mlir.constant"):
        found = re.search(r"constant\((-?\d+|true|false)", text)
        return {"true": 1, "false": 0}.get(found[1]) if found[1] in ("true", "false") else int(found[1])
    if op == "llvm.mlir.undef" or op == "llvm.mlir.poison":
        return {}
    if op == "llvm.load":
        source = values[names[0]]
        if source.to == "table":
            return Pointer(("arg", source.offset))
        return source.to
    if op == "llvm.getelementptr":
        base = values[names[0]]
        index = re.search(r"\[(.*?)\]", text)[1]
        index = values[index] if index.startswith("%") else int(index)
        kind = text.rsplit(",", 1)[1].strip()
        unit = {"!llvm.ptr": 1, "i64": 1, "i8": 1}.get(kind) or {"f32": 4, "bf16": 2, "f16": 2, "i32": 4, "i16": 2, "f64": 8}[kind]
        return Pointer(base.to, base.offset + index * unit)
    if op == "llvm.insertvalue":
        out = copy.deepcopy(values[names[1]]) if isinstance(values[names[1]], dict) else {}
        out[re.search(r"\[([\d, ]+)\]", text)[1]] = values[names[0]]
        return out
    if op == "llvm.extractvalue":
        return values[names[0]][re.search(r"\[([\d, ]+)\]", text)[1]]
    if op == "llvm.alloca":
        return Pointer(_Buffer())
    if op == "memref.extract_aligned_pointer_as_index":
        source = values[names[0]]
        return source["1"] if isinstance(source, dict) else source
    if op in ("llvm.add", "llvm.mul", "llvm.sub"):
        a, b = values[names[0]], values[names[1]]
        return {"llvm.add": lambda: a + b, "llvm.mul": lambda: a * b, "llvm.sub": lambda: a - b}[op]()
    if op in _SAME or op.startswith("memref."):
        return values[names[0]]
    raise NotImplementedError(f"host: {text[:200]}")


def _describe(arguments) -> None:
    to, base, element, rank, sizes, strides, swizzle, box = arguments
    array = lambda p: [p.to.words[p.offset + i] for i in range(rank)]
    assert to.offset % 64 == 0 and base.to[0] == "arg"
    to.to.maps[to.offset] = Described(base.to[1], base.offset, ELEMENT[element], array(sizes), array(strides), swizzle, array(box))


def _launch(line: str, values: dict) -> Host:
    def three(word):
        found = re.search(rf"{word} in \(({_NAME}), ({_NAME}), ({_NAME})\)", line)
        return tuple(values[n] for n in found.groups()) if found else (1, 1, 1)

    memory = re.search(rf"dynamic_shared_memory_size ({_NAME})", line)
    inside = re.search(r"args\((.*)\)", line)
    arguments = []
    for name in re.findall(_NAME, inside[1]) if inside else []:
        value = values[name]
        arguments.append(value.maps if isinstance(value, _Buffer) else value)
    threads = three("threads")
    return Host(three("blocks"), threads[0] * threads[1] * threads[2], three("clusters"), values[memory[1]] if memory else 0, arguments)
