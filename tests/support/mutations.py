"""Kernels spoiled on purpose, each in one way that a GPU might not punish: what must not go unnoticed in the emulator.

A mutation changes a kernel's PTX, by patterns that do not hang on numbers of registers, or the tensor maps that the host makes. One that
changes nothing is an error.
"""

from collections.abc import Callable
import copy
import dataclasses
import re

from pallas_kernels.emulator import launch
from pallas_kernels.emulator.ptx import parse
from pallas_kernels.emulator.ptx.program import Program


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A way to spoil one kernel of a small call.

    Attributes:
      what: is wrong.
      kernel: which is spoiled.
      op, name: of the call.
      text: the kernel's PTX to another; None leaves it.
      tensor_map: of each of the host's tensor maps, what it is changed to; None leaves them.
    """

    what: str
    kernel: str
    op: str
    name: str
    text: Callable[[str], str] | None = None
    tensor_map: Callable | None = None

    def change(self, compiled, host):
        """For `emulator.Emulated`: program and host of a kernel, spoiled if it is the one."""
        program = launch.load(compiled)[0]
        if compiled.name != self.kernel:
            return program, host
        if self.text is not None:
            spoiled = self.text(compiled.ptx)
            if spoiled == compiled.ptx:
                raise LookupError(f"{self.what}: nothing of {self.kernel} is changed")
            program = Program(parse.parse(spoiled))
        if self.tensor_map is not None:
            before, host = host, copy.deepcopy(host)
            for argument in host.arguments:
                if isinstance(argument, dict):
                    argument |= {place: self.tensor_map(described) for place, described in argument.items()}
            if host == before:
                raise LookupError(f"{self.what}: no tensor map of {self.kernel} is changed")
        return program, host


def nth(pattern: str, replacement, number: int = 0) -> Callable[[str], str]:
    """One of the places where a pattern is found."""

    def change(text: str) -> str:
        found = list(re.finditer(pattern, text))
        if len(found) <= number:
            return text
        at = found[number]
        return text[: at.start()] + (replacement(at) if callable(replacement) else at.expand(replacement)) + text[at.end() :]

    return change


def each(pattern: str, replacement="") -> Callable[[str], str]:
    """All places where a pattern is found."""
    return lambda text: re.sub(pattern, replacement, text)


def behind(mark: str, change: Callable[[str], str]) -> Callable[[str], str]:
    """Only behind the first `mark`."""
    return lambda text: text[: text.index(mark)] + change(text[text.index(mark) :])


def of_descriptors(change: Callable[[int], int]) -> Callable[[str], str]:
    """The constants that wgmma's descriptors are made with: 64 bits of which the upper two are 01 (a swizzle of 128 bytes)."""
    return each(r"\b\d{19}\b", lambda at: str(change(int(at[0]))) if int(at[0]) >> 62 == 1 else at[0])


def constant(instruction: str, change: Callable[[int], int]) -> Callable[[str], str]:
    """The constant in the register that is the last operand of the first such instruction, in that instruction alone."""

    def spoil(text: str) -> str:
        at = re.search(instruction + r"[^;]*(%r\d+);", text)
        value = int(re.search(rf"mov\.b32\s+{at[1]}, (-?\d+);", text)[1])
        return text[: at.start(1)] + str(change(value)) + text[at.end(1) :]

    return spoil


def swapped(group: int) -> Callable[[re.Match], str]:
    """A wgmma with the first two registers of a list in braces exchanged: 0 is what it adds to, 1 its operand in registers."""

    def swap(at: re.Match) -> str:
        lists = list(re.finditer(r"\{([^{}]*)\}", at[0]))
        registers = lists[group][1].split(",")
        registers[:2] = registers[1::-1]
        return at[0][: lists[group].start(1)] + ",".join(registers) + at[0][lists[group].end(1) :]

    return swap


def _over_the_first(text: str) -> str:
    """The second copy goes where the first one goes."""
    first, second, *_ = re.finditer(r"cp\.async\.bulk\.tensor\S*shared::cta\.global\S* \[(%r\d+)\]", text)
    return text[: second.start(1)] + first[1] + text[second.end(1) :]


def _half_stride(descriptor: int) -> int:
    """Bits 32 to 45 are the stride between groups of 8 rows, in 16 bytes."""
    stride = descriptor >> 32 & 0x3FFF
    return descriptor - (stride << 32) + (stride // 2 << 32)


def _wide_rows(described):
    if len(described.strides) < 2 or len(described.box) < 4:
        return described
    return dataclasses.replace(described, strides=[*described.strides[:-2], 2 * described.strides[-2], 1])


WGMMA = r"wgmma\.mma_async[^;]*;"
WAIT = r"mbarrier\.try_wait[^;]*;\s*@P1 bra\.uni\s+DONE;\s*bra\.uni\s+LAB_WAIT;"
ARRIVE = r"mbarrier\.arrive\.expect_tx"

# Kernel, op and name of the small calls that are spoiled.
NORM = ("add_norm", "norm.add_norm", "3 x 256")
OUT = ("project_out", "projection.out", "5 tokens")
WIDE = ("project_out", "projection.out", "16 tokens")
LONG = ("project_out", "projection.out", "4096")
UP = ("moe_gate_up", "moe.decode", "3 tokens, 4 experts of 128 x 128")
GROUPED = ("moe_gate_up_grouped", "moe.grouped", "20 tokens, 4 experts of 128")
PREFILL = ("attention_prefill", "attention.prefill", "more pages")
PARTS = ("attention_decode", "attention.decode", "parts, 1, 130, 700")

MUTATIONS = [
    # Of copies and of those who wait for them.
    Mutation("no loop round try_wait, which may give up", *NORM, nth(r"bra\.uni\s+LAB_WAIT;", "bra.uni DONE;")),
    Mutation("no wait for a copy", *NORM, nth(WAIT, "")),
    Mutation("a wait for the wrong parity", *NORM, each(r"(try_wait\.parity\.shared\.b64 P1, \[%r\d+\], )%r\d+", r"\g<1>1")),
    Mutation("fewer bytes expected than are copied", *NORM, constant(ARRIVE, lambda n: n // 2)),
    Mutation("one warp's arrivals too many awaited", *NORM, constant(r"mbarrier\.init", lambda n: n + 32)),
    Mutation("one warp's arrivals too few awaited", *NORM, constant(r"mbarrier\.init", lambda n: n - 32)),
    Mutation("all lanes start a copy, not one", *NORM, nth(r"@%p\d+ (cp\.async\.bulk\.tensor)", r"\1")),
    Mutation("a copy into the place of another", *OUT, _over_the_first),
    Mutation("free slots not waited for", *PREFILL, behind("setmaxnreg.dec", nth(WAIT, ""))),
    Mutation("slots not given back", *PREFILL, each(r"mbarrier\.arrive\.release[^;]*;")),
    Mutation("tensor maps without a swizzle", *OUT, tensor_map=lambda d: dataclasses.replace(d, swizzle=16) if d.swizzle == 128 else d),
    Mutation("tensor maps whose rows are twice as wide", *WIDE, tensor_map=_wide_rows),
    Mutation("the last copies out are not committed", *NORM, each(r"cp\.async\.bulk\.commit_group;")),
    Mutation("the last copies out are not waited for", *NORM, each(r"cp\.async\.bulk\.wait_group[^;]*;")),
    Mutation("parts in global memory waited for as read only", *PARTS, each(r"(cp\.async\.bulk\.wait_group)\s", r"\1.read ")),
    # Of proxies and barriers.
    Mutation("no fence.proxy.async", *OUT, each(r"fence\.proxy\.async[^;]*;")),
    Mutation("no fence.proxy.async", *NORM, each(r"fence\.proxy\.async[^;]*;")),
    Mutation("no barrier among warps", *NORM, each(r"bar\.sync %r\d+, 128;")),
    Mutation("a barrier of more threads than there are", *NORM, nth(r"(bar\.sync %r\d+, )128;", r"\g<1>160;")),
    Mutation("no barrier of the cluster", *PARTS, each(r"barrier\.cluster\.arrive\.release[^;]*; barrier\.cluster\.wait\.acquire[^;]*;")),
    Mutation(
        "setmaxnreg.inc for more than there are", *GROUPED, each(r"(setmaxnreg\.inc\S* )(\d+)", lambda at: f"{at[1]}{int(at[2]) + 8}")
    ),
    Mutation("no setmaxnreg.dec", *GROUPED, each(r"setmaxnreg\.dec[^;]*;")),
    # Of products.
    Mutation("the last products are not waited for", *OUT, each(r"wgmma\.wait_group\.sync\.aligned 0;")),
    Mutation(
        "the step before is not waited for", *LONG, each(r"wgmma\.wait_group\.sync\.aligned [1-9];", "wgmma.wait_group.sync.aligned 15;")
    ),
    Mutation("no wgmma.fence", *UP, each(r"wgmma\.fence[^;]*;")),
    Mutation("two registers of an operand exchanged", *UP, each(WGMMA, swapped(1))),
    Mutation("two sums exchanged in one product", *UP, nth(WGMMA, swapped(0), 1)),
    Mutation("two sums exchanged in all products", *OUT, each(WGMMA, swapped(0))),
    Mutation("a descriptor's stride halved", *WIDE, of_descriptors(_half_stride)),
    Mutation("a descriptor that stays where it was", *UP, of_descriptors(lambda n: n - 2 if n & 0x3FFF == 2 else n)),
    Mutation("a product left out", *UP, nth(WGMMA, "")),
    # Of numbers.
    Mutation("codes shifted by five, not six", *UP, each(r"(shl\.b32 a, %r\d+, )6", r"\g<1>5")),
    Mutation("scales of another half", *UP, each("0x1414", "0x404")),
    Mutation("a sum over half a warp", *NORM, each(r"(shfl\.sync\.bfly\.b32\s+%r\d+, %r\d+, )16,", r"\g<1>8,")),
    # Of addresses.
    Mutation("a store behind an array", *NORM, each(r"(st\.global\.b32\s+\[%rd\d+)\]", r"\1+4096]")),
    Mutation("a store beside its place", *NORM, each(r"(st\.shared\.b32\s+\[%rd\d+\+)4096\]", r"\g<1>4098]")),
]
