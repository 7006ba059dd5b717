"""From what blocks do (`counts`) and what a chip can (`chip`) to a launch's time, with a cause for each part. Computed, never measured."""

import dataclasses
import math

from pallas_kernels.aot.kernel import ctas_per_sm
from pallas_kernels.predict import chip as chips
from pallas_kernels.predict.counts import Block, Counts

ALONE = 2.2  # cycles from an instruction of a warp to its next, if the scheduler has no other warp [ASSUMED: some depend on the one before]
CHAIN = 2  # loads one after the other before the first bulk copy can go: parameters and tensor maps, tables [ASSUMED]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a launch takes.

    Attributes:
      name: of the kernel.
      seconds: from the end of the launch before it in a graph to its own end.
      floor: seconds in which its bytes of memory can move at all, `bytes` / the memory's bandwidth.
      bytes: of memory that it must read and write.
      binding: what most of the time is spent on.
      parts: seconds by cause. Those that overlap are not added: the largest of them is the launch's body.
      waves: of blocks, in units of as many as the chip holds at a time.
      idle: part of the multiprocessors that have no block in the last wave.
    """

    name: str
    seconds: float
    floor: float
    bytes: float
    binding: str
    parts: dict
    waves: float
    idle: float

    @property
    def share(self) -> float:
        """Of the memory's bandwidth."""
        return self.floor / self.seconds


def launch(counts: Counts, chip: chips.Chip, *, sass: int | None = None) -> Prediction:
    """A launch's time.

    Args:
      counts: of its blocks.
      sass: instructions of the machine's code; PTX's own are counted if None.
    """
    ratio = 1.0 if sass is None else sass / counts.static
    blocks, per = math.prod(counts.grid), math.prod(counts.cluster)
    held = ctas_per_sm(counts.registers, counts.threads, counts.shared_memory)
    slots = held * chip.multiprocessors // per * per
    waves = blocks / slots
    # The last wave: what is left lies on as many multiprocessors as there are.
    rest = blocks - (math.ceil(waves) - 1) * slots
    busy = min(chip.multiprocessors, rest)
    mean = _mean(counts.blocks)
    moved = _moved(counts, mean, blocks)
    traffic = blocks * (sum(mean.read.values()) + sum(mean.wrote.values()))
    per_wave = lambda count: _body(mean, counts, chip, ratio, count, moved * count / blocks, traffic * count / blocks)
    whole = [per_wave(slots)] * (math.ceil(waves) - 1) + [per_wave(rest)]
    parts = {name: sum(w[name] for w in whole) for name in whole[0]}
    body = sum(max(w.values()) for w in whole)
    latency = chip.start + CHAIN * chip.l2_latency + chip.memory_latency + chip.tma
    ends = chip.l2_latency + chip.start
    fixed = {"launch": chip.launch, "first bytes": latency * chip.cycle, "last bytes": ends * chip.cycle}
    if held == 1:  # nobody else works while a block begins or ends
        fixed = {k: v * (1 if k == "launch" else len(whole)) for k, v in fixed.items()}
    seconds = body + sum(fixed.values())
    every = parts | fixed
    binding = max(every, key=every.get)
    return Prediction(counts.name, seconds, moved / chip.bandwidth, moved, binding, every, waves, 1 - busy / chip.multiprocessors)


def _body(block: Block, counts: Counts, chip: chips.Chip, ratio: float, count: int, moved: float, traffic: float) -> dict:
    """Seconds by resource of `count` blocks at a time, evenly spread; `moved` and `traffic`: their bytes of memory and of the L2 cache."""
    each = math.ceil(count / chip.multiprocessors)  # blocks of the busiest multiprocessor
    warps = each * counts.threads / 32 / chips.SCHEDULERS
    issue = each * block.instructions * ratio / chips.SCHEDULERS * max(1.0, ALONE / max(1.0, warps))
    flying = min(block.flying, block.tma_bytes) or 4096.0
    latency = chip.memory_latency + chip.tma
    shared = block.wavefronts + block.tma_bytes / chips.WAVEFRONT
    cycles = {
        "issue slots": issue,
        "tensor cores": each * block.tensor,
        "special functions": each * block.special * chips.SPECIAL / chips.SCHEDULERS,
        "conversions": each * block.convert * chips.CONVERT / chips.SCHEDULERS,
        "shared memory": each * shared,
        "bytes in flight": sum(block.read.values()) / flying * latency,
        "multiprocessor's port": each * block.tma_bytes / chip.port,
    }
    return {"memory": moved / chip.bandwidth, "L2 cache": traffic / chip.l2_bandwidth} | {k: v * chip.cycle for k, v in cycles.items()}


def _mean(blocks: tuple[Block, ...]) -> Block:
    total = Block()
    for block in blocks:
        for field in dataclasses.fields(Block):
            value = getattr(block, field.name)
            if isinstance(value, dict):
                getattr(total, field.name).update(value)
            elif field.name == "flying":
                total.flying = max(total.flying, value)
            else:
                setattr(total, field.name, getattr(total, field.name) + value / len(blocks))
    for sums in (total.read, total.wrote):
        for name in sums:
            sums[name] /= len(blocks)
    return total


def _moved(counts: Counts, mean: Block, blocks: int) -> float:
    """Bytes of memory: what blocks read of an array, but not more than it has, for the L2 cache gives it to the others."""
    arrays = [(name, n) for sums in (mean.read, mean.wrote) for name, n in sums.items()]
    return sum(min(blocks * n, counts.sizes[name]) for name, n in arrays)
