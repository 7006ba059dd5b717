"""A kernel's check itself, phase by phase, in whatever process: against XLA's reference in float32, and against its own other runs."""

from collections.abc import Iterable, Iterator
import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import hopper
from pallas_kernels.bench import Case, measure
from pallas_kernels.check import selection

RUNS, MORE_RUNS = 3, 10  # of a kernel; of all together, where one may be too early for another


def rehearsed(kernel: str) -> Iterator[tuple[str, dict]]:
    """The phases of a kernel's small call in Mosaic's interpreter; launches that are tried together are run together."""
    if kernel == selection.TOGETHER:
        from pallas_kernels.check import together

        yield from phases([together.case("small", together.SMALL, 1)], runs=1, around=hopper.interpret)
        return
    from pallas_kernels.bench import small

    op, tokens = _SMALL[kernel]
    (call,) = (each for each in small.cases([op], tokens=[tokens]) if each.op == op)
    arguments = lambda key: jax.tree.map(jnp.asarray, call.arguments())
    case = Case(call.op, call.name, call.run, call.reference, arguments, bytes=0, flops=0)
    with call.tuned():
        yield from phases([case], runs=1, around=hopper.interpret)


_SMALL = {  # kernel -> op of its small call, tokens
    "project_qkv": ("projection.qkv", 2),
    "project_out": ("projection.out", 2),
    "unembed": ("projection.unembed", 2),
    "attention_decode": ("attention.decode", 2),
    "attention_prefill": ("attention.prefill", 36),
    "router": ("routing.router", 2),
    "route": ("routing.route", 2),
    "moe_gate_up": ("moe.decode", 2),
    "moe_down": ("moe.decode", 2),
    "moe_grouped": ("moe.grouped", 2),
    "add_norm": ("norm.add_norm", 2),
}


def checked(kernel: str, preset: str, without: Iterable[str] = ()) -> Iterator[tuple[str, dict]]:
    """The phases of a kernel's check at a model's shapes, on the GPU; of all together without those that are left out."""
    if kernel == selection.TOGETHER:
        from pallas_kernels.check import together

        yield from phases(together.cases(preset, without), runs=MORE_RUNS)
    else:
        yield from phases(selection.cases(kernel, preset), runs=RUNS)


def phases(cases: Iterable[Case], *, runs: int, around=contextlib.nullcontext) -> Iterator[tuple[str, dict]]:
    """(phase, what is known) before each phase begins, "done" with the numbers after each case; see `watching.LIMITS`.

    All that can be made ready is, before the first one runs.

    Args:
      cases: of one kernel.
      runs: times that it is run; all must give the same bits.
      around: what it is traced within.
    """
    yield "device", {}
    jax.block_until_ready(jnp.ones(8) + 1)
    cases, ready = list(cases), []
    for case in cases:
        yield "reference", {"case": case.name}
        given = jax.block_until_ready(measure.arguments(case))
        wanted = jax.block_until_ready(measure.wanted(case))
        yield "compile", {"case": case.name}
        with around():
            ready.append((case, measure.program(case).lower(*given).compile(), wanted))
        del given
    for case, program, wanted in ready:
        given = jax.block_until_ready(measure.arguments(case))
        yield "run", {"case": case.name}
        got = jax.block_until_ready(program(*given))
        del given  # it may have been written over
        same = all(_equal(got, program(*measure.arguments(case))) for _ in range(runs - 1))
        error, worst = measure.compare(case, got, wanted)
        yield "done", {"case": case.name, "error": error, "worst": worst, "same": same}


def _equal(a, b) -> bool:
    """Whether two trees are the same to the bit, so far as they hold numbers."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x).view(np.uint8), np.asarray(y).view(np.uint8)) for x, y in pairs)
