"""Every kernel's PTX, run: right, the same to the bit under every schedule, no rule broken."""

import pytest

from pallas_kernels import aot
from pallas_kernels.bench import small
from pallas_kernels.emulator import examine

pytestmark = pytest.mark.skipif(aot.unavailable() is not None, reason=str(aot.unavailable()))

KERNELS = {
    "project_qkv", "project_out", "unembed", "attention_decode", "attention_prefill", "route", "moe_gate_up", "moe_down",
    "moe_gate_up_grouped", "moe_down_grouped", "add_norm", "router",
}  # fmt: skip
CASES = {f"{case.op}, {case.name}": case for case in small.cases()}
FIRST = {case.op: case for case in small.cases(tokens=(9,))} | {case.op: case for case in reversed(small.cases(tokens=(3,)))}
seen: set[str] = set()


def check(case: small.Small, count: int) -> None:
    outcome = examine.examine(case, examine.schedules(count))
    assert not outcome.findings
    assert outcome.accurate, (outcome.errors, outcome.plain)
    assert outcome.same
    assert outcome.launches and all(launch.instructions for launch in outcome.launches)
    seen.update(launch.kernel for launch in outcome.launches)


@pytest.mark.parametrize("op", FIRST)
def test_each_kernel(op):
    check(FIRST[op], 2)


def test_no_kernel_is_left_out(request):
    """Every kernel there is was run by the test above."""
    if not {f"test_each_kernel[{op}]" for op in FIRST} <= {item.name for item in request.session.items}:
        pytest.skip("only some of the kernels were asked for")
    assert seen >= KERNELS
    assert {case.op for case in CASES.values()} == FIRST.keys()


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_every_call(name):
    check(CASES[name], 5)
