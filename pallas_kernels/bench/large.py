"""The kernels at gpt-oss' true shapes, for the emulator, which runs a few blocks of a launch: of weights and pages only what these read is
filled, and the truth is computed for what they write.

Each op's own room says what its launches are; here is the list of these rooms, and what a launch is.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import importlib
import math
import mmap

import numpy as np

from pallas_kernels.bench import named

_OPS = ("projection.large", "attention.large", "routing.large", "moe.large", "norm.large")
MODULES = tuple(f"pallas_kernels.{module}" for module in _OPS)

Block = tuple[int, int, int]  # the place of a cluster in the grid of clusters, (x, y, z), x fastest


@dataclasses.dataclass(frozen=True)
class Large:
    """One launch at one true shape.

    Attributes:
      op: as in `bench.Case`.
      name: such as "120b, 33 tokens".
      kernel: what the launch is called.
      run: a function with this one kernel; shapes: of its arguments.
      operands: clusters that will run -> the kernel's operands, which may hold zeros where these read nothing.
      truth: (operands, for each result which elements were written) -> (number of the result, index, what should stand there in float32, or
        None if that does not matter). All that was written must be in one of these.
      more: clusters that are worth a look, besides those that `sample` takes.
    """

    op: str
    name: str
    kernel: str
    run: Callable
    shapes: tuple
    operands: Callable[[list[Block]], list[np.ndarray]]
    truth: Callable[[list[np.ndarray], list[np.ndarray]], Iterator[tuple[int, tuple, np.ndarray | None]]]
    more: tuple[Block, ...] = ()


def cases(ops: Iterable[str] = (), names: Iterable[str] = ()) -> list[Large]:
    """All launches, or those whose op begins with one of `ops` and whose name has one of `names` (`named.chosen`).

    Raises:
      ValueError: none is left.
    """
    every = [case for module in MODULES for case in importlib.import_module(module).cases()]
    return named.chosen(every, ops, names, "true shape")


def sample(clusters: Block) -> list[Block]:
    """The first of a grid's clusters, the last, one in the middle, and the last along x of the first: those that may be ragged."""
    last = tuple(n - 1 for n in clusters)
    return list(dict.fromkeys([(0, 0, 0), (last[0], 0, 0), tuple(n // 2 for n in clusters), last]))


def sparse(shape: tuple[int, ...], dtype) -> np.ndarray:
    """Zeros, which take memory only where something else is written. At least one element."""
    dtype = np.dtype(dtype)
    return np.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), np.uint8).view(dtype).reshape(shape)
