"""Predicted times of the kernels at the named gpt-oss shapes, with what binds them; nothing here is measured.

python -m pallas_kernels.predict --op=moe --name="20b, 1 token" --gpu=h200
"""

from absl import app, flags
import jax

from pallas_kernels import aot, bench
from pallas_kernels.predict import cases, chip

_GPU = flags.DEFINE_enum("gpu", "h200", list(chip.CHIPS), "Which GPU to predict for.")
_OP = flags.DEFINE_list("op", [], "Only ops whose names begin with one of these.")
_NAME = flags.DEFINE_string("name", "", "Only cases whose names contain this.")
_BLOCKS = flags.DEFINE_integer("blocks", 3, "Clusters of a grid that are emulated, and stand for all.", lower_bound=1)

_HEADER = ["op", "case", "kernel", "predicted us", "floor us", "of memory", "waves", "bound by", "parts"]


def main(argv: list[str]) -> int | str:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    jax.config.update("jax_platforms", "cpu")
    if reason := aot.unavailable():
        return reason
    rows = []
    for case in bench.cases(_OP.value, [_NAME.value] if _NAME.value else []):
        if case.compares:
            continue
        for p in cases.predict(case, (_GPU.value,), samples=_BLOCKS.value)[_GPU.value]:
            parts = ", ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in sorted(p.parts.items(), key=lambda part: -part[1]))
            cells = [f"{p.seconds * 1e6:.1f}", f"{p.floor * 1e6:.1f}", f"{100 * p.share:.0f}%", f"{p.waves:.2f}", p.binding, parts]
            rows.append([case.op, case.name, p.kernel, *cells])
            print("  ".join(rows[-1]), flush=True)
    print("\nPredicted, not measured.\n" + bench.table(_HEADER, rows))
    return 0


if __name__ == "__main__":
    app.run(main)
