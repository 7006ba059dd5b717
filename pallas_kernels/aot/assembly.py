"""NVIDIA's assembler and disassembler, and what they say of a kernel. They need no GPU and no driver."""

import collections
import dataclasses
import functools
import importlib.util
from pathlib import Path
import re
import shutil
import subprocess
import tempfile

from pallas_kernels.aot.kernel import Assembly, mix

ARCHITECTURE = "sm_90a"
TOOLS = ("ptxas", "nvdisasm")

_ENTRY = re.compile(r"Compiling entry function '(\S+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_SECTION = re.compile(r"\.text\.(\S+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_.]*)")
_REMARK = re.compile(r"\((C\d{4})\)")
_REGISTER = re.compile(r"(?<![\w.])R(\d+)\b")


@dataclasses.dataclass(frozen=True)
class Usage:
    """What one entry of a PTX file was compiled to. Bytes, but for registers; the fields are those of `Kernel`."""

    registers: int
    spill_bytes: int
    stack_bytes: int
    static_shared_memory: int
    sass: collections.Counter
    assembly: Assembly | None = None


def tool(name: str) -> str | None:
    """Where an NVIDIA tool is: in the wheels of the extra `aot`, else on the path; None if nowhere."""
    wheels = importlib.util.find_spec("nvidia")
    for place in wheels.submodule_search_locations if wheels else ():
        for found in sorted(Path(place).glob(f"*/bin/{name}"), reverse=True):
            return str(found)
    return shutil.which(name)


def usage(ptx: str) -> dict[str, Usage]:
    """What the entries of a PTX text use, by name; ptxas and nvdisasm run here, once for the same text."""
    return _usage(ptx) if ".entry" in ptx else {}


@functools.lru_cache(maxsize=1024)  # a program's small fusions are often another's too
def _usage(ptx: str) -> dict[str, Usage]:
    with tempfile.TemporaryDirectory(prefix="aot-") as folder:
        source, cubin = Path(folder, "kernel.ptx"), str(Path(folder, "kernel.cubin"))
        source.write_text(ptx, encoding="utf-8")
        assembled = _run("ptxas", "-v", f"-arch={ARCHITECTURE}", str(source), "-o", cubin)
        return parse(assembled.stderr, _run("nvdisasm", "-c", cubin).stdout)


def parse(log: str, sass: str) -> dict[str, Usage]:
    """`Usage` of each entry from what `ptxas -v` and nvdisasm print."""
    instructions, section = collections.defaultdict(list), None
    for line in sass.splitlines():
        if found := _SECTION.match(line):
            section = found[1]
        elif section and (found := _INSTRUCTION.search(line)):
            instructions[section].append(found[1])
    result = {}
    for entry, said in zip(_ENTRY.findall(log), _ENTRY.split(log)[2::2], strict=True):
        stack, stores, loads = map(int, _FRAME.search(said).groups())
        shared = _SHARED.search(said)
        result[entry] = Usage(
            registers=int(_REGISTERS.search(said)[1]),
            spill_bytes=stores + loads,
            stack_bytes=stack,
            static_shared_memory=int(shared[1]) if shared else 0,
            sass=mix(instructions[entry]),
        )
    return result


def examined(usage: Usage, ptx: str, log: str, sass: str) -> Usage:
    """The usage of the only entry of a PTX text, with its `Assembly`."""
    names = collections.Counter(_INSTRUCTION.findall(sass))
    moved = tuple(map(int, re.findall(r"setmaxnreg\.(?:inc|dec)\.sync\.aligned\.u32\s+(\d+)", ptx)))
    most = max((int(n) for n in _REGISTER.findall(sass)), default=-1) + 1
    return dataclasses.replace(usage, assembly=Assembly(names, ptx.count("wgmma.mma_async"), tuple(_REMARK.findall(log)), moved, most))


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess:
    done = subprocess.run([tool(name) or name, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[:2000]}")
    return done
