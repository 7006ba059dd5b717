"""Directories that appear whole or not at all, whatever kills the processes that write them."""

from collections.abc import Iterator
import contextlib
import glob
import os
from pathlib import Path
import shutil

import numpy as np

from gptoss_jax.parallel import processes
from gptoss_jax.weights import foreign


@contextlib.contextmanager
def appearing(directory: str | os.PathLike) -> Iterator[Path]:
    """A new directory beside the one that is to be, whose name it gets when the block has ended well in every process.

    If the block fails it is removed; if the process is killed it stays (`stopped`). Every process must call this, with the same path.

    Args:
        directory: what is to be.

    Raises:
        ValueError: there is something of that name, and it is not an empty directory; or it cannot be made.
        OSError: it could not be written, as where a disk is full.
    """
    out = _absolute(directory)
    with processes.together(f"write {out}"):
        if os.path.exists(out) and (not os.path.isdir(out) or os.listdir(out)):
            raise ValueError(f"{out} must not exist yet, and it does; give another directory, or delete it first.")
    token = processes.broadcast(np.frombuffer(os.urandom(4), np.uint8)).tobytes().hex()
    partial = out.with_name(f"{out.name}.partial-{token}")
    try:
        if processes.is_first():
            _make(partial, out)
        processes.meet(f"{partial} is made")
        yield partial
        processes.meet(f"{partial} is written")
        if processes.is_first():
            os.rename(partial, out)
    except BaseException as error:
        if processes.is_first():
            shutil.rmtree(partial, ignore_errors=True)
        if _is_of_files(error):  # of whatever library writes them
            text = " ".join(str(error).split())
            why = text if len(text) <= 200 else f"...{text[-150:]}"  # what it was stands at the end
            raise OSError(f"{out} must be written whole; got: {why}; nothing is left of it: make room, or name another.") from error
        raise
    processes.meet(f"{out} is there")


def _make(partial: Path, out: Path) -> None:
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"{out} must be a directory that can be made; got: {error.strerror}; name another.") from None


def _is_of_files(error: BaseException) -> bool:
    """Whether it is of the disk: as Python says it, or as a library does that calls no Python for it."""
    said = ("os error", "Error writing", "No space left")  # by safetensors, and by tensorstore
    return isinstance(error, OSError) or (isinstance(error, Exception) and any(words in str(error) for words in said))


def stopped(directory: str | os.PathLike) -> list[Path]:
    """What killed processes have left of this directory, or running ones have so far."""
    out = _absolute(directory)
    return sorted(out.parent.glob(f"{glob.escape(out.name)}.partial-*"))


def _absolute(directory: str | os.PathLike) -> Path:
    return Path(os.path.abspath(foreign.path_of(directory, "what is written")))
