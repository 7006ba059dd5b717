"""Lines of JSON that the commands append to a file."""

import json
from pathlib import Path


def check(path: str | None) -> None:
    """Before there is anything to write: makes the file, if there is none.

    Raises:
      ValueError: it cannot be written to.
    """
    try:
        append(path, None)
    except OSError as error:
        said = f"--out must be a file that can be appended to, in a folder that is there; got {path}: {error.strerror}."
        raise ValueError(said) from error


def append(path: str | None, record: dict | None) -> None:
    """One line; nothing where there is no file, or no record."""
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write("" if record is None else json.dumps(record) + "\n")
