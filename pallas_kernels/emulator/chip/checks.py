"""Loads and stores of lanes against the shadow: what is wrong with an access is reported, and the access noted.

Nothing here keeps a kernel from going on: a fault is what no GPU would do (out of bounds, a write to an input), a report what a GPU may do
with any result. A store that changes nothing counts as none: several threads may write the same value at once.
"""

import numpy as np

from pallas_kernels.emulator.chip.memory import NEVER, Region
from pallas_kernels.emulator.ptx.handlers import Fault


def checked_read(machine, warp, region: Region, offsets: np.ndarray, size: int, where) -> None:
    """Notes the read of a warp, and what is wrong with it."""
    if not region.shadow:
        return
    cells = region.cells(offsets, size)
    if not region.initialised[cells].all():
        machine.note("uninitialised read", where, region.name)
    if not region.seen_by(warp, cells, warp.V).all():
        machine.report("race: read of what was not written before", where, _who(machine, region, cells, warp, warp.V))
    region.read[warp.agent, cells] = warp.V[warp.agent]


def checked_write(machine, warp, region: Region, offsets: np.ndarray, size: int, where, *, same: bool = False) -> None:
    """Notes the write of a warp, and what is wrong with it. `same`: it changes nothing, which several may do at once."""
    if not region.shadow:
        raise Fault(f"write to {region.name}, which is an input")
    cells = region.cells(offsets, size)
    if same and region.initialised[cells].all() and (region.before is None or not region.before[0][cells].any()):
        machine.note("writes what is there already", where, region.name)
    elif not region.seen_by(warp, cells, warp.V).all():
        machine.report("race: write over what was not written before", where, _who(machine, region, cells, warp, warp.V))
    if not region.unread(warp, cells):
        machine.report("race: write over what is read", where, readers(machine, region, cells, warp))
    if not region.unmultiplied(warp, cells):
        machine.report("race: write over an operand of wgmma", where, f"{region.name}+{int(offsets.min())}")
    region.wrote(warp, cells, machine.stamp())


def _who(machine, region: Region, cells, warp, clocks) -> str:
    bad = cells[~region.seen_by(warp, cells, clocks)]
    c = int(bad[0])
    copy = int(region.copy[c])
    by = f"copy {copy} ({machine.copies.get(copy, '')})" if copy else f"warp {region.agent[c]}"
    if region.before is not None and region.before[0][c]:
        by = "another cluster"
    return f"{region.name}+{region.offset(c)} (and {len(bad) - 1} more), warp {warp.agent}; written by {by} at {region.clock[c]}"


def readers(machine, region: Region, cells, warp) -> str:
    """Who may still read cells that a warp writes."""
    cells = np.arange(len(region.agent))[cells]
    bad = np.argwhere(region.read[:, cells] > warp.V[:, None])
    if not len(bad):
        return f"{region.name}, read by another cluster"
    agent, cell = bad[0]
    when = region.read[agent, cells[cell]]
    state = "still under way" if when == NEVER else f"at {when}"
    return f"{region.name}+{region.offset(cells[cell])} (and {len(bad) - 1} more), warp {warp.agent}; read by warp {agent} {state}"
