"""What was measured, as tables for RESULTS.md, rows for the tuning tables, and lines of JSON; what was not, and why.

Knows the lines that the programs of `pieces` write, and no JAX.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import json
from pathlib import Path
import re

from benchmarks.gpu_day import running
from benchmarks.gpu_day.pieces import Piece
from pallas_kernels.predict import table
from pallas_kernels.tuning import Row

Cell = Callable[[dict], object]


def _text(value, pattern: str = "{}") -> str:
    return "" if value is None else pattern.format(value)


def _name(key: str) -> Cell:
    return lambda line: _text(line.get(key))


def _number(key: str, pattern: str = "{:,.1f}", times: float = 1) -> Cell:
    return lambda line: _text(None if not isinstance(line.get(key), int | float) else line[key] * times, pattern)


def _form(line: dict) -> str:
    left_out = line.get("without", "")
    return "kernels" if not left_out else "XLA's forms" if left_out.count(",") > 8 else f"kernels without {left_out}"


def _ratio(line: dict) -> str:
    seconds, floor = line.get("seconds"), line.get("floor")
    return f"{seconds / floor:.2f}" if seconds and floor else _text(line.get("failed"), "FAILED: {:.100}") or "WRONG"


_WHOLE = {  # heading -> cell
    "model": _name("preset"),
    "form": _form,
    "batch": _name("batch"),
    "context or prompt": lambda line: _text(line.get("context", line.get("prompt"))),
    "tok/s": _number("tokens_per_second"),
    "TPOT or prompt, ms": _number("milliseconds", "{:,.3f}"),
    "floor, ms (computed)": _number("floor_milliseconds", "{:,.3f}"),
    "predicted, ms": _number("predicted_milliseconds", "{:,.3f}"),
    "of floor": _number("floor_share", "{:.0%}"),
    "outside the device": _number("outside_device", "{:.0%}"),
    "": lambda line: line.get("refused", ""),
}
_TABLES = (  # title, whether a line belongs there, columns
    (
        "Kernels, right or not",
        lambda line: "verdict" in line,
        {
            "kernel": _name("kernel"),
            "shapes": _name("preset"),
            "verdict": _name("verdict"),
            "cases": lambda line: len(line["cases"]),
            "error": lambda line: _text(max((c["error"] for c in line["cases"].values()), default=None), "{:.2g}"),
            "worst": lambda line: _text(max((c["worst"] for c in line["cases"].values()), default=None), "{:.2g}"),
            "seconds": _number("seconds"),
            "why": _name("why"),
        },
    ),
    ("Decode steps", lambda line: line.get("benchmark") == "decode", _WHOLE),
    ("Prompts", lambda line: line.get("benchmark") == "prefill", _WHOLE),
    (
        "The engine, as `vllm bench` counts",
        lambda line: line.get("benchmark") == "serving",
        {
            "model": _name("preset"),
            "form": _form,
            "concurrency": _name("concurrency"),
            "input": _name("input_len"),
            "output": _name("output_len"),
            "output tok/s": _number("output_tokens_per_second"),
            "total tok/s": _number("total_tokens_per_second"),
            "req/s": _number("requests_per_second", "{:,.2f}"),
            "TTFT p50, ms": _number("p50_ttft_ms"),
            "TTFT p99, ms": _number("p99_ttft_ms"),
            "TPOT p50, ms": _number("p50_tpot_ms", "{:,.2f}"),
            "TPOT p99, ms": _number("p99_tpot_ms", "{:,.2f}"),
        },
    ),
    (
        "transformers",
        lambda line: str(line.get("benchmark", "")).startswith("transformers"),
        {
            "model": _name("preset"),
            "what": lambda line: line["benchmark"].split()[-1],
            "batch": _name("batch"),
            "prompt": _name("prompt"),
            "tok/s": _number("tokens_per_second"),
            "attention": _name("attention"),
            "experts": _name("experts"),
            "loop": _name("loop"),
            "transformers": _name("transformers"),
            "torch": _name("torch"),
        },
    ),
    (
        "Kernels",
        lambda line: "op" in line and "name" in line,
        {
            "op": _name("op"),
            "case": _name("name"),
            "error": _number("error", "{:.2g}"),
            "floor, us (computed)": _number("floor", "{:,.1f}", 1e6),
            "predicted, us": _number("predicted", "{:,.1f}", 1e6),
            "measured, us": _number("seconds", "{:,.1f}", 1e6),
            "ratio to the floor": _ratio,
        },
    ),
    (
        "A decode step by the profiler",
        lambda line: line.get("benchmark") == "profile",
        {
            "model": _name("preset"),
            "batch": _name("batch"),
            "kernel": _name("kernel"),
            "launches": _name("launches"),
            "us a launch": _number("microseconds", "{:,.2f}"),
            "share": _number("share", "{:.1%}"),
        },
    ),
)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    line = lambda cells: "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
    return "\n".join([line(header), "|" + "|".join("---" for _ in header) + "|", *map(line, rows)])


def tables(lines: Sequence[dict]) -> str:
    """All tables that some line belongs to; columns without a value are left out."""
    parts = []
    for title, belongs, columns in _TABLES:
        chosen = [line for line in lines if belongs(line)]
        cells = {heading: [str(cell(line)) for line in chosen] for heading, cell in columns.items()}
        filled = [heading for heading, column in cells.items() if any(column)]
        if chosen:
            parts.append(f"### {title}\n\n" + markdown(filled, list(zip(*(cells[heading] for heading in filled), strict=True))))
    return "\n\n".join(parts)


def with_predictions(lines: Sequence[dict], rows: Sequence[table.Row]) -> list[dict]:
    """The lines, with what was predicted for the same kernels on the same GPU ("predicted", seconds; of steps "predicted_milliseconds")."""
    from pallas_kernels.predict import step

    fresh, made = [row for row in rows if row.source == table.source(row.op)], []
    for line in lines:
        gpu, told = table.gpu_of(str(line.get("device", ""))), {}
        if "op" in line and "name" in line:
            told["predicted"] = table.seconds(line["op"], line["name"], gpu, fresh)
        elif line.get("benchmark") == "decode" and not line.get("without") and gpu:
            model = str(line["preset"]).removeprefix("gpt-oss-")
            if model in step.LAYERS and line["context"] % 1024 == 0:
                with contextlib.suppress(ValueError):  # of a step that was not predicted
                    context = f"{line['context'] // 1024}k"
                    told["predicted_milliseconds"] = 1e3 * step.step(fresh, model, line["batch"], gpu, context).seconds
        made.append(line | {name: value for name, value in told.items() if value is not None})
    return made


def _tuned() -> list[tuple[str, re.Pattern, str, Row]]:
    """Of each row of the tuning tables its place, and the op and names of the cases that measure it."""
    from pallas_kernels.attention import tuning as attention
    from pallas_kernels.moe import tuning as moe
    from pallas_kernels.projection import tuning as projection

    found = []
    for op, its_rows in projection.TABLE.items():
        found += [
            ("projection/tuning.py", f"projection.{op.removeprefix('project_')}", f"20b, {row.most_rows} token", row) for row in its_rows
        ]
    for op, its_rows in moe.DECODE.items():
        found += [("moe/tuning.py", f"moe.{op}", f"20b, {row.most_rows} token", row) for row in its_rows]
    for row in moe.GROUPED:
        if row.most_pairs in (8, 32):  # 64 and 256 tokens of 20b, four experts of 32 each
            found.append(("moe/tuning.py", "moe.grouped", f"20b, {int(row.most_pairs) * 8} tokens", row))
    contexts = {2048: "20b, batch 1, 1k context", 1 << 31: "20b, batch 1, 8k context"}
    found += [
        ("attention/tuning.py", "attention.decode", contexts[row.most_keys], row) for row in attention.DECODE if row.most_keys in contexts
    ]
    return [*found, ("attention/tuning.py", "attention.prefill", "20b, 1k tokens after 0k", attention.PREFILL)]


def tuning_rows(lines: Sequence[dict]) -> str:
    """Rows of the tuning tables with the times that were measured, to be put in the places of those that are there.

    A row is measured by the case with the most tokens that it holds for; one without such a case is not.
    """
    timed = {(line.get("op"), line.get("name")): line for line in lines if isinstance(line.get("seconds"), float)}
    told = []
    for place, op, name, row in _tuned():
        line = next((one for (its_op, its_name), one in timed.items() if its_op == op and its_name in (name, f"{name}s")), None)
        if line is not None:
            launches = 6 if op.startswith("projection.") and op != "projection.unembed" else 1  # layers of a case
            where = {name: line[name] for name in ("device", "jax", "date")}
            new = dataclasses.replace(row, microseconds=round(line["seconds"] / launches * 1e6, 2), **where)
            told.append(f"# {place}, {op}: {line['name']}\n{new}")
    return "\n".join(told)


def write(
    folder: Path,
    found: Mapping[Piece, tuple[running.State | None, Sequence[dict]]],
    about: Mapping[str, object],
    skipped: Mapping[str, str],
    rehearse: bool,
) -> str:
    """Makes results.jsonl, RESULTS.md and TUNING.txt. Returns the summary.

    Args:
      folder: of these files.
      found: of each piece its state and lines, where they are this run's or one's just like it.
      about: the device and versions.
      skipped: why pieces were not begun, by name.
      rehearse: nothing was measured.
    """
    running.write(
        folder / "results.jsonl", "".join(json.dumps({"piece": p.name} | line) + "\n" for p, (_, own) in found.items() for line in own)
    )
    lines = with_predictions([line for _, own in found.values() for line in own], table.read())
    rows = []
    for piece, (state, own) in found.items():
        if state is None:
            rows.append([piece.name, piece.what, "not run", "", "", skipped.get(piece.name, "the run ended before")])
        else:
            why = "; ".join(filter(None, [state.why, skipped.get(piece.name, "")]))
            rows.append([piece.name, piece.what, state.status, f"{state.seconds:.0f}", str(len(own)), why])
    title = "A rehearsal on a CPU: no number here means anything." if rehearse else "Measured, where nothing else is said."
    where = ", ".join(f"{name} {value}" for name, value in about.items())
    summary = f"{title}\n\n{where}\n\n" + markdown(["piece", "what", "status", "seconds", "results", "why"], rows)
    running.write(folder / "RESULTS.md", f"{summary}\n\n{tables(lines)}\n")
    rows_told = tuning_rows(lines)
    running.write(folder / "TUNING.txt", f"{'# A rehearsal: no rows.' if rehearse else rows_told}\n")
    return summary
