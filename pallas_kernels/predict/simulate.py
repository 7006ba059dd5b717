"""A launch's busiest multiprocessor, run with a clock (`clock`); what of it is not emulated is extrapolated. Computed, never measured."""

import collections
import dataclasses
import math
import re

from pallas_kernels.aot.kernel import ctas_per_sm
from pallas_kernels.emulator import launch
from pallas_kernels.predict import chip as chips
from pallas_kernels.predict import sass
from pallas_kernels.predict.clock import Clocked, Shares, Step
from pallas_kernels.predict.counts import Block, Counts, Sampled, has_sass, mean

RESIDENT = 4 * 2**20  # bytes of an array that counts as still in the L2 cache: what the launch before wrote, tables, a few rows
# Kernels that in a decode step come behind a launch that leaves them room: one of few blocks, or of small ones. The others are set up, too,
# but find a place only where a block before them has ended.
ROOM = {"project_qkv", "project_out", "router", "route", "moe_gate_up", "add_norm", "unembed"}
ROUNDS = 2  # generations of blocks that are emulated where a multiprocessor has more, one after the other
_SHAPE = re.compile(r"m64n(\d+)k16")
_WIDTH = {"b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "bf16": 2, "f16": 2, "b64": 8, "u64": 8, "s64": 8, "f64": 8}


@dataclasses.dataclass(frozen=True)
class Timing:
    """What the clock said of one launch, without what comes before its first instruction and after its last.

    Attributes:
      cycles: from the first instruction to the last.
      busy: cycles that each of the busiest multiprocessor's servers worked in them.
      early: whether the launch is set up before its turn; `cycles` are those from its turn on.
    """

    cycles: float
    busy: dict
    early: bool = False


def steps(program, code: list[collections.Counter], conflicts: float) -> list[Step]:
    """What `clock` must know of each instruction.

    Args:
      code: the machine's instructions of each, from `sass.attributed`.
      conflicts: wavefronts of shared memory for each that an access without bank conflicts takes.
    """
    return [_step(program, i, n, made, conflicts) for n, (i, made) in enumerate(zip(program.instructions, code, strict=True))]


def _step(program, i, n: int, made: collections.Counter, conflicts: float) -> Step:
    slots = sum(count for name, count in made.items() if name != "NOP")
    reads = tuple({number for _, number in program.sources[n]})
    kind, amount = _kind(i, made, conflicts)
    target = i.operands[0] if i.operands and i.op[0] not in ("st", "red", "bar", "cp", "wgmma", "bra", "stmatrix", "fence") else ()
    names = target if isinstance(target, tuple) else (target,)
    writes = tuple(program.number[t] for t in names if isinstance(t, str) and t in program.number)
    return Step(kind, slots, reads, writes, amount)


def _kind(i, made: collections.Counter, conflicts: float) -> tuple[str, float]:
    op, special = i.op, sum(count for name, count in made.items() if name.startswith("MUFU"))
    if op[0] == "wgmma":
        if op[1] == "commit_group":
            return "commit products", 0
        if op[1] == "wait_group":
            return "wait products", i.operands[0]
        columns = next((int(found[1]) for found in map(_SHAPE.match, op) if found), 0)
        return ("product", chips.wgmma_cycles(columns, from_registers=isinstance(i.operands[1], tuple))) if columns else ("alu", 0)
    if op[0] == "cp" and "bulk" in op:
        if "commit_group" in op:
            return "commit copies", 0
        return ("wait copies", i.operands[0]) if "wait_group" in op else ("copy", 0)
    if op[0] in ("ld", "st", "atom", "red") and "param" not in op:
        words = next((int(word[1:]) for word in op if word in ("v2", "v4", "v8")), 1) * _WIDTH.get(op[-1], 4) / 4
        return ("global", 0) if any(word.startswith("global") for word in op) else ("shared", max(1.0, words) * conflicts)
    if op[0] in ("bar", "barrier", "mbarrier", "fence"):
        return "barrier", 0
    if op[:2] == ("griddepcontrol", "wait"):
        return "turn", 0
    if op[0] in ("bra", "ret"):
        return "branch", 0
    if op[0] in ("shfl", "stmatrix", "ldmatrix"):
        return "shared", 4 if op[0] != "shfl" and isinstance(i.operands[1], tuple) else 1
    return ("special", special * chips.SPECIAL) if special else ("alu", 0)


def run(compiled, operands, shapes, aliases, counts: Counts, chip: chips.Chip) -> Timing:
    """Emulates the blocks of one multiprocessor, or a cluster, with a clock."""
    program, its_host, registers = launch.load(compiled)
    blocks, per = math.prod(its_host.grid), math.prod(its_host.cluster)
    held = max(1, ctas_per_sm(registers, its_host.threads, its_host.shared_bytes))
    most = math.ceil(blocks / chip.multiprocessors)  # of the busiest multiprocessor
    held = min(held, most)
    emulated = per if per > 1 else min(most, ROUNDS * held, max(its_host.grid))
    size = its_host.cluster if per > 1 else tuple(emulated if a == _axis(its_host.grid) else 1 for a in range(3))
    first = counts.firsts[len(counts.firsts) // 2] if per > 1 else tuple(
        min(f, g - s) for f, g, s in zip(counts.firsts[len(counts.firsts) // 2], its_host.grid, size, strict=True)
    )  # fmt: skip
    waits = any(i.op[:2] == ("griddepcontrol", "wait") for i in program.instructions)
    early = chip.launch * chip.hertz if waits and compiled.name in ROOM else 0.0
    machines = []
    average = mean(counts.blocks)
    code = sass.attributed(compiled.ptx)
    shares = _shares(counts, average, blocks, chip, most, held if per > 1 else 1, per > 1)
    ideal = average.wavefronts / max(1.0, average.ideal)

    def change(_, __):
        moved = Sampled(program.kernel, its_host.grid, first, Block())
        table = steps(moved, code, ideal)

        def machine(*arguments):
            made = Clocked(*arguments)
            made.clock(table, chip, shares, held, per > 1, held if per > 1 else 1.0, early)
            machines.append(made)
            return made

        moved.machine = machine
        return moved, dataclasses.replace(its_host, grid=size, cluster=size)

    launch.launch(compiled, operands, shapes, aliases, seed=1, policy="order", change=change)
    (machine,) = machines
    work = sum(n for i, n in zip(program.instructions, machine.executed, strict=True) if has_sass(i)) / math.prod(size)
    timing = _timing(machine, blocks, most, held, emulated, per, chip)
    uneven = average.instructions / work  # where blocks do not all do as much, a multiprocessor gets some of each kind
    cycles = max(0.0, timing.cycles * uneven - early)
    return Timing(cycles, {name: cycles * uneven for name, cycles in timing.busy.items()}, waits)


def _timing(machine: Clocked, blocks: int, most: int, held: int, emulated: int, per: int, chip: chips.Chip) -> Timing:
    ends = sorted(machine.ends)
    busy = collections.Counter()
    for name, cycles in machine.cores[0].busy.items():
        busy[name] += cycles / (chips.SCHEDULERS if name in ("issue slots", "tensor cores", "special functions") else 1)
    cycles = ends[-1]
    if per > 1:
        slots = held * chip.multiprocessors // per * per
        times = math.ceil(blocks / slots)
        return Timing(times * cycles + (times - 1) * chip.start, {name: times * value for name, value in busy.items()})
    if most > emulated:
        later = (cycles - ends[held - 1]) / (emulated - held) if emulated > held else cycles
        cycles += (most - emulated) * later
    return Timing(cycles, {name: value * most / emulated for name, value in busy.items()})


def _axis(grid) -> int:
    return max(range(3), key=lambda a: grid[a])


def _shares(counts: Counts, average: Block, blocks: int, chip: chips.Chip, most: int, crowd: int, apart: bool) -> Shares:
    """What the blocks of the busiest multiprocessor get if all blocks under way get the same."""
    part = 1 / min(blocks, chip.multiprocessors * crowd) if apart else most / blocks
    unique = {name: min(1.0, counts.sizes[name] / (blocks * n)) for name, n in average.read.items() if n}
    resident = frozenset(name for name, size in counts.sizes.items() if size <= RESIDENT)
    return Shares(chip.bandwidth / chip.hertz * part, chip.l2_bandwidth / chip.hertz * part, resident, unique)
