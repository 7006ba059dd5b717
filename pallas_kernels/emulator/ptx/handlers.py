"""What instructions become: the table of functions that compile them, what these answer, what lanes of a warp share.

A handler takes (program, instruction) and gives a function of (warp, lanes) that runs the instruction; `lanes` is None where all 32 take
part, else a mask. It answers None (what stands behind it is next), the number of the next instruction, (lanes that jump, that number),
`BLOCK` (not yet: try again once something has happened) or `ENDED`. Knows neither the arithmetic nor the machine: both are built on it.
"""

from collections.abc import Callable

import numpy as np

LANES = 32
BLOCK = object()
ENDED = object()
HANDLERS: dict[str, Callable] = {}  # by the first word of an instruction


class Fault(Exception):
    """A kernel did what no kernel may do."""


class _Pending:
    """What a register holds that wgmma will write."""

    def __repr__(self):
        return "PENDING"


PENDING = _Pending()


def handles(*words: str) -> Callable:
    """Decorates the handler of instructions that begin with these words."""

    def add(fn):
        HANDLERS.update(dict.fromkeys(words, fn))
        return fn

    return add


def merge(lanes, new, old):
    """New values in some lanes."""
    if not isinstance(old, np.ndarray) or not isinstance(new, np.ndarray):
        return new
    return np.where(lanes, new, old)


def whole_warp(lanes, warp) -> None:
    """For instructions that all lanes must execute together."""
    if lanes is not None and not (lanes == warp.live).all():
        raise Fault(f"executed by {int(lanes.sum())} of {int(warp.live.sum())} lanes")
