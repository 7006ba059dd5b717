"""What the host does for a launch, read from its MLIR: tensor maps, geometry and arguments.

The text is that which Mosaic GPU hands to its last pass but those that make machine code. It is straight-line code of a few kinds of
operations on the arguments' pointers: the evaluator knows those that jax 0.11 and 0.12 write, and stands in for the runtime's
`mosaic_gpu_init_tma_desc`. No branches, no im2col maps, and nothing that is known on a device only.
"""

import dataclasses
import math
import re

from pallas_kernels.emulator.ptx.handlers import Fault

ELEMENT = {0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 2, 6: 4, 7: 2}  # of mosaic_gpu_init_tma_desc's types, bytes
_BYTES = {"!llvm.ptr": 8, "index": 8} | {f"{kind}{bits}": bits // 8 for kind in ("i", "f", "bf") for bits in (8, 16, 32, 64)}
_ASSIGN = re.compile(r"\s*(%[\w#]+)(?::\d+)? = (.*)")
_NAME = r"%\w+(?:#\d+)?"
_MEMREF = re.compile(r"memref<((?:\d+x)*)(\w+)(?:, strided<\[([\d, ]*)\](?:, offset: (\d+))?>)?")


@dataclasses.dataclass(frozen=True)
class Pointer:
    """Into an argument ("arg", number), the table of arguments ("table"), or a `_Buffer` of the host's; `offset` in bytes."""

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
    """Memory of the host's: words and tensor maps by byte offset."""

    def __init__(self):
        self.words, self.maps = {}, {}


def read(text: str) -> Host:
    """The launch of a host function.

    Raises:
      NotImplementedError: an operation that is not known here.
      Fault: there is no launch.
    """
    values = {}
    for line in text.splitlines():
        if "func.func @" in line and (names := re.findall(r"(%\w+): !llvm.ptr", line)):
            values[names[1]] = Pointer("table")
        line = re.sub(r" loc\(.*$", "", line)
        if found := _ASSIGN.match(line):
            values[found[1]] = _evaluate(found[2], values)
        elif found := re.match(rf"\s*llvm.store ({_NAME}), ({_NAME})", line):
            to = values[found[2]]
            to.to.words[to.offset] = values[found[1]]
        elif found := re.match(rf"\s*memref.store ({_NAME}), ({_NAME})\[(.*?)\]", line):
            to = _element(values[found[2]], _numbers(found[3], values), line)
            to.to.words[to.offset] = values[found[1]]
        elif "call @mosaic_gpu_init_tma_desc(" in line:
            _describe([values[n] for n in re.findall(_NAME, line[: line.index(") :")])])
        elif "gpu.launch_func" in line:
            return _launch(line, values)
        elif re.match(r"\s*(call|llvm.call|scf\.|cf\.)", line):
            raise NotImplementedError(f"the host's part of a kernel does what is not known here: {line.strip()[:200]}")
    raise Fault("no launch in the host's part of the kernel")


def _numbers(text: str, values: dict) -> list[int]:
    """Of "%1, 2": constants and names of such."""
    return [values[n] if n.startswith("%") else int(n) for n in text.replace(" ", "").split(",") if n]


def _evaluate(text: str, values: dict):
    op = text.split()[0]
    names = re.findall(_NAME, text)
    if op.startswith("memref."):
        return _memref(op, text, names, values)
    if op.startswith(("llvm.mlir.constant", "arith.constant")):
        found = re.search(r"constant(?: |\()(-?\d+|true|false)", text)
        return int({"true": 1, "false": 0}.get(found[1], found[1]))
    if op in ("llvm.mlir.undef", "llvm.mlir.poison"):
        return {}
    if op == "llvm.load":
        return _load(values[names[0]])
    if op == "llvm.getelementptr":
        (index,) = _numbers(re.search(r"\[(.*?)\]", text)[1], values)
        return values[names[0]] + index * _BYTES[text.rsplit(",", 1)[1].strip()]
    if op in ("llvm.insertvalue", "llvm.extractvalue"):
        where = re.search(r"\[([\d, ]+)\]", text)[1]
        if op == "llvm.extractvalue":
            return values[names[0]][where]
        return values[names[1]] | {where: values[names[0]]}
    if op == "llvm.alloca":
        return Pointer(_Buffer())
    if op in ("llvm.add", "llvm.mul", "llvm.sub"):
        a, b = values[names[0]], values[names[1]]
        return a + b if op == "llvm.add" else a * b if op == "llvm.mul" else a - b
    if op in ("builtin.unrealized_conversion_cast", "llvm.inttoptr", "llvm.ptrtoint", "llvm.sext", "llvm.zext", "llvm.trunc"):
        return values[names[0]]
    raise NotImplementedError(f"the host's part of a kernel does what is not known here: {text[:200]}")


def _load(source: Pointer):
    """A pointer of the table of arguments; a word; or, as what a kernel is given, a whole buffer of tensor maps."""
    if source.to == "table":
        return Pointer(("arg", source.offset // 8))
    return source.to.words[source.offset] if source.offset in source.to.words else source.to


def _memref(op: str, text: str, names: list[str], values: dict):
    """Of memrefs, which are held as the structs that they become: pointers "0" and "1", offset "2", sizes "3, i", strides "4, i"."""
    if op == "memref.alloca()":
        return _descriptor(Pointer(_Buffer()), 0, text)
    source = values[names[0]]
    if op == "memref.extract_aligned_pointer_as_index":
        return source["1"]
    if op in ("memref.cast", "memref.transpose", "memref.expand_shape", "memref.collapse_shape", "memref.memory_space_cast"):
        return _descriptor(source["1"], source["2"], text)
    if op == "memref.reinterpret_cast":
        (offset,) = _numbers(re.search(r"offset: \[(.*?)\]", text)[1], values)
        return _descriptor(source["1"], offset, text)
    if op == "memref.subview":
        starts = _numbers(re.search(r"\[(.*?)\]", text)[1], values)
        return _descriptor(source["1"], source["2"] + sum(n * source[f"4, {axis}"] for axis, n in enumerate(starts)), text)
    raise NotImplementedError(f"the host's part of a kernel does what is not known here: {text[:200]}")


def _descriptor(pointer: Pointer, offset: int, text: str) -> dict:
    """Of the last memref type that a text names; what it does not state is missing."""
    sizes, _, strides, _ = list(_MEMREF.finditer(text))[-1].groups()
    sizes = [int(n) for n in sizes.split("x") if n]
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))] if strides is None else [int(n) for n in strides.split(",") if n]
    lists = {3: sizes, 4: strides}
    return {"0": pointer, "1": pointer, "2": offset} | {f"{k}, {i}": n for k, numbers in lists.items() for i, n in enumerate(numbers)}


def _element(memref: dict, index: list[int], text: str) -> Pointer:
    size = _BYTES[_MEMREF.search(text)[2]]
    return memref["1"] + size * (memref["2"] + sum(n * memref[f"4, {axis}"] for axis, n in enumerate(index)))


def _describe(arguments) -> None:
    to, base, element, rank, sizes, strides, swizzle, box = arguments
    array = lambda p: [p.to.words[p.offset + 8 * i] for i in range(rank)]
    if to.offset % 64:
        raise Fault(f"a tensor map must be aligned to 64 bytes; it is filled at {to.offset}.")
    if not isinstance(base.to, tuple):
        raise NotImplementedError("a tensor map of what is no argument of the kernel")
    to.to.maps[to.offset] = Described(base.to[1], base.offset, ELEMENT[element], array(sizes), array(strides), swizzle, array(box))


def _launch(line: str, values: dict) -> Host:
    def three(word):
        found = re.search(rf"{word} in \(({_NAME}), ({_NAME}), ({_NAME})\)", line)
        return tuple(values[n] for n in found.groups()) if found else (1, 1, 1)

    memory = re.search(rf"dynamic_shared_memory_size ({_NAME})", line)
    inside = re.search(r"args\((.*)\)", line)
    arguments = [values[name] for name in re.findall(_NAME, inside[1])] if inside else []
    arguments = [value.maps if isinstance(value, _Buffer) else value for value in arguments]
    return Host(three("blocks"), math.prod(three("threads")), three("clusters"), values[memory[1]] if memory else 0, arguments)
