"""Predictions that were written down (`predicted.json`, by `python -m pallas_kernels.predict --write`), and whether they are stale.

A row is stale if what its kernels are made of has changed since, or the model of time. Imports neither jax nor the emulator.
"""

from collections.abc import Iterable
import dataclasses
import functools
import hashlib
import json
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
PATH = Path(__file__).parent / "predicted.json"
_BESIDE = ("bench", "reference", "small", "large")  # modules of an op that its kernels are not made of
_MODEL = ("chip", "clock", "counts", "model", "sass", "simulate")


@dataclasses.dataclass(frozen=True)
class Row:
    """One of a case's kernels on a GPU, predicted: seconds of a launch, and how often a run has it; `source`: `source(op)` as it was."""

    op: str
    case: str
    gpu: str
    kernel: str
    launches: int
    seconds: float
    floor: float
    binding: str
    source: str


@functools.cache
def source(op: str) -> str:
    """Hash of what kernels of an op ("moe.gate_up") are made of, and of the model of time."""
    folder = PACKAGE / op.partition(".")[0]
    made = [f for f in sorted(folder.glob("*.py")) if not f.stem.startswith(_BESIDE)]
    made += [PACKAGE / "primitives.py", *sorted((PACKAGE / "mxfp4").glob("*.py")), *(PACKAGE / "predict" / f"{name}.py" for name in _MODEL)]
    return hashlib.sha256(b"".join(f.read_bytes() for f in made)).hexdigest()[:12]


def read(path: Path = PATH) -> list[Row]:
    """All rows, stale ones too; none where there is no file."""
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


def write(rows: Iterable[Row], path: Path = PATH) -> None:
    """Adds rows to the file, in place of those of the same cases and GPUs."""
    rows = list(rows)
    new = {(row.op, row.case, row.gpu) for row in rows}
    kept = [row for row in read(path) if (row.op, row.case, row.gpu) not in new]
    ordered = sorted(kept + rows, key=lambda row: (row.gpu, row.op, row.case))
    path.write_text("[\n" + ",\n".join(json.dumps(dataclasses.asdict(row)) for row in ordered) + "\n]\n", encoding="utf-8")


def stale(rows: Iterable[Row]) -> list[Row]:
    """Rows of kernels that are others by now."""
    return [row for row in rows if row.source != source(row.op)]


def seconds(op: str, case: str, gpu: str | None, rows: Iterable[Row]) -> float | None:
    """What a run of a case takes, all its launches, predicted; None where nothing was, or of other kernels than there are now."""
    found = [row for row in rows if (row.op, row.case, row.gpu) == (op, case, gpu)]
    return sum(row.launches * row.seconds for row in found) if found and not stale(found) else None


def gpu_of(device_kind: str) -> str | None:
    """The name here of a device; None of one that nothing is predicted for."""
    words = device_kind.split()
    return next((gpu for gpu in ("h100", "h200") if any(word.lower() == gpu for word in words)), None)
