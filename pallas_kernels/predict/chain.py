"""Launches in a row, set up before their turn (`pallas_kernels.primitives.begin`): when each begins and ends. Computed, never measured.

A launch is on the multiprocessors as soon as the blocks of the one before have begun and there is room beside them; there it waits for
that one's end, and reads what no launch writes, up to what its stages hold. Memory serves one byte after the other.
"""

import dataclasses

from pallas_kernels.predict.chip import Chip

TURN = 0.65e-6  # seconds from a launch's end until the one that waits for it goes on [ASSUMED: half of a launch in a graph]
ROOM = 233_472  # bytes of a multiprocessor's shared memory [NV]; a block takes a kilobyte more than it asks for


@dataclasses.dataclass(frozen=True)
class Link:
    """A launch in a chain.

    Attributes:
      seconds: that it takes in a graph of launches that wait for one another to end, as `model.launch` has it.
      reading: of them, those in which its bytes of memory can move at all.
      early: seconds in which the bytes move that it may read before its turn.
      blocks, shared_memory: how many, and bytes of each.
      waits: it lets the next launch be set up only at its own turn.
      chained: it is set up before its turn.
    """

    seconds: float
    reading: float
    early: float = 0.0
    blocks: int = 1
    shared_memory: int = 0
    waits: bool = False
    chained: bool = True


def ends(links: list[Link], chip: Chip, turn: float = TURN) -> list[float]:
    """Seconds from the beginning of the first launch to the end of each."""
    begins, finishes = chip.start * chip.cycle, (chip.start + chip.l2_latency) * chip.cycle
    latency = (chip.memory_latency + chip.tma) * chip.cycle  # of the first bytes
    done = trigger = memory = 0.0
    before, earlier, result = None, 0.0, []
    for link in links:
        body = link.seconds - chip.launch - begins - finishes
        if before is None or not link.chained:
            at = begun = done + chip.launch + begins
            hidden = 0.0
        else:
            free = max(earlier, 0.0 if _fits(before, link, chip.multiprocessors) else done)  # the one before the last is gone by then
            begun = max(trigger + chip.launch, free) + begins
            at = max(begun, done + turn)
            hidden = 0.0
            if link.early:
                moved = min(link.early, max(0.0, at - max(begun + latency, memory)))
                hidden = min(latency, at - begun) + moved
        finished = at + max(body - hidden, min(body, latency))  # what the launch before wrote must still come
        trigger = at if link.waits else begun
        if link.blocks > 8 * chip.multiprocessors:  # several rounds: the next is set up when the last blocks begin
            trigger = max(trigger, finished - body / 2)
        memory = max(memory, at + link.reading) if link.reading > latency else memory
        earlier, done, before = done, finished + finishes, link
        result.append(done)
    return result


def _fits(before: Link, link: Link, multiprocessors: int) -> bool:
    """Whether all blocks find room beside those of the launch before, spread evenly."""
    size, its = link.shared_memory + 1024, before.shared_memory + 1024
    each, more = divmod(before.blocks, multiprocessors)
    places = (multiprocessors - more) * ((ROOM - each * its) // size) + more * ((ROOM - (each + 1) * its) // size)
    return places >= link.blocks
