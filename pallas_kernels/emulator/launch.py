"""Runs a compiled kernel on arrays."""

import concurrent.futures
import dataclasses
import re
import time

import numpy as np

from pallas_kernels.emulator import host
from pallas_kernels.emulator.ptx import parse
from pallas_kernels.emulator.ptx.program import Program
from pallas_kernels.emulator.chip.machine import Launch, Machine
from pallas_kernels.emulator.chip.memory import PARAM_BASE, Fault, Global
from pallas_kernels.emulator.chip.tma import TensorMap

POLICIES = ("fair", "uneven", "early", "late", "order")
# A thread of its own, made while this module is imported: XLA's threads, in which it calls back, count subnormal numbers as zero.
_POOL = concurrent.futures.ThreadPoolExecutor(1)
_POOL.submit(lambda: None).result()
_programs: dict[str, tuple] = {}


@dataclasses.dataclass
class Result:
    """What a launch did: its outputs, what went wrong, what is worth knowing, instructions by name (executed by warps), seconds."""

    name: str
    outputs: list
    reports: list
    notes: list
    executed: dict
    warps: int
    seconds: float
    seed: int
    policy: str


def load(compiled) -> tuple:
    """(Program, Host, registers a thread) of a `capture.Compiled`."""
    if compiled.key not in _programs:
        registers = int(re.search(r"Used (\d+) registers", compiled.ptxas)[1])
        _programs[compiled.key] = Program(parse.parse(compiled.ptx)), host.read(compiled.host), registers
    return _programs[compiled.key]


def launch(compiled, operands, shapes, aliases, *, seed: int = 0, policy: str = "fair", change=None) -> Result:
    """Runs a kernel on arrays; see `capture.run`. `change(program, host)` may spoil either."""
    return _POOL.submit(_launch, compiled, operands, shapes, aliases, seed, policy, change).result()


def _launch(compiled, operands, shapes, aliases, seed, policy, change) -> Result:
    program, its_host, registers = load(compiled)
    if change is not None:
        program, its_host = change(compiled, its_host)
    start = time.perf_counter()
    memory, buffers, agents = Global(), [], int(np.prod(its_host.cluster)) * its_host.threads // 32
    geometry = (its_host.grid, its_host.threads, its_host.cluster, its_host.shared_bytes)
    machine = Machine(program, Launch(*geometry, None, {}, registers), memory, seed, policy)
    aliased = {i: o for i, o in aliases.items()}
    for i, a in enumerate(operands):
        data = np.frombuffer(bytearray(np.ascontiguousarray(a).tobytes()), np.uint8)
        buffers.append(memory.add(f"operand {i}", data, agents, writable=i in aliased, initialised=True))
    given = {o: i for i, o in aliased.items()}
    for o, s in enumerate(shapes):
        if o in given:
            buffers.append(buffers[given[o]])
        else:
            size = int(np.prod(s.shape)) * np.dtype(s.dtype).itemsize
            buffers.append(memory.add(f"result {o}", machine.garbage(size), agents, writable=True, initialised=False))
    _parameters(program.kernel, its_host, machine.launch, buffers)
    with np.errstate(all="ignore"):
        machine.run()
    size = lambda s: int(np.prod(s.shape)) * np.dtype(s.dtype).itemsize
    outputs = [b.data[: size(s)].view(s.dtype).reshape(s.shape) for b, s in zip(buffers[len(operands) :], shapes, strict=True)]
    executed = {}
    for i, n in zip(program.instructions, machine.executed):
        executed[i.name] = executed.get(i.name, 0) + int(n)
    warps = int(np.prod(its_host.grid)) * its_host.threads // 32
    seconds = time.perf_counter() - start
    said = list(machine.reports.values()), list(machine.notes.values())
    return Result(compiled.name, outputs, *said, executed, warps, seconds, seed, policy)


def _parameters(kernel, its_host, its_launch, buffers) -> None:
    """Fills the launch's parameters and tensor maps."""
    total = max((offset + size for offset, size in kernel.params.values()), default=0)
    its_launch.params = np.zeros(total, np.uint8)
    if len(kernel.params) != len(its_host.arguments):
        raise Fault(f"{len(kernel.params)} parameters, {len(its_host.arguments)} arguments")
    for (offset, size), argument in zip(kernel.params.values(), its_host.arguments):
        if isinstance(argument, host.Pointer):
            address = buffers[argument.to[1]].base + argument.offset
            its_launch.params[offset : offset + 8] = np.frombuffer(np.uint64(address).tobytes(), np.uint8)
            continue
        for at, d in argument.items():
            if (offset + at) % 64 or at + 128 > size:
                raise Fault("tensor map out of place")
            base = buffers[d.argument].base + d.offset
            strides = (d.element, *(s * d.element for s in reversed(d.strides[:-1])))
            if d.strides[-1] != 1:
                raise Fault("tensor map: innermost stride")
            its_launch.tensor_maps[PARAM_BASE + offset + at] = TensorMap(
                base, d.element, tuple(reversed(d.sizes)), strides, tuple(reversed(d.box)), d.swizzle
            )
