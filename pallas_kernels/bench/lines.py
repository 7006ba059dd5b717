"""The file that a command appends JSON lines to: looked at before any work, so that none is lost at its end."""

from collections.abc import Mapping
import json
from pathlib import Path


def refusal(out: str | None) -> str:
    """Why lines cannot be appended to a file, in a sentence; "" if they can, and where none is asked for. Leaves no file behind."""
    if out is None:
        return ""
    try:
        new = not Path(out).exists()
        with Path(out).open("a", encoding="utf-8"):
            pass
        if new:
            Path(out).unlink()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", error)
        return f"--out must be a file that can be appended to; got {out!r} ({why}); pass such as --out=results.jsonl."
    return ""


def append(out: str | None, record: Mapping) -> None:
    """Adds a line, where a file is asked for."""
    if out is not None:
        with Path(out).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
