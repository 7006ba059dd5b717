"""The folder of results: one that this program made, or made new, and that one run at a time writes to."""

from collections.abc import Iterator
import contextlib
import fcntl
import os
from pathlib import Path

WRITTEN = ("RESULTS.md", "results.jsonl", "TUNING.txt")
INSIDE = ("pieces", "rehearsed", "compiled")
_LOCK = "lock"  # also says whose the folder is


@contextlib.contextmanager
def held(out: str) -> Iterator[Path]:
    """The folder's absolute path, while no other run has it.

    Raises:
      ValueError: it cannot be written to, is somebody else's, or another run's at this moment.
    """
    folder = Path(out).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse(folder)
        lock = (folder / _LOCK).open("w")
    except OSError as error:
        raise ValueError(f"--out must be a folder that can be written to; got {out} ({error.strerror}); name another.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"--out must be a folder that no other run writes to; one is at work in {folder}; wait for it, or name another."
            raise ValueError(message) from None
        yield folder


def _refuse(folder: Path) -> None:
    """Before anything is written."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"--out must be a folder that can be written to; {folder} cannot; name another.")
    present = [name for name in WRITTEN if (folder / name).exists()]
    if present and not (folder / _LOCK).exists():
        raise ValueError(f"--out must be a new folder or one of gpu_day's; {folder} has another's {present[0]}; name another.")
    wrong = [name for name in WRITTEN if (folder / name).is_dir()]
    wrong += [name for name in INSIDE if (folder / name).exists() and not (folder / name).is_dir()]
    if wrong:
        raise ValueError(
            f"--out must have files {', '.join(WRITTEN)} and folders {', '.join(INSIDE)}; {folder / wrong[0]} is none; move it."
        )
