"""Emulates every kernel's small calls, each under several schedules, and says which results are right.

    python -m pallas_kernels.emulator --op=moe --tokens=3

Prints a row per launch, and writes a JSON line per call. A result is right if its error to float32 is at most twice that of XLA's form, if
its bits are the same under every schedule, and if no rule was broken; the exit status is 1 where one is not, 130 after Ctrl-C.
"""

import dataclasses
import datetime
import importlib.metadata

from absl import app, flags
import jax

from pallas_kernels import aot, bench
from pallas_kernels.bench import lines, small
from pallas_kernels.emulator import examine

_OP = flags.DEFINE_list("op", [], "Only ops whose names begin with one of these.")
_NAME = flags.DEFINE_multi_string("name", [], "Only calls whose names have this, from the start of a word; may be repeated.")
_TOKENS = flags.DEFINE_list("tokens", [], "Instead of the calls that there are, each op's plain one of so many tokens.")
_MOST = 4096  # tokens: more would take days
_SEEDS = flags.DEFINE_integer("seeds", 5, "Schedules of each call.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "File that JSON lines are appended to.")

_HEADER = ["kernel", "case", "schedules", "right", "same bits", "error", "XLA's error", "instructions", "seconds", "findings"]


def rows(outcome: examine.Outcome) -> list[list[str]]:
    """The table's rows for one call, one for each launch."""
    error, plain = outcome.worst
    judged = [str(outcome.schedules), _word(outcome.accurate), _word(outcome.same), f"{error:.2g}", f"{plain:.2g}"]
    launches = outcome.launches or (examine.Launch(outcome.op, 0, 0.0),)
    return [
        [launch.kernel, outcome.name, *judged, f"{launch.instructions:,}", f"{launch.seconds:.1f}", "; ".join(outcome.findings)]
        for launch in launches
    ]


def _word(yes: bool) -> str:
    return "yes" if yes else "NO"


def main(argv: list[str]) -> int | str:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    jax.config.update("jax_platforms", "cpu")  # a GPU that is there is not needed
    if reason := aot.unavailable():
        return reason
    if unread := [word for word in _TOKENS.value if not word.isdecimal() or len(word) > 9 or not 1 <= int(word) <= _MOST]:
        raise app.UsageError(f"--tokens must be integers from 1 to {_MOST:,}; got {unread[0][:80]}; pass such as --tokens=1,3.")
    if refused := lines.refusal(_OUT.value):
        raise app.UsageError(refused)
    try:
        chosen = small.cases(_OP.value, _NAME.value, list(map(int, _TOKENS.value)))
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    where = {"jax": jax.__version__, "ptxas": importlib.metadata.version("nvidia-cuda-nvcc"), "date": datetime.date.today().isoformat()}
    table, status = [], 0
    print("  ".join(_HEADER), flush=True)
    try:
        for case in chosen:
            outcome = examine.examine(case, examine.schedules(_SEEDS.value))
            status = status or int(not outcome.right)
            for cells in rows(outcome):
                table.append(cells)
                print("  ".join(cells).rstrip(), flush=True)
            lines.append(_OUT.value, where | dataclasses.asdict(outcome))
    except KeyboardInterrupt:
        status = 130
    print("\n" + bench.table(_HEADER, table))
    return status


if __name__ == "__main__":
    app.run(main)
