"""The named cases that kernels are compiled for (`pallas_kernels.aot`) and timed on (`python -m pallas_kernels.bench`).

Each op's own module of benchmarks says what its cases are; here is the list of these modules, and what a case is.
"""

from collections.abc import Callable, Iterable
import dataclasses
import importlib
import math

import jax

from pallas_kernels.bench import named

_OPS = ("projection.bench", "attention.bench", "routing.bench", "moe.bench", "moe.bench_grouped", "norm.bench")
MODULES = tuple(f"pallas_kernels.{module}" for module in _OPS)


@dataclasses.dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
      op: such as "moe.decode"; with ".xla" in it, what XLA makes of the same op, for comparison.
      name: of the shape, such as "20b, 16 tokens".
      run: the kernel; a function of the arguments that can be jitted.
      reference: the same arguments to the same outputs, in float32 inside.
      arguments: key -> tuple of arrays; pure and jitted. Shapes come from `jax.eval_shape`.
      bytes: least that must move.
      flops: least operations.
      donate: positions of arguments that are updated in place. Each of their arrays is an output too, of the same shape and dtype.
    """

    op: str
    name: str
    run: Callable
    reference: Callable
    arguments: Callable
    bytes: int
    flops: int
    donate: tuple[int, ...] = ()

    @property
    def compares(self) -> bool:
        """Whether it runs XLA's form, not a Pallas kernel."""
        return ".xla" in self.op

    def shapes(self) -> tuple:
        """The arguments as `jax.ShapeDtypeStruct`s."""
        return jax.eval_shape(self.arguments, jax.eval_shape(lambda: jax.random.key(0)))


def cases(ops: Iterable[str] = (), names: Iterable[str] = ()) -> list[Case]:
    """All cases, or those whose op begins with one of `ops` and whose name has one of `names` (`named.chosen`).

    Raises:
      ValueError: no case is left.
    """
    every = [case for module in MODULES for case in importlib.import_module(module).cases()]
    return named.chosen(every, ops, names)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Plain text in columns: words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(header))]

    def line(cells):
        placed = (cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(cells, widths, numeric, strict=True))
        return "  ".join(placed).rstrip()

    return "\n".join(map(line, [header, *rows]))


def _is_number(text: str) -> bool:
    try:
        return not text or math.isfinite(float(text.replace(",", "").rstrip("x%")))
    except ValueError:
        return False
