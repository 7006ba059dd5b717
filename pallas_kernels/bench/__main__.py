"""Times every kernel at the named gpt-oss shapes on the Hopper GPU of this machine, and refuses a time to one that is wrong.

    python -m pallas_kernels.bench --op=moe --name="20b, 1 token" --name="20b, 16 tokens" --out=results.jsonl

First measures what the device can do (a copy, a bfloat16 product); a case's floor is the larger of its bytes and its operations at
those rates. Beside it stands what `pallas_kernels.predict` wrote down for an H100 or H200, computed and not measured, where the kernels are
still the same. Prints a row per case, and writes a JSON line per case. The exit status is 1 if a case was
wrong or failed, and where there is no such GPU; after Ctrl-C, with the table so far, 130.
"""

import dataclasses
import datetime

from absl import app, flags
import jax
import jax.numpy as jnp

from pallas_kernels import bench, hopper
from pallas_kernels.bench import lines, measure
from pallas_kernels.predict import table

_OP = flags.DEFINE_list("op", [], "Only ops whose names begin with one of these.")
_NAME = flags.DEFINE_multi_string("name", [], "Only cases whose names have this, from the start of a word; may be repeated.")
_OUT = flags.DEFINE_string("out", None, "File that JSON lines are appended to.")

_HEADER = ["op", "case", "error", "floor us", "predicted us", "measured us", "ratio", ""]


def row(result: measure.Result, predicted: float | None = None) -> list[str]:
    """The table's row for one case; `predicted` seconds, where there are any."""
    computed = "" if predicted is None else f"{predicted * 1e6:.1f}"
    if result.seconds is None:
        wrong = f"WRONG: error {result.error:.3g} (bound {measure.ERROR:.3g}), worst {result.worst:.3g} (bound {measure.WORST:.3g})"
        return [result.op, result.name, f"{result.error:.2g}", f"{result.floor * 1e6:.1f}", computed, "", "", wrong]
    note = "the host was the limit" if result.launched > 0.9 else ""
    times = [f"{result.floor * 1e6:.1f}", computed, f"{result.seconds * 1e6:.1f}", f"{result.ratio:.2f}"]
    return [result.op, result.name, f"{result.error:.2g}", *times, note]


def main(argv: list[str]) -> int | str:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if why := lines.refusal(_OUT.value):
        raise app.UsageError(why)
    try:
        chosen = bench.cases(_OP.value, _NAME.value)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    device = jnp.zeros(()).device
    if not hopper.is_hopper(device.device_kind):
        return f"There is no Hopper GPU (H100, H200) here to time kernels on: JAX runs on {device.device_kind}."
    rows: list[list[str]] = []
    try:
        right = timed(chosen, device.device_kind, rows)
    except KeyboardInterrupt:
        print("\n" + bench.table(_HEADER, rows))
        return 130
    print("\n" + bench.table(_HEADER, rows))
    return int(not right)


def timed(chosen: list[bench.Case], kind: str, rows: list[list[str]]) -> bool:
    """Times cases on a device of a kind, and adds a row of each as it comes. Whether all of them are right."""
    ceilings = measure.ceilings()
    print(f"{kind}: copies {ceilings.bandwidth / 1e12:.2f} TB/s, multiplies {ceilings.flops / 1e12:.0f} Tflop/s in bfloat16")
    where = {"device": kind, "jax": jax.__version__, "date": datetime.date.today().isoformat()}
    where |= {"copy_bytes_per_second": ceilings.bandwidth, "bfloat16_flops": ceilings.flops}
    right, written = True, table.read()
    for case in chosen:
        predicted = table.seconds(case.op, case.name, table.gpu_of(kind), written)
        try:
            result = measure.measure(case, ceilings)
            right, cells = right and result.right, row(result, predicted)
            told = dataclasses.asdict(result) | {"predicted_seconds": predicted}
        except Exception as error:  # what one kernel does must not cost the times of the others
            what = f"FAILED: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            right, cells = False, [case.op, case.name, "", "", "", "", "", what]
            told = {"op": case.op, "name": case.name, "failed": str(error)}
        rows.append(cells)
        print("  ".join(cells), flush=True)
        lines.append(_OUT.value, where | told)
    return right


if __name__ == "__main__":
    app.run(main)
