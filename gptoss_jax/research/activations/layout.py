"""How activations lie on a disk, and what may be written: names, arrays, tokens that rows begin at. The one place that knows the format."""

import dataclasses
import io
import json
import operator
import os
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_jax.quoting import quoted, said

MARK = "activations.json"
FORMAT = {"format": "gptoss-jax activations", "version": 1}
STARTS = "starts.jsonl"
LONGEST = 200  # bytes of a name
_NO_FILE = '/\\:*?"<>|'  # signs that some system has no files of


@dataclasses.dataclass(slots=True)
class Rows:
    """An array that grows: a .npy file whose header counts its rows."""

    path: Path
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]  # of a row
    rows: int = 0

    def header(self, rows: int) -> bytes:
        """The same number of bytes for every count: NumPy leaves room for an array to grow."""
        out = io.BytesIO()
        described = np.lib.format.dtype_to_descr(self.dtype)
        np.lib.format.write_array_header_1_0(out, {"descr": described, "fortran_order": False, "shape": (rows, *self.shape)})
        return out.getvalue()


def path_of(path: object) -> Path:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path) or "\0" in str(path):
        raise ValueError(f"path must name a file or a folder; got {quoted(path)}; pass a string or a Path.")
    return Path(path)


def named(what: str, name: object) -> str:
    """A name that is a file's on every system."""
    good = isinstance(name, str) and name.isprintable() and 0 < len(name.encode(errors="replace")) <= LONGEST
    if not good or name[0] in ". " or name[-1] in ". " or set(name) & set(_NO_FILE):
        raise ValueError(
            f"{what} must be a file's name: 1 to {LONGEST} bytes of text without {' '.join(_NO_FILE)}, no dot or blank at its ends; "
            f"got {quoted(name)}; pass such a one."
        )
    return name


def token_of(start: object) -> int:
    try:
        first = -1 if isinstance(start, bool | np.bool) else operator.index(start)
    except TypeError:
        first = -1
    if not 0 <= first < 2**53:
        raise ValueError(f"start must be a whole number of tokens from 0 on; got {quoted(start)}; pass the first row's token.")
    return first


def array_of(name: str, array: object) -> np.ndarray:
    if np.ma.is_masked(array):
        raise ValueError(f"{name} must be an array without a mask, which no file keeps; got a masked one; pass array.filled(0), say.")
    try:
        return np.asarray(array)
    except Exception as error:  # of a list that is none, or of a device
        raise ValueError(f"{name} must be an array; got {quoted(array, 60)} ({said(error)}); pass NumPy's.") from error


def checked(name: str, array: object) -> np.ndarray:
    array = array_of(name, array)
    check_kind(name, array.dtype)
    if array.ndim == 0:
        raise ValueError(f"{name} must be an array [rows, ...]; got one number; pass array[None] for a row.")
    return array


def check_kind(name: str, dtype: Any) -> None:
    if (
        not isinstance(dtype, np.dtype)
        or dtype.kind not in "biufc"
        or np.lib.format.descr_to_dtype(np.lib.format.dtype_to_descr(dtype)) != dtype
    ):
        raise ValueError(f"{name} must hold numbers that NumPy's files have a name for; got {quoted(str(dtype), 60)}; pass float32, say.")


def check_fits(what: str, kept: Rows, start: int, array: np.ndarray) -> None:
    if (array.dtype, array.shape[1:]) != (kept.dtype, kept.shape):
        raise ValueError(
            f"{what} has rows of {kept.dtype}{kept.shape}; got {array.dtype}{array.shape[1:]}; write the same kind, or to another folder."
        )
    if start != kept.start + kept.rows:
        raise ValueError(
            f"{what} has tokens {kept.start} to {kept.start + kept.rows}, and the next row is that of {kept.start + kept.rows}; "
            f"got start {start}; write rows in their order, each once, or those of another "
            "request under its own key."
        )


def check_mark(path: Path) -> None:
    try:
        mark = json.loads((path / MARK).read_bytes()[:1000])
    except (OSError, ValueError):
        mark = None
    if mark != FORMAT:
        got = f"{quoted(str(path))} with {quoted(mark, 60)} in its {MARK}" if mark else quoted(str(path))
        raise ValueError(f"path must be a folder of activations that a Folder of this version has written; got {got}; pass one.")


def starts_of(folder: Path, *, mend: bool = False) -> dict[str, int]:
    """What a request's names begin at. A last line that was cut off names nothing yet; `mend` takes it away."""
    path = folder / STARTS
    whole, _, rest = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
    if rest and mend:
        os.truncate(path, len(whole) + 1 if whole else 0)
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
        return {named("a name", line["name"]): token_of(line["start"]) for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{quoted(str(path))} must have a name and a start in each line; {said(error)}; mend or remove it.") from error


def append_line(path: Path, line: dict[str, Any]) -> None:
    """A line behind a file's others, whole or not at all."""
    with open(path, "ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            write_all(file.fileno(), json.dumps(line).encode() + b"\n", before)
        except BaseException:
            file.truncate(before)
            raise


def opened(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy's, of a damaged header or a file that was cut off
        raise ValueError(f"{quoted(str(path))} must be a whole .npy file; {said(error)}; write it again.") from error


def found(folder: Path, name: str, start: int) -> Rows:
    """An array that an earlier Folder has written."""
    array = opened(folder / f"{name}.npy")
    found = Rows(folder / f"{name}.npy", start, array.dtype, array.shape[1:], len(array))
    with open(found.path, "rb") as file:
        if file.read(len(found.header(0))) != found.header(found.rows):
            raise ValueError(f"{quoted(str(found.path))} must be as a Folder wrote it; its header is another; pass another folder.")
    return found


def write_all(descriptor: int, data: bytes | memoryview, at: int) -> None:
    data = memoryview(data)
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written
