"""Prints name, shape, dtype and bytes of every tensor of a checkpoint: python -m checkpoints.inspect nano

Takes a directory of either published layout, one safetensors file, or what `gptoss_jax.load` takes. Reads headers only.
"""

import os
from pathlib import Path

from absl import app

from gptoss_jax import locate, shards


def table(path: str) -> str:
    """The tensors of a checkpoint, in the order of their names, and their total.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: a file is damaged.
    """
    place = Path(os.path.expanduser(path))
    place = place if place.is_file() else locate.checkpoint(path)
    stored = sorted(shards.scan(place).values(), key=lambda tensor: _natural(tensor.name))
    rows = [(t.name, str(list(t.shape)), t.dtype, f"{t.nbytes:,}", t.file.name) for t in stored]
    total = sum(tensor.nbytes for tensor in stored)
    rows = [("tensor", "shape", "dtype", "bytes", "file"), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    a, b, c, d, _ = widths
    lines = [f"{name:{a}}  {shape:{b}}  {dtype:{c}}  {size:>{d}}  {file}" for name, shape, dtype, size, file in rows]
    return "\n".join([str(place), *lines, f"{len(stored)} tensors, {total:,} bytes"])


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts layers.10 behind layers.9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise app.UsageError("give one checkpoint: python -m checkpoints.inspect PATH")
    try:
        print(table(argv[1]))
    except (FileNotFoundError, ValueError) as error:
        raise app.UsageError(str(error)) from error


if __name__ == "__main__":
    app.run(main)
