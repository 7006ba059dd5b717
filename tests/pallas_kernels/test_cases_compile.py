"""Every op's kernels at gpt-oss' shapes, compiled for a Hopper: quickly, without spills, on tensor cores, as many blocks as planned.

Of an op's cases for a model the first and the last are compiled here, `python -m pallas_kernels.aot` compiles all.
"""

import jax
import pytest

from pallas_kernels import bench

pytestmark = pytest.mark.thorough

NO_PRODUCTS = {"route", "router", "add_norm"}  # kernels that only compare and add
PLANNED = {  # blocks that a multiprocessor shall hold at a time, where more than one
    ("projection.unembed", "20b, 1 token"): 2,
    ("attention.decode", "20b, batch 1, 1k context"): 3,
    ("attention.decode", "20b, batch 256, 8k context, window 128"): 3,
    **{(f"moe.{op}", f"{model}, 1 token"): 3 for op in ("gate_up", "down") for model in ("20b", "120b")},
    **{(f"moe.{op}", f"{model}, 64 tokens"): 2 for op in ("gate_up", "down") for model in ("20b", "120b")},
}
SECONDS = 20  # to compile a kernel: twice what is wanted, since a machine that tests is busy; alone they take 1 to 5


def representatives() -> list[bench.Case]:
    """The first and the last case of each op and model."""
    groups = {}
    for case in bench.cases():
        if not case.compares:
            groups.setdefault((case.op, case.name.partition(",")[0]), []).append(case)
    return [case for group in groups.values() for case in dict.fromkeys((group[0], group[-1]))]


@pytest.mark.parametrize("case", representatives(), ids=lambda case: f"{case.op}, {case.name}")
def test_compiles_without_spills(case, compile_for_hopper):
    arguments = case.shapes()
    report = compile_for_hopper(case.run, *arguments, donate_argnums=case.donate)
    kernels = report.pallas_kernels
    assert kernels, f"no Pallas kernel: XLA's form was chosen; launches {report.launches}"
    names = {kernel.name for kernel in kernels}
    assert report.seconds < SECONDS * len(names)
    for kernel in kernels:
        assert kernel.spill_bytes == kernel.stack_bytes == 0, kernel
        assert kernel.name in NO_PRODUCTS or kernel.wgmma, kernel
        assert kernel.ctas_per_sm >= PLANNED.get((case.op, case.name), 1), kernel
    donated = jax.tree.leaves([arguments[i] for i in case.donate])
    assert report.alias_bytes == sum(a.size * a.dtype.itemsize for a in donated), "what is donated is updated in place"
