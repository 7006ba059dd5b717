"""What a checkpoint's files say of themselves before a tensor is read: headers of safetensors files, and an index of shards.

Both are JSON of others: read through `gptoss_jax.config.fields`, bounded, and refused in one sentence that names the file. Knows no
model and no device.
"""

from collections.abc import Iterator
from dataclasses import dataclass
import math
import os
from pathlib import Path, PurePosixPath
from typing import Any

from gptoss_jax.config.fields import INDEX, Many, Text, Whole, opened, parse, read_json, refuse_pointer, take
from gptoss_jax.quoting import quoted

# Names of the format -> bits of a value.
BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

_SHARDS = 10_000
_BYTES = 1 << 60  # that any file may have
_TENSOR = {
    "dtype": Text(tuple(BITS)),
    "shape": Many(Whole(0, _BYTES), "sizes", most=16),
    "data_offsets": Many(Whole(0, _BYTES), "offsets", most=2),
}
_WEIGHT_MAP = {"weight_map": Many(Text(), "file names", most=1_000_000, named=True)}
_REMEDY = "download it again."


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies, and what its file's header says of it."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str  # the format's name: "BF16", "U8", ...
    nbytes: int


def header(file: Path) -> Iterator[Stored]:
    """The tensors of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut short, or its header is not one: what it says must cover the file's bytes, each once.
    """
    with opened(file) as opened_file:
        size = os.fstat(opened_file.fileno()).st_size
        refuse_pointer(opened_file.read(100), file)
        opened_file.seek(0)
        length = int.from_bytes(opened_file.read(8), "little")
        if not 2 <= length <= min(INDEX, size - 8):
            raise ValueError(f"{file} is not a safetensors file (a header of {length:,} bytes in a file of {size:,}); {_REMEDY}")
        text = opened_file.read(length)
    if text[:1] != b"{":
        raise ValueError(f"{file} is not a safetensors file (its header must be a JSON object); {_REMEDY}")
    entries = parse(text, f"the header of {file}")
    if (problem := Many(Text(), "texts", most=10_000, named=True).problem("its __metadata__", entries.pop("__metadata__", {}))) != "":
        raise ValueError(f"{file} is not a safetensors file ({problem}); {_REMEDY}")
    found = sorted((_entry(file, name, entry) for name, entry in entries.items()), key=lambda each: each[0])
    end = 0
    for (begin, stop), stored in found:
        if begin != end or stop - begin != stored.nbytes:
            expected = f"bytes {end:,} to {end + stored.nbytes:,}"
            raise ValueError(
                f"{file} is cut short or damaged: {quoted(stored.name)} must be its {expected} by its shape, and lies at {begin:,} to "
                f"{stop:,}; download this file again."
            )
        end = stop
    if 8 + length + end != size:
        raise ValueError(
            f"{file} is cut short or damaged: its {size:,} bytes are not those that its header promises; download this file again."
        )
    yield from (stored for _, stored in found)


def _entry(file: Path, name: str, entry: Any) -> tuple[tuple[int, int], Stored]:
    """The range of bytes of a tensor, and the tensor."""
    values = take(entry, _TENSOR, f"{quoted(name)} in the header of {file}")
    if None in values.values() or len(values["data_offsets"]) != 2:
        raise ValueError(f"{quoted(name)} in the header of {file} must have dtype, shape and two data_offsets; download it again.")
    shape, dtype = tuple(values["shape"]), values["dtype"]
    return tuple(values["data_offsets"]), Stored(name, file, shape, dtype, math.prod(shape) * BITS[dtype] // 8)


def shards(index: Path) -> list[Path]:
    """The files that a *.safetensors.index.json names, all of which are there, inside its directory.

    Raises:
        FileNotFoundError: some are absent.
        ValueError: it is no index, or names a file elsewhere.
    """
    names = take(read_json(index, INDEX), _WEIGHT_MAP, index)["weight_map"]
    if not names:
        raise ValueError(f"{index} must hold a weight_map of tensor names to file names; download it again.")
    names = sorted(set(names.values()))
    if len(names) > _SHARDS:
        raise ValueError(f"{index} must name at most {_SHARDS:,} files; got {len(names):,}; download it again.")
    files = [inside(index.parent, name, index) for name in names]
    if missing := [file.name for file in files if not os.path.lexists(file)]:
        raise FileNotFoundError(
            f"{index} names {len(files)} shards; absent from its directory: {quoted(', '.join(missing))[1:-1]}; download the missing files."
        )
    return files


def inside(directory: Path, name: str, index: Path) -> Path:
    """The file of a directory that an index names; one elsewhere is refused, even where a link leads there, but for the hub's cache.

    Args:
        directory: that holds the file.
        name: its path there.
        index: who names it, for the error.
    """
    path, home = PurePosixPath(name), directory.resolve()
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or len(name) > 1000:
        raise ValueError(f"{index} must name files inside its own directory; it names {quoted(name)}; download it again.")
    file = directory / path
    try:
        real = file.resolve()
    except (OSError, RuntimeError):  # links in a circle
        real = Path("/")
    if not any(real.is_relative_to(root) for root in (home, _blobs(home)) if root):
        raise ValueError(
            f"{index} must name files inside its own directory; {quoted(name)} is a link to {real}; put the file itself there."
        )
    return file


def _blobs(home: Path) -> Path | None:
    """Where the hub's cache keeps the files of snapshots/REVISION, if a directory is one or lies in one."""
    for each in (home, *home.parents):
        if each.parent.name == "snapshots":
            return (each.parent.parent / "blobs").resolve()
    return None
