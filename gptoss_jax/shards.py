"""Safetensors files as they lie on disk: what a checkpoint directory holds, and the bytes of one tensor.

Headers first, all of them, so that a damaged download is refused before memory is spent. Knows no model and no device.
"""

from collections.abc import Iterator
from dataclasses import dataclass
import math
import os
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from gptoss_jax.config import read_json

# Names of the format -> dtypes that a checkpoint may use. Others are listed by their name only.
FLOATS = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
DTYPES = FLOATS | {"U8": np.uint8}

_CHUNK = 4 << 20  # bytes copied at once; larger ones cost page faults
_ALIGNMENT = 64  # an array so aligned becomes a CPU device's buffer without a copy


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies, and what its file's header says of it."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str  # the format's name: "BF16", "U8", ...
    nbytes: int


def scan(path: Path) -> dict[str, Stored]:
    """Every tensor of a directory (its index's shards, else model.safetensors, else every *.safetensors) or of one file.

    Reads headers only.

    Raises:
        FileNotFoundError: there is no safetensors file, or a shard of the index is absent.
        ValueError: a file is truncated or not safetensors, the index is not one, or two files hold a tensor of the same name.
    """
    found: dict[str, Stored] = {}
    for file in [path] if path.is_file() else _shards(path):
        for stored in _header(file):
            if stored.name in found:
                other = found[stored.name].file
                raise ValueError(f"a tensor must lie in one file; {stored.name} is in {other.name} and {file.name}; remove the stale one.")
            found[stored.name] = stored
    return found


def has_shards(directory: Path) -> bool:
    """Whether a directory holds safetensors files, or an index that promises some."""
    return any(directory.glob("*.safetensors")) or any(directory.glob("*.safetensors.index.json"))


def read(stored: Stored, dtype: np.typing.DTypeLike, expert: int | None = None) -> np.ndarray:
    """A tensor as dtype, or one entry of its first axis: a fresh array, aligned so that a CPU device takes it over as it is.

    The file is mapped for the length of the call, or the process would keep all of it resident.

    Raises:
        ValueError: the file has become unreadable.
    """
    try:
        with safe_open(stored.file, framework="numpy") as file:
            view = file.get_slice(stored.name)
            if expert is not None:
                out = _empty(stored.shape[1:], dtype)
                out[...] = view[expert : expert + 1][0]
                return out
            out = _empty(stored.shape, dtype)
            rows = stored.shape[0]
            step = max(1, _CHUNK * rows // max(1, stored.nbytes))
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                out[start:stop] = view[start:stop]
            return out
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{stored.name} of {stored.file} must be readable; got: {error}; load again once the file is whole.") from error


def _empty(shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def _shards(directory: Path) -> list[Path]:
    """The files that make up a directory's checkpoint."""
    indices = sorted(directory.glob("*.safetensors.index.json"))
    if not indices:
        single = directory / "model.safetensors"
        files = [single] if single.is_file() else sorted(directory.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"there are no safetensors files in {directory}; give a directory that holds some.")
        return files
    index = read_json(indices[0])
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{indices[0]} must hold a weight_map of tensor names to file names; download it again.")
    files = [directory / name for name in sorted(set(names.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"{indices[0].name} names {len(files)} shards; absent from {directory}: {', '.join(missing)}; download the missing files."
        )
    return files


def _header(file: Path) -> Iterator[Stored]:
    try:
        with safe_open(file, framework="numpy") as opened:
            for name in opened.keys():
                view = opened.get_slice(name)
                shape, dtype = tuple(view.get_shape()), view.get_dtype()
                yield Stored(name, file, shape, dtype, _nbytes(shape, dtype))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {file}; check the path.") from None
    except (OSError, SafetensorError) as error:
        if "not fully covered" in str(error):
            raise ValueError(
                f"{file} is cut short or damaged: its {os.path.getsize(file):,} bytes are not those that its header promises; "
                "download this file again."
            ) from error
        remedy = "download it again, or run `git lfs pull` if it is a git-lfs pointer."
        raise ValueError(f"{file} is not a safetensors file ({error}); {remedy}") from error


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    bits = "".join(c for c in dtype.split("_")[0] if c.isdigit())  # BF16, F8_E4M3, I64
    return math.prod(shape) * int(bits or 8) // 8  # BOOL has none
