"""Predicted times of the kernels at the named gpt-oss shapes, and of whole decode steps, with what binds them; nothing here is measured.

python -m pallas_kernels.predict --op=moe --name="20b, 1 token" --gpu=h200
python -m pallas_kernels.predict --write                   # into the table that `pallas_kernels.bench` shows; the cases of decode steps
python -m pallas_kernels.predict --steps                   # whole steps, from that table
"""

import os

from absl import app, flags
import jax

from pallas_kernels import aot, bench
from pallas_kernels.predict import cases, chip, step, table

_GPU = flags.DEFINE_list("gpu", ["h200"], "Which GPUs to predict for.")
_OP = flags.DEFINE_list("op", [], "Only ops whose names begin with one of these.")
_NAME = flags.DEFINE_multi_string("name", [], "Only cases whose names have this, from the start of a word; may be repeated.")
_BLOCKS = flags.DEFINE_integer("blocks", 3, "Clusters of a grid whose work is counted.", lower_bound=1)
_WRITE = flags.DEFINE_bool("write", False, "Write the predictions down, those that are stale or not there.")
_STEPS = flags.DEFINE_bool("steps", False, "Whole decode steps, from what was written down.")

_HEADER = ["op", "case", "kernel", "gpu", "predicted us", "floor us", "of memory", "waves", "bound by", "parts"]
_BATCHES = (1, 16)


def of_steps() -> set[tuple[str, str]]:
    """Op and name of the cases that a step is made of."""
    found = set()
    for batch in _BATCHES:
        tokens = f"{batch} token{'s' if batch > 1 else ''}"
        found |= {(op, f"20b, {tokens}") for op in ("projection.qkv", "projection.out", "projection.unembed", "norm.add_norm")}
        found |= {
            (op, f"{model}, {tokens}") for op in ("routing.router", "routing.route", "moe.gate_up", "moe.down") for model in step.LAYERS
        }
        found |= {
            ("attention.decode", f"20b, batch {batch}, {context}") for context in ("1k context", "8k context", "8k context, window 128")
        }
    return found


def steps() -> str:
    """A table of whole steps."""
    rows, out = table.read(), []
    for gpu in _GPU.value:
        for model in step.LAYERS:
            for batch in _BATCHES:
                try:
                    found = step.step(rows, model, batch, gpu)
                except ValueError as error:
                    out.append([model, str(batch), gpu, "", "", "", str(error)])
                    continue
                worst = sorted(found.parts.items(), key=lambda part: part[1][1] - part[1][0])[:4]
                lost = ", ".join(f"{name} {(s - f) * 1e6:.0f}" for name, (s, f) in worst)
                cells = [f"{found.seconds * 1e3:.2f}", f"{found.floor * 1e3:.2f}", f"{found.ratio:.2f}x", lost]
                out.append([model, str(batch), gpu, *cells])
    return bench.table(["model", "batch", "gpu", "predicted ms", "floor ms", "ratio", "most above their floors, us"], out)


def main(argv: list[str]) -> int | str:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if not _GPU.value or set(_GPU.value) - set(chip.CHIPS):
        raise app.UsageError(f"--gpu must name some of {', '.join(chip.CHIPS)}; got {', '.join(_GPU.value) or 'none'}.")
    if _STEPS.value and (_OP.value or _NAME.value or _WRITE.value):
        raise app.UsageError("--steps are whole, from what was written down: pass it without --op, --name and --write.")
    if _STEPS.value:
        print(steps())
        return 0
    try:
        chosen = bench.cases(_OP.value, _NAME.value)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    if _WRITE.value and not os.access(table.PATH if table.PATH.exists() else table.PATH.parent, os.W_OK):
        raise app.UsageError(f"--write needs a table that can be written to; {table.PATH} cannot; do it in a checkout of your own.")
    jax.config.update("jax_platforms", "cpu")
    if reason := aot.unavailable():
        return reason
    rows: list[list[str]] = []
    try:
        predicted(chosen, rows)
        status = 0
    except KeyboardInterrupt:
        status = 130
    print("\nPredicted, not measured.\n" + bench.table(_HEADER, rows) if rows else "Nothing to predict." if not status else "")
    return status


def predicted(chosen: list[bench.Case], rows: list[list[str]]) -> None:
    """Predicts cases, and adds a row of each kernel as it comes; writes them down where that is asked for."""
    gpus = tuple(_GPU.value)
    known = {(r.op, r.case, r.gpu) for r in table.read() if not table.stale([r])} if _WRITE.value else set()
    for case in chosen:
        wanted = not _WRITE.value or (case.op, case.name) in of_steps()
        if case.compares or not wanted or all((case.op, case.name, gpu) in known for gpu in gpus):
            continue
        for gpu, predictions in cases.predict(case, gpus, samples=_BLOCKS.value).items():
            for p in predictions:
                parts = ", ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in sorted(p.parts.items(), key=lambda part: -part[1]))
                cells = [f"{p.seconds * 1e6:.1f}", f"{p.floor * 1e6:.1f}", f"{100 * p.share:.0f}%", f"{p.waves:.2f}", p.binding, parts]
                if not rows:
                    print("Predicted, not measured: " + "  ".join(_HEADER), flush=True)
                rows.append([case.op, case.name, p.kernel, gpu, *cells])
                print("  ".join(rows[-1]), flush=True)
            if _WRITE.value:
                made = table.source(case.op)
                table.write(
                    table.Row(case.op, case.name, gpu, p.kernel, p.launches, p.seconds, p.floor, p.binding, made) for p in predictions
                )


if __name__ == "__main__":
    app.run(main)
