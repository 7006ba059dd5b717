"""The launches of a compiled program, read from XLA's thunk sequence. A pure function of text."""

import dataclasses
import re

# Thunks that only order or contain others.
_ORDER = {"kSequential", "kCommandBuffer", "kAsyncStart", "kAsyncDone", "kDynamicSliceFusion", "kWaitForStreams"}
_BRANCHING = {"kWhile", "kConditional"}

_THUNK = re.compile(r"(\s*)(\d+): (k\w+)\s+\[[^\]]*\]\s*(.*)")
_LABEL = re.compile(r"(\s*)(\w+):\s*$")
_KERNEL = re.compile(r"(\S+) grid: \[(\d+), (\d+), (\d+)\] threads: \[(\d+), (\d+), (\d+)\]\s+shared_memory: (\d+)")
_METADATA = re.compile(r'profile_annotation: "([^"]*)"\s+thunk_id: (\d+)')
_MOSAIC = 'custom_call_target="mosaic_gpu_v2"'
_CALL = re.compile(r"\s*(?:ROOT )?%?(\S+) = ")
_COMPUTATION = re.compile(r"(?:ENTRY )?%(\S+) \(.*\{$")
_FUSION = re.compile(r"\s*(?:ROOT )?%?(\S+) = .* fusion\(.* calls=%?([^\s,]+)")
_HASH = re.compile(r'kernel_hash = "((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(rb"\\(\\|[0-9A-Fa-f]{2})")
_BYTECODE = re.compile(r'(?<=module = ")(?:[^"\\]|\\.)*(?=")')


@dataclasses.dataclass(frozen=True)
class Thunk:
    """One launch.

    Attributes:
      kind: XLA's, such as "kCustomKernel", "kCopy".
      name: a kernel's entry in its PTX, otherwise the HLO instruction's.
      within: the loops' bodies and conditionals' branches around it, outermost first.
      grid, threads, shared_memory: of a kernel that XLA made; dynamic bytes.
    """

    kind: str
    name: str
    within: tuple[str, ...] = ()
    grid: tuple[int, int, int] = (0, 0, 0)
    threads: int = 0
    shared_memory: int = 0


def thunks(sequence: str, metadata: str) -> list[Thunk]:
    """The launches in order, each once, however often its loop runs.

    Args:
      sequence: XLA's dump "thunk_sequence.txt".
      metadata: its dump "thunk_metadata.txt", which names the HLO instruction of each thunk.
    """
    instruction = {int(number): name for name, number in _METADATA.findall(metadata)}
    around, result, opened = [], [], False  # around: [indentation, instruction, label] of what contains the line
    wrapped = ""  # instruction of the newest thunk that wraps one without a name of its own
    for line in sequence.splitlines():
        if label := _LABEL.fullmatch(line):
            if not opened:  # a first label follows its thunk wherever it is indented to; a later one is indented by two more
                _leave(around, len(label[1]))
            around[-1][2] = label[2]
        opened = False
        if not (found := _THUNK.fullmatch(line)):
            continue
        indentation, number, kind = len(found[1]), int(found[2]), found[3]
        _leave(around, indentation)
        if kind in _BRANCHING:
            around.append([indentation, instruction.get(number, kind[1:]), ""])
            opened = True
        elif kind in _ORDER:
            wrapped = instruction.get(number, wrapped)
        else:
            within = tuple(f"{name} {label}" for _, name, label in around)
            if kernel := _KERNEL.match(found[4]):
                sizes = tuple(map(int, kernel.groups()[1:]))
                result.append(Thunk(kind, kernel[1], within, sizes[:3], sizes[3] * sizes[4] * sizes[5], sizes[6]))
            else:
                result.append(Thunk(kind, instruction.get(number, wrapped), within))
    return result


def mosaic_calls(hlo: str) -> dict[str, bytes]:
    """The hash of the Mosaic kernel that each HLO instruction calls: itself, or, where XLA slices its operands on the way, as a fusion."""
    called, inside, fusions, computation = {}, {}, {}, ""
    for line in hlo.splitlines():
        if begun := _COMPUTATION.match(line):
            computation = begun[1]
        elif _MOSAIC in line:
            found = _ESCAPED.sub(_unescape, _HASH.search(line)[1].encode())
            called[_CALL.match(line)[1]] = inside[computation] = found
        elif fused := _FUSION.match(line):
            fusions[fused[1]] = fused[2]
    return called | {name: inside[of] for name, of in fusions.items() if of in inside}


def without_bytecode(hlo: str) -> str:
    """HLO without the Mosaic kernels' code, which is most of the text and unreadable."""
    return "\n".join(_BYTECODE.sub("...", line, count=1) if _MOSAIC in line else line for line in hlo.splitlines())


def _leave(around: list, indentation: int) -> None:
    while around and around[-1][0] >= indentation:
        around.pop()


def _unescape(found: re.Match) -> bytes:
    return b"\\" if found[1] == b"\\" else bytes.fromhex(found[1].decode())
