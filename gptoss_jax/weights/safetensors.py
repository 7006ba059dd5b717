"""Safetensors files as they lie on disk: what a checkpoint directory holds, and the bytes of one tensor.

Headers first, all of them, so that a damaged download is refused before memory is spent. Knows no model and no device.
"""

import math
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from gptoss_jax.quoting import quoted
from gptoss_jax.weights import headers
from gptoss_jax.weights.headers import Stored
from gptoss_jax.weights.watching import Watch

# Names of the format -> dtypes that a checkpoint may use. Others are listed by their name only.
FLOATS = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
DTYPES = FLOATS | {"U8": np.uint8}

_CHUNK = 4 << 20  # bytes copied at once; larger ones cost page faults
_ALIGNMENT = 64  # an array so aligned becomes a CPU device's buffer without a copy


Index = tuple[slice, ...]
"""A range (start and stop, no step) of every axis."""


def scan(path: Path) -> dict[str, Stored]:
    """Every tensor of a directory (its index's shards, else model.safetensors, else every *.safetensors) or of one file.

    Reads headers only.

    Raises:
        FileNotFoundError: there is no safetensors file, or a shard of the index is absent.
        ValueError: a file is truncated or not safetensors, the index is not one, or two files hold a tensor of the same name.
    """
    found: dict[str, Stored] = {}
    for file in _shards(path) if path.is_dir() else [path]:
        for stored in headers.header(file):
            if stored.name in found:
                other = found[stored.name].file
                name = quoted(stored.name)[1:-1]
                raise ValueError(f"a tensor must lie in one file; {name} is in {other.name} and {file.name}; remove the stale one.")
            found[stored.name] = stored
    return found


def has_shards(directory: Path) -> bool:
    """Whether a directory holds safetensors files, or an index that promises some."""
    return any(directory.glob("*.safetensors")) or any(directory.glob("*.safetensors.index.json"))


def read(stored: Stored, dtype: np.typing.DTypeLike, index: Index | None = None, watch: Watch | None = None) -> np.ndarray:
    """A tensor, or a part of it, as dtype: a fresh array, aligned so that a CPU device takes it over as it is.

    The file is mapped for the length of the call, or the process would keep all of it resident. Other parts are not read.

    Args:
        stored: which tensor.
        dtype: of the result.
        index: a range of every axis; what it covers beyond the tensor's end is zero.
        watch: looks at the values, as dtype.

    Raises:
        ValueError: the file has become unreadable, or holds what `watch` refuses.
    """
    watch = watch or Watch()
    index = tuple(slice(0, size) for size in stored.shape) if index is None else index
    inside = _inside(stored, index)
    out = _empty(tuple(part.stop - part.start for part in index), dtype)
    if inside != index:
        out[...] = 0
    lengths = [part.stop - part.start for part in inside]
    if not all(lengths):
        return out
    axis = next((i for i, length in enumerate(lengths) if length > 1), 0)  # the first that can be read in steps
    step = max(1, _CHUNK * lengths[axis] // max(1, nbytes(stored, inside)))
    to = [slice(0, length) for length in lengths]
    start, stop = inside[axis].start, inside[axis].stop
    try:
        with safe_open(stored.file, framework="numpy") as file:
            view = file.get_slice(stored.name)
            for begin in range(start, stop, step):
                end = min(begin + step, stop)
                to[axis] = slice(begin - start, end - start)
                out[tuple(to)] = view[(*inside[:axis], slice(begin, end), *inside[axis + 1 :])]
                watch.look(stored.name, out[tuple(to)], stored.file)
    except (OSError, SafetensorError) as error:
        reason = f"{stored.name} of {stored.file} must be readable; got: {str(error)[:200]}; load again once the file is whole."
        watch.found(reason, error)
    return out


def nbytes(stored: Stored, index: Index) -> int:
    """Bytes of the file that `read` reads."""
    inside = math.prod(part.stop - part.start for part in _inside(stored, index))
    return stored.nbytes * inside // max(1, math.prod(stored.shape))


def _inside(stored: Stored, index: Index) -> Index:
    return tuple(slice(min(part.start, size), min(part.stop, size)) for part, size in zip(index, stored.shape, strict=True))


def _empty(shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def _shards(directory: Path) -> list[Path]:
    """The files that make up a directory's checkpoint."""
    if indices := sorted(directory.glob("*.safetensors.index.json")):
        return headers.shards(indices[0])
    single = directory / "model.safetensors"
    files = [single] if single.is_file() else sorted(directory.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"there are no safetensors files in {directory}; give a directory that holds some.")
    return files
