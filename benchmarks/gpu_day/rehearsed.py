"""What stands in for `pallas_kernels.bench` where there is no Hopper: XLA's forms of small calls, checked and timed in the same way.

Its lines are the bench's, of a CPU; no kernel runs, and nothing is to be read from the times.
"""

import dataclasses
import datetime
import json
from pathlib import Path

from absl import app, flags
import jax
import jax.numpy as jnp

from pallas_kernels.bench import Case, measure, small

_OUT = flags.DEFINE_string("out", None, "File that JSON lines are appended to.", required=True)
_KERNEL = flags.DEFINE_enum("kernel", "add_norm", ["add_norm", "unembed"], "Whose small call.")
_OPS = {"add_norm": "norm.add_norm", "unembed": "projection.unembed"}


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    (call,) = small.cases([_OPS[_KERNEL.value]], tokens=[1])
    arguments = lambda key: jax.tree.map(jnp.asarray, call.arguments())
    case = Case(call.op, "20b, 1 token", call.xla, call.reference, arguments, bytes=1 << 20, flops=1 << 20)
    result = measure.measure(case, measure.Ceilings(1e10, 1e11))
    where = {"device": "cpu", "jax": jax.__version__, "date": datetime.date.today().isoformat()}
    with Path(_OUT.value).open("a", encoding="utf-8") as file:
        file.write(json.dumps(where | dataclasses.asdict(result)) + "\n")
    return int(not result.right)


if __name__ == "__main__":
    app.run(main)
