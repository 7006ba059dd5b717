"""What ptxas made of the kernels' PTX: the same products, not serialised; registers within their budgets; wide loads and stores."""

import collections

import pytest

from pallas_kernels import aot, bench

QUICK = ("moe.down, 20b, 1 token", "norm.add_norm, 20b, 1 token")
SERIALISED, INJECTED = "C7510", "C7519"  # the first of several: each number up to C7518 is another reason to serialise products
# ptxas puts a warpgroup.arrive into the loop of a kernel whose accumulators go around it, behind the only wgmma.fence: the PTX is legal
# without (the emulator checks that nothing else touches them), and it costs one instruction a step.
ARRIVE_IN_LOOP = {"project_qkv", "project_out", "unembed"}
# What lanes may load from or store to global memory by themselves: tables, a row's statistics, a few numbers; all else is bulk copies.
GLOBAL = {
    "project_qkv": {"LD.E.64"},
    "project_out": set(),
    "unembed": set(),
    "attention_decode": {"LDG.E", "LDG.E.64", "LDG.E.128", "STG.E.U16"},
    "attention_prefill": {"LDG.E", "LDG.E.64", "LDG.E.128"},
    "router": {"LDG.E", "STG.E"},
    "route": {"LDG.E.64", "LD.E.64"},
    "moe_gate_up": {"LD.E", "LDG.E"},
    "moe_down": {"LDG.E"},
    "moe_gate_up_grouped": {"LD.E", "LDG.E"},
    "moe_down_grouped": {"LD.E", "LDG.E"},
    "add_norm": {"LDG.E", "STG.E"},
}
# Where a lane takes its operands or leaves its results: 16 bytes at a time, or matrices of 8 by 8.
WIDE = {
    "project_qkv": "STSM.16.M88.2",
    "project_out": "STSM.16.M88.4",
    "unembed": "STS.64",
    "attention_decode": "STSM.16.M88.4",
    "attention_prefill": "STSM.16.M88.4",
    "router": "LDS",
    "route": "LDS.128",
    "moe_gate_up": "LDS.128",
    "moe_down": "LDS.128",
    "moe_gate_up_grouped": "LDS.128",
    "moe_down_grouped": "LDS.128",
    "add_norm": "LDS.128",
}


def cases() -> list[bench.Case]:
    """The first and the last case of each op and model whose kernels are no others' too."""
    groups = {}
    for case in bench.cases():
        if not case.compares and case.op != "moe.decode":
            groups.setdefault((case.op, case.name.partition(",")[0]), []).append(case)
    return [case for group in groups.values() for case in dict.fromkeys((group[0], group[-1]))]


@pytest.mark.quick(*QUICK)
@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.op}, {case.name}")
def test_what_ptxas_made_of_it(case, compile_for_hopper):
    report = compile_for_hopper(case.run, *case.shapes(), donate_argnums=case.donate, xla_kernels=False)
    assert report.pallas_kernels
    for kernel in report.pallas_kernels:
        check(kernel)


def check(kernel: aot.Kernel) -> None:
    made = kernel.assembly
    assert kernel.wgmma == made.products, "every product of the PTX is one of the machine's, none twice, none left out"
    assert not [r for r in made.remarks if SERIALISED <= r < INJECTED], "the products wait for each other"
    assert INJECTED not in made.remarks or kernel.name in ARRIVE_IN_LOOP, made.remarks
    assert kernel.spill_bytes == kernel.stack_bytes == 0
    assert not {name for name in made.names if name.startswith(("LDL", "STL"))}, "local memory"
    registers(kernel)
    beside = {n for n in made.names if n.startswith(("LDG", "STG", "LD.", "ST.", "ATOM", "RED."))}
    assert beside <= GLOBAL[kernel.name], "the others move by bulk copies"
    assert any(name.startswith(("UTMALDG", "UBLKCP")) for name in made.names)
    assert made.names[WIDE[kernel.name]], sorted(n for n in made.names if n.startswith(("LDS", "STS")))


def registers(kernel: aot.Kernel) -> None:
    """A block's registers are what its warpgroups have, before setmaxnreg and after."""
    made, groups = kernel.assembly, kernel.threads // 128
    at_launch = -(-kernel.registers // 8) * 8
    assert at_launch * kernel.threads <= 65_536
    if not made.moved_registers:
        assert made.most_registers <= kernel.registers
        return
    low, high = min(made.moved_registers), max(made.moved_registers)
    assert set(made.moved_registers) == {low, high} and all(n % 8 == 0 and 24 <= n <= 256 for n in (low, high))
    assert low < at_launch < high, "one warpgroup gives, the others take"
    assert low + (groups - 1) * high <= groups * at_launch, "what is taken was given, or setmaxnreg waits for ever"
    assert made.most_registers <= high


def test_what_would_be_wrong_is_seen():
    names = {"HGMMA.64x8x16.F32.BF16": 4, "UTMALDG.3D": 1, "LDS.128": 1}
    good = dict(names=names, products=4, remarks=(), moved_registers=(), most_registers=60)
    kernel = lambda **changes: aot.Kernel(
        "moe_down", 62, 0, 0, 0, 128, (1, 1, 1), {"HGMMA": 4}, True, aot.Assembly(**{**good, "names": counted(names)} | changes)
    )
    check(kernel())
    for bad in (
        {"products": 5},
        {"remarks": (SERIALISED,)},
        {"remarks": ("C7513",)},
        {"remarks": (INJECTED,)},
        {"most_registers": 63},
        {"moved_registers": (104, 232)},
        {"names": counted(names | {"LDL": 1})},
        {"names": counted(names | {"STG.E.U16": 1})},
        {"names": counted(names | {"LDS.128": 0})},
    ):
        with pytest.raises(AssertionError):
            check(kernel(**bad))


def counted(names: dict) -> collections.Counter:
    return collections.Counter(names)
