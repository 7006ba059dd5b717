"""From what blocks do (`counts`) and when (`simulate`) to a launch's time and what binds it. Computed, never measured."""

import dataclasses
import math

from pallas_kernels.aot.kernel import ctas_per_sm
from pallas_kernels.predict import chip as chips
from pallas_kernels.predict.counts import Counts, mean
from pallas_kernels.predict.simulate import Timing

WAITING = "latency"  # what binds where no server of a multiprocessor works most of the time


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a launch takes.

    Attributes:
      kernel: its name.
      seconds: from the end of the launch before it in a graph to its own end; not less than `floor`.
      floor: seconds in which its bytes of memory can move at all, at the bandwidth that reads reach.
      bytes: of memory that it must read and write.
      binding: what works for the largest part of the time; "latency" if more of it is waited than anything works, "launch" if that is
        the start of a kernel in a graph.
      parts: seconds that each resource works on the busiest multiprocessor; they overlap. "launch" and "latency" are what is left.
      waves: blocks by how many the chip holds at a time.
      multiprocessors: that have a block.
      launches: how often the function launches this kernel.
    """

    kernel: str
    seconds: float
    floor: float
    bytes: float
    binding: str
    parts: dict[str, float]
    waves: float
    multiprocessors: int
    launches: int = 1

    @property
    def share(self) -> float:
        """Of the memory's bandwidth."""
        return self.floor / self.seconds


def launch(counts: Counts, timing: Timing, chip: chips.Chip) -> Prediction:
    """A launch's time from its counts and its busiest multiprocessor's clock."""
    blocks, per = math.prod(counts.grid), math.prod(counts.cluster)
    slots = ctas_per_sm(counts.registers, counts.threads, counts.shared_memory) * chip.multiprocessors // per * per
    moved = _moved(counts, blocks)
    working = {name: cycles * chip.cycle for name, cycles in timing.busy.items()}
    body = timing.cycles * chip.cycle
    around = (2 * chip.start + chip.l2_latency) * chip.cycle  # a block begins; what it wrote last is there
    begins = chip.launch * (chip.turn if timing.early else 1.0)
    floor = moved / chip.bandwidth
    # What is read before its turn takes the memory's bandwidth from the launch before.
    seconds = max(begins + around + body, floor)
    parts = working | {WAITING: max(0.0, body - max(working.values(), default=0.0)) + around, "launch": begins}
    binding = max(parts, key=parts.get)
    return Prediction(
        counts.name, seconds, moved / chip.bandwidth, moved, binding, parts, blocks / slots, min(blocks, chip.multiprocessors)
    )


def _moved(counts: Counts, blocks: int) -> float:
    """Bytes of memory: what blocks read of an array, but not more than it has, for the L2 cache gives it to the others."""
    average = mean(counts.blocks)
    arrays = [(name, n) for sums in (average.read, average.wrote) for name, n in sums.items()]
    return sum(min(blocks * n, counts.sizes[name]) for name, n in arrays)
