"""Emulates a few blocks of every kernel's launches at gpt-oss' true shapes, and compares what they write with float32.

    python -m pallas_kernels.emulator.true_shapes --op=moe --name=120b --out=results.jsonl

The blocks: the first of a grid, the last, one in the middle, those that may be ragged. Prints a row per launch, and writes a JSON line. The
exit status is 1 where an error is above the bound or a rule was broken; after Ctrl-C, with the table so far, 130.
"""

import dataclasses
import datetime
import importlib.metadata
import time

from absl import app, flags
import jax

from pallas_kernels import aot, bench
from pallas_kernels.bench import large, lines
from pallas_kernels.emulator import sampled
from pallas_kernels.emulator.launch import POLICIES

_OP = flags.DEFINE_list("op", [], "Only ops whose names begin with one of these.")
_NAME = flags.DEFINE_multi_string("name", [], "Only launches whose names have this, from the start of a word; may be repeated.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the schedule.")
_POLICY = flags.DEFINE_enum("policy", "fair", POLICIES, "Who goes next.")
_SECONDS = flags.DEFINE_float("seconds", None, "Begin no other launch after so many.")
_OUT = flags.DEFINE_string("out", None, "File that JSON lines are appended to.")

_HEADER = ["kernel", "case", "blocks", "of", "error", "findings", "instructions", "seconds", "largest array, GB"]


def main(argv: list[str]) -> int | str:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if why := lines.refusal(_OUT.value):
        raise app.UsageError(why)
    jax.config.update("jax_platforms", "cpu")  # a GPU that is there is not needed
    if reason := aot.unavailable():
        return reason
    try:
        chosen = large.cases(_OP.value, _NAME.value)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    table: list[list[str]] = []
    try:
        status = int(not emulated(chosen, table))
    except KeyboardInterrupt:
        status = 130
    print("\n" + bench.table(_HEADER, table))
    return status


def emulated(chosen: list[large.Large], table: list[list[str]]) -> bool:
    """Emulates launches, and adds the table's row of each as it comes. Whether all of them are right."""
    where = {"jax": jax.__version__, "ptxas": importlib.metadata.version("nvidia-cuda-nvcc"), "date": datetime.date.today().isoformat()}
    right, start = True, time.monotonic()
    for i, case in enumerate(chosen):
        if _SECONDS.value is not None and time.monotonic() - start > _SECONDS.value:
            print(f"{len(chosen) - i} of {len(chosen)} launches were not begun: {', '.join(f'{c.op} {c.name}' for c in chosen[i:])}")
            break
        outcome = sampled.run(case, seed=_SEED.value, policy=_POLICY.value)
        right = right and outcome.right
        table.append(outcome.row())
        print("  ".join(table[-1]), flush=True)
        lines.append(_OUT.value, where | dataclasses.asdict(outcome))
    return right


if __name__ == "__main__":
    app.run(main)
