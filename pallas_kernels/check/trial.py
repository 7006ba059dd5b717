"""A kernel's check itself, phase by phase, in whatever process: against XLA's reference in float32, and against its own other runs."""

from collections.abc import Iterator
import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import hopper
from pallas_kernels.bench import Case, measure
from pallas_kernels.check import selection


def cases(kernel: str, preset: str | None) -> list[Case]:
    """A kernel's cases at a model's shapes, or, where that is None, small ones."""
    if preset is not None:
        return selection.cases(kernel, preset)
    from pallas_kernels.check import small

    return [small.case(kernel)]


def phases(cases: list[Case], *, runs: int, interpret: bool) -> Iterator[tuple[str, dict]]:
    """(phase, what is known) before each phase begins, "done" with the numbers after each case; see `watching.LIMITS`.

    Args:
      cases: of one kernel.
      runs: times that it is run; all must give the same bits.
      interpret: in Mosaic's interpreter.
    """
    yield "device", {}
    jax.block_until_ready(jnp.ones(8) + 1)
    for case in cases:
        here = {"case": case.name}
        yield "reference", here
        given = jax.block_until_ready(measure.arguments(case))
        wanted = jax.block_until_ready(measure.wanted(case))
        yield "compile", here
        with hopper.interpret() if interpret else contextlib.nullcontext():
            program = measure.program(case).lower(*given).compile()
        yield "run", here
        got = jax.block_until_ready(program(*given))
        del given  # it may have been written over
        same = all(_equal(got, program(*measure.arguments(case))) for _ in range(runs - 1))
        error, worst = measure.compare(case, got, wanted)
        yield "done", here | {"error": error, "worst": worst, "same": same}


def _equal(a, b) -> bool:
    """Whether two trees are the same to the bit, so far as they hold numbers."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x).view(np.uint8), np.asarray(y).view(np.uint8)) for x, y in pairs)
