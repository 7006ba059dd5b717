"""Checks every kernel on the Hopper GPU of this machine, each in a process with time limits, and keeps the verdict, which `load` reads.

    python -m pallas_kernels.check                    # gpt-oss-20b's shapes; with --preset=120b those of 120b
    python -m pallas_kernels.check --kernel=route --out=check.jsonl

Where JAX runs on a CPU it rehearses instead (--rehearse does so anywhere): small arrays, Mosaic's interpreter, and no verdict. The exit
status is 1 if a kernel did not pass, and on a GPU that the kernels are not written for; after Ctrl-C, which loses no verdict, 130.
"""

import dataclasses
import functools
import os

from absl import app, flags
import jax
import jax.numpy as jnp

from pallas_kernels import bench, check, hopper
from pallas_kernels.bench import lines
from pallas_kernels.check import verdicts

_PRESET = flags.DEFINE_enum("preset", "20b", list(check.PRESETS), "Whose shapes.")
_KERNEL = flags.DEFINE_list("kernel", list(check.CHECKS), "Which kernels; 'together' is those of a decode step one behind the other.")
_REHEARSE = flags.DEFINE_bool("rehearse", False, "Small arrays in Mosaic's interpreter, on the CPU; no verdict is kept.")
_OUT = flags.DEFINE_string("out", None, "File that JSON lines are appended to.")

_HEADER = ["kernel", "verdict", "cases", "error", "worst", "seconds", ""]


def row(outcome: check.Outcome) -> list[str]:
    """The table's row for one kernel; its numbers are the largest of its cases."""
    cases = outcome.cases.values()
    largest = [f"{max(case[name] for case in cases):.2g}" if cases else "" for name in ("error", "worst")]
    return [outcome.kernel, outcome.verdict, str(len(cases)), *largest, f"{outcome.seconds:.1f}", outcome.why]


def main(argv: list[str]) -> int | str:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if not _KERNEL.value or set(_KERNEL.value) - set(check.CHECKS):
        raise app.UsageError(f"--kernel must name some of {', '.join(check.CHECKS)}; got {', '.join(_KERNEL.value) or 'none'}.")
    if why := lines.refusal(_OUT.value):
        raise app.UsageError(why)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the memory is the children's
    device = None if _REHEARSE.value else jnp.zeros(()).device
    rehearse = device is None or device.platform == "cpu"
    if rehearse:
        where = "as asked" if device is None else f"for there is no Hopper GPU (H100, H200) here: JAX runs on {device.device_kind}"
        print(f"A rehearsal on the CPU, {where}. It says nothing of a GPU, and no verdict is kept.", flush=True)
    elif not hopper.is_hopper(device.device_kind) or hopper.unsupported():
        why = hopper.unsupported() or f"there is no Hopper GPU (H100, H200) here: JAX runs on {device.device_kind}"
        return f"No kernels run here, and none are checked: {why}."
    key = None if rehearse else verdicts.key(device.device_kind, device.client.platform_version)
    outcomes: list[check.Outcome] = []
    try:
        check.run(_KERNEL.value, _PRESET.value, rehearse=rehearse, told=functools.partial(tell, outcomes, key))
        interrupted = False
    except KeyboardInterrupt:
        interrupted = True
    print("\n" + bench.table(_HEADER, [row(outcome) for outcome in outcomes]))
    if key is not None:
        print(f"\nThe verdict on this {device.device_kind} is kept in {key.path}.")
    elif not interrupted and all(outcome.verdict == "passed" for outcome in outcomes):
        print("\nEvery kernel passed its rehearsal, in Mosaic's interpreter; no verdict on a GPU was written.")
    return 130 if interrupted else int(any(outcome.verdict != "passed" for outcome in outcomes))


def tell(outcomes: list[check.Outcome], key: verdicts.Key | None, outcome: check.Outcome) -> None:
    """Adds an outcome to the others, and keeps it at once: whoever stops the check loses none. Without a key it is a rehearsal's."""
    outcomes.append(outcome)
    print("  ".join(filter(None, row(outcome))), flush=True)
    if key is not None:
        check.keep(key, _PRESET.value, [outcome])
    where = {"jax": jax.__version__} if key is None else dataclasses.asdict(key)
    lines.append(_OUT.value, where | {"rehearsal": key is None, "preset": _PRESET.value} | dataclasses.asdict(outcome))


if __name__ == "__main__":
    app.run(main)
