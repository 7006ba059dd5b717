"""The table of every kernel at the named gpt-oss shapes, compiled for a GPU that need not be there.

    python -m pallas_kernels.aot --gpu=h200 --op=moe,attention --name=120b
    python -m pallas_kernels.aot --json            # a line per case

A row per Pallas kernel of a case; `launches` and what follows belong to the whole case. The exit status is 1 if a kernel spills;
after Ctrl-C, with the table so far, 130.
"""

import dataclasses
import json

from absl import app, flags
import jax

from pallas_kernels import aot, bench

_GPU = flags.DEFINE_enum("gpu", "h200", aot.GPUS, "Which GPU to compile for.")
_OP = flags.DEFINE_list("op", [], "Only ops whose names begin with one of these.")
_NAME = flags.DEFINE_multi_string("name", [], "Only cases whose names have this, from the start of a word; may be repeated.")
_COMPARE = flags.DEFINE_bool("compare", False, "XLA's forms of the ops too.")
_JSON = flags.DEFINE_bool("json", False, "A JSON line per case instead of the table.")
_HLO = flags.DEFINE_bool("hlo", False, "The optimised HLO of each case too.")

_HEADER = ["op", "case", "kernel", "regs", "spills", "smem", "CTAs/SM", "grid", "wgmma", "instr", "launches", "temporaries", "seconds"]


def rows(case: bench.Case, report: aot.Report) -> list[list[str]]:
    """The table's rows for one case."""
    own = [
        [
            kernel.name,
            str(kernel.registers),
            str(kernel.spill_bytes),
            f"{kernel.shared_memory:,}",
            str(kernel.ctas_per_sm),
            "x".join(map(str, kernel.grid)),
            str(kernel.wgmma),
            f"{kernel.instructions:,}",
        ]
        for kernel in report.pallas_kernels
    ] or [["", "", "", "", "", "", "", ""]]
    whole = [str(len(report.launches)), f"{report.temporary_bytes:,}", f"{report.seconds:.1f}"]
    return [[case.op, case.name, *kernel, *(whole if i == 0 else ["", "", ""])] for i, kernel in enumerate(own)]


def record(case: bench.Case, report: aot.Report) -> dict:
    """What the JSON line of one case holds."""
    fields = lambda value, *without: {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name not in without}
    kernels = [fields(k, "assembly") | {"ctas_per_sm": k.ctas_per_sm, "wgmma": k.wgmma} for k in report.kernels]
    where = {"op": case.op, "case": case.name, "gpu": _GPU.value, "jax": jax.__version__}
    return where | {"kernels": kernels} | fields(report, "hlo", "kernels")


def main(argv: list[str]) -> int | str:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    jax.config.update("jax_platforms", "cpu")  # a GPU that is there is not needed
    if reason := aot.unavailable():
        return reason
    try:
        chosen = [c for c in bench.cases(_OP.value, _NAME.value) if _COMPARE.value or not c.compares]
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    lines: list[list[str]] = []
    try:
        status = int(compiled(chosen, lines))
    except KeyboardInterrupt:
        status = 130
    if not _JSON.value:
        print(bench.table(_HEADER, lines))
    return status


def compiled(chosen: list[bench.Case], lines: list[list[str]]) -> bool:
    """Compiles cases, and adds the table's rows of each as it is done. Whether a kernel spills."""
    spills = False
    for case in chosen:
        report = aot.compile(case.run, *case.shapes(), gpu=_GPU.value, donate_argnums=case.donate)
        spills |= any(k.spill_bytes or k.stack_bytes for k in report.pallas_kernels)
        if _JSON.value:
            print(json.dumps(record(case, report)), flush=True)
        lines += rows(case, report)
        if _HLO.value:
            print(report.hlo, flush=True)
    return spills


if __name__ == "__main__":
    app.run(main)
