"""Runs a compiled kernel on arrays: memory, parameters and tensor maps as the host makes them, then the machine.

Operands are not copied, unless the kernel writes over them. What it does not write holds what memory may hold: nothing that is a number, or
anything, as the seed has it.
"""

import concurrent.futures
import dataclasses
import functools
import math
import operator
import re
import threading
import time
from typing import NamedTuple

import numpy as np

from pallas_kernels.emulator import host, waiting
from pallas_kernels.emulator.chip.machine import LIMIT, Machine
from pallas_kernels.emulator.chip.memory import GRAIN, PARAM_BASE, Global, Region
from pallas_kernels.emulator.chip.tensor_map import TensorMap
from pallas_kernels.emulator.chip.warp import Launch
from pallas_kernels.emulator.observed import Observed
from pallas_kernels.emulator.ptx import parse
from pallas_kernels.emulator.ptx.handlers import Fault
from pallas_kernels.emulator.ptx.program import Program

POLICIES = ("fair", "uneven", "early", "late", "order")
# A thread of its own, made while this module is imported: XLA's threads, in which it calls back, count subnormal numbers as zero.
_POOL = concurrent.futures.ThreadPoolExecutor(1)
_POOL.submit(lambda: None).result()


class Finding(NamedTuple):
    """What a kernel did: which rule it broke or used, where in Python, by which instruction, with what, and how often in the launch."""

    kind: str
    place: str
    instruction: str
    detail: str
    count: int


@dataclasses.dataclass
class Result:
    """What a launch did.

    Attributes:
      name: of the kernel.
      outputs: arrays; what nobody wrote in them is garbage.
      reports: `Finding`s that a GPU would punish, with wrong numbers or with none; notes: what is allowed but worth knowing.
      executed: instructions by name, in warps.
      warps: that ran. blocks: that ran, by their numbers in the grid; None where all did. grid: how many there are.
      seconds: that it took here.
      instructions: of the kernel, as PTX has them.
      observed: by block what it did, where that was asked for; see `Observed`.
    """

    name: str
    outputs: list
    reports: list[Finding]
    notes: list[Finding]
    executed: dict[str, int]
    warps: int
    blocks: tuple | None
    grid: tuple[int, int, int]
    seconds: float
    seed: int
    policy: str
    instructions: list = dataclasses.field(repr=False, default_factory=list)
    observed: dict[tuple[int, int, int], Observed] = dataclasses.field(repr=False, default_factory=dict)
    _regions: list[Region] = dataclasses.field(repr=False, default_factory=list)

    def __str__(self) -> str:
        blocks = math.prod(self.grid) if self.blocks is None else f"{len(self.blocks)} of {math.prod(self.grid)}"
        said = lambda findings: list(dict.fromkeys(f"{f.kind} ({f.place.rpartition('/')[2]})" for f in findings))
        missing = [f"{n:,} of {self.outputs[i].size:,} elements of result {i} not written" for i, n in self.unwritten().items()]
        found = "; ".join(said(self.reports) + missing) or "nothing to report"
        noted = f"; noted: {', '.join(said(self.notes))}" if self.notes else ""
        return f"{self.name}: {blocks} blocks, {sum(self.executed.values()):,} instructions, {self.seconds:.1f} s, {found}{noted}"

    def unwritten(self) -> dict[int, int]:
        """Of results that lack some: how many elements nobody wrote; but not if it began as an operand, or only some blocks ran."""
        if self.blocks is not None:
            return {}
        counts = {i: int((~self.written(i)).sum()) for i, region in enumerate(self._regions) if not region.given}
        return {i: n for i, n in counts.items() if n}

    def written(self, output: int) -> np.ndarray:
        """Bool, in the shape of an output: which elements the kernel wrote (for elements of one byte: they, or the one beside them)."""
        array, cells = self.outputs[output], self._regions[output].written()
        if array.itemsize < GRAIN:
            return np.repeat(cells, GRAIN)[: array.size].reshape(array.shape)
        return cells[: array.nbytes // GRAIN].reshape(array.size, -1).any(1).reshape(array.shape)


@functools.lru_cache(maxsize=64)
def load(compiled) -> tuple[Program, host.Host, int]:
    """(Program, Host, registers a thread) of a `capture.Compiled`."""
    registers = int(re.search(r"Used (\d+) registers", compiled.ptxas)[1])
    return Program(parse.parse(compiled.ptx)), host.read(compiled.host), registers


def launch(compiled, operands, shapes, aliases, *, change=None, **options) -> Result:
    """Runs a kernel on arrays.

    Args:
      compiled: a `capture.Compiled`.
      operands, shapes, aliases, options: see `execute`.
      change: see `emulator.Emulated`.

    Raises:
      Fault: the kernel did what no kernel may do.
      NotImplementedError: it has an instruction that is not known here.
    """
    program, its_host, registers = load(compiled)
    if change is not None:
        match change(compiled, its_host):
            case (Program() as program, host.Host() as its_host):
                pass
            case other:
                raise TypeError(f"change must return (Program, Host), such as it was given; got {str(other)[:80]}.")
    return execute(compiled.name, program, its_host, registers, operands, shapes, aliases, **options)


def execute(
    name: str,
    program: Program,
    its_host: host.Host,
    registers: int,
    operands,
    shapes,
    aliases: dict[int, int],
    *,
    seed: int = 0,
    policy: str = "fair",
    blocks=None,
    observe: bool = False,
    limit: int = LIMIT,
    stop: threading.Event | None = None,
) -> Result:
    """Runs a program on arrays.

    Args:
      name: of the kernel.
      program, its_host, registers: what `load` gives.
      operands: arrays of numpy, which are not written to.
      shapes: of the results, with dtypes.
      aliases: operand -> result that begins as what the operand is.
      seed, policy, blocks, observe, limit: see `emulator.Emulated`.
      stop: ends it when set; it is set where nobody waits any longer.
    """
    chosen = None if blocks is None else blocks(name, its_host.grid, its_host.cluster)
    firsts = None if chosen is None else _firsts(chosen, its_host, name)
    geometry = (its_host.grid, its_host.threads, its_host.cluster, its_host.shared_bytes)
    machine = (program.machine or Machine)(program, Launch(*geometry, None, {}, registers, observe), Global(), seed, policy, limit)
    stop = stop or threading.Event()
    machine.stopped = stop.is_set
    return waiting.for_result(_POOL.submit(_execute, name, machine, its_host, operands, shapes, aliases, firsts), stop)


def _execute(name, machine, its_host, operands, shapes, aliases, firsts) -> Result:
    start, program = time.perf_counter(), machine.program
    regions = _place(machine, operands, shapes, aliases)
    _parameters(program.kernel, its_host, machine.launch, regions)
    with np.errstate(all="ignore"):
        machine.run(firsts)
    results = regions[len(operands) :]
    outputs = [b.data[: _bytes(s)].view(s.dtype).reshape(s.shape) for b, s in zip(results, shapes, strict=True)]
    executed: dict[str, int] = {}
    for i, n in zip(program.instructions, machine.executed, strict=True):
        executed[i.name] = executed.get(i.name, 0) + int(n)
    ran = None if firsts is None else tuple(sorted(machine.ran))
    return Result(
        name=name,
        outputs=outputs,
        reports=[Finding(*found) for found in machine.reports.values()],
        notes=[Finding(*found) for found in machine.notes.values()],
        executed=executed,
        warps=len(machine.ran) * its_host.threads // 32,
        blocks=ran,
        grid=its_host.grid,
        seconds=time.perf_counter() - start,
        seed=machine.seed,
        policy=machine.policy,
        instructions=program.instructions,
        observed=machine.observed,
        _regions=results,
    )


def _firsts(chosen, its_host: host.Host, name: str) -> list[tuple[int, int, int]]:
    """The first block of each chosen cluster."""
    clusters = tuple(g // c for g, c in zip(its_host.grid, its_host.cluster, strict=True))
    try:
        chosen = list(dict.fromkeys(tuple(map(operator.index, ids)) for ids in chosen))
        wrong = [ids for ids in chosen if len(ids) != 3 or not all(0 <= n < size for n, size in zip(ids, clusters, strict=True))]
    except TypeError:
        wrong = [chosen]
    if wrong:
        raise ValueError(f"blocks must give clusters (x, y, z) of the {clusters} that {name} has; got {str(wrong[0])[:80]}.")
    return [tuple(n * c for n, c in zip(ids, its_host.cluster, strict=True)) for ids in chosen]


def _bytes(shape) -> int:
    return math.prod(shape.shape) * np.dtype(shape.dtype).itemsize


def _place(machine: Machine, operands, shapes, aliases) -> list[Region]:
    """Regions of operands and results."""
    agents = math.prod(machine.launch.cluster) * machine.launch.threads // 32
    regions = []
    for i, a in enumerate(operands):
        data = np.ascontiguousarray(a).reshape(-1).view(np.uint8)
        data = data.copy() if i in aliases else data
        regions.append(machine.memory.add(f"operand {i}", data, agents, writable=i in aliases, initialised=True))
    given = {o: i for i, o in aliases.items()}
    for o, shape in enumerate(shapes):
        if o in given:
            regions.append(regions[given[o]])
        else:
            data = machine.garbage(_bytes(shape))
            regions.append(machine.memory.add(f"result {o}", data, agents, writable=True, initialised=False))
    return regions


def _parameters(kernel, its_host, its_launch, regions) -> None:
    """Fills the launch's parameters and tensor maps."""
    total = max((offset + size for offset, size in kernel.params.values()), default=0)
    its_launch.params = np.zeros(total, np.uint8)
    if len(kernel.params) != len(its_host.arguments):
        raise Fault(f"{len(kernel.params)} parameters, {len(its_host.arguments)} arguments")
    for (offset, size), argument in zip(kernel.params.values(), its_host.arguments, strict=True):
        if isinstance(argument, host.Pointer):
            address = regions[argument.to[1]].base + argument.offset
            its_launch.params[offset : offset + 8] = np.frombuffer(np.uint64(address).tobytes(), np.uint8)
            continue
        if not isinstance(argument, dict):
            its_launch.params[offset : offset + size] = np.frombuffer(int(argument).to_bytes(size, "little", signed=argument < 0), np.uint8)
            continue
        for at, d in argument.items():
            if (offset + at) % 64 or at + 128 > size:
                raise Fault("tensor map out of place")
            base = regions[d.argument].base + d.offset
            strides = (d.element, *(s * d.element for s in reversed(d.strides[:-1])))
            if d.strides[-1] != 1:
                raise Fault("tensor map: innermost stride")
            its_launch.tensor_maps[PARAM_BASE + offset + at] = TensorMap(
                base, d.element, tuple(reversed(d.sizes)), strides, tuple(reversed(d.box)), d.swizzle
            )
