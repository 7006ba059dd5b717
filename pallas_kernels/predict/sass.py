"""Which machine instructions (SASS) ptxas makes of each instruction of a PTX text, so that what was counted in PTX is known of these.

Each PTX instruction is given a source line of its own, its number, and nvdisasm says which line an instruction is of.
"""

import collections
from pathlib import Path
import re
import subprocess
import tempfile

from pallas_kernels.aot import assembly

_LABEL = re.compile(r"[A-Za-z_$][\w$]*\s*:(?!:)")
_LINE = re.compile(r'//## File "[^"]*", line (\d+)')
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_.]*)")


def attributed(ptx: str) -> list[collections.Counter]:
    """Per instruction of `parse.parse(ptx)`, in its order, how often each machine instruction occurs, with its modifiers.

    Raises:
      RuntimeError: ptxas or nvdisasm fails.
    """
    text, count = numbered(ptx)
    with tempfile.TemporaryDirectory(prefix="predict-") as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(text, encoding="utf-8")
        _run("ptxas", "-lineinfo", f"-arch={assembly.ARCHITECTURE}", str(source), "-o", str(cubin))
        listing = _run("nvdisasm", "-c", "-g", str(cubin))
    found, line = [collections.Counter() for _ in range(count)], None
    for row in listing.splitlines():
        if at := _LINE.search(row):
            line = int(at[1])
        elif (what := _INSTRUCTION.search(row)) and line:
            found[line - 1][what[1]] += 1
    return found


def numbered(ptx: str) -> tuple[str, int]:
    """The text, each instruction behind a .loc with its number, counted from 1; and how many there are."""
    head = re.search(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{]*)\{", ptx, re.S)
    body = re.sub(r"//[^\n]*|^\s*\.loc[^\n]*$", "", ptx[head.end() :], flags=re.M)
    out, at, count, depth = [], 0, 0, 1
    while depth:
        if body[at].isspace():
            out.append(body[at])
            at += 1
        elif body[at] in "{}":
            depth += 1 if body[at] == "{" else -1
            out.append(body[at])
            at += 1
        elif label := _LABEL.match(body, at):
            out.append(label[0])
            at = label.end()
        else:
            end = body.index(";", at) + 1
            if not body.startswith(".", at) and body[at] != ";":
                count += 1
                out.append(f"\n.loc 1 {count} 0\n")
            out.append(body[at:end])
            at = end
    before = re.sub(r"^\s*\.file[^\n]*$", "", ptx[: head.end()], flags=re.M)
    return f'{before}\n{"".join(out)}\n.file 1 "ptx"\n', count


def _run(name: str, *arguments: str) -> str:
    done = subprocess.run([assembly.tool(name) or name, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[:2000]}")
    return done.stdout
