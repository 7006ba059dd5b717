"""Prints name, shape, dtype and bytes of every tensor of a checkpoint: python -m checkpoints.inspect nano

Takes one safetensors file, or a directory that `gptoss_jax.load` takes: of a published layout or of Orbax. Reads headers only.
"""

import os
from pathlib import Path

from absl import app

from gptoss_jax.weights import locate, safetensors
from gptoss_jax.weights.orbax import store


def table(path: str) -> str:
    """The tensors or arrays of a checkpoint, in the order of their names, and their total.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: a file is damaged.
    """
    place = Path(os.path.expanduser(path))
    place = place if os.path.isfile(place) else locate.checkpoint(path)
    if locate.is_store(place):
        store.read_index(place)
        found, home = store.scan(place), lambda array: array.piece.name
    else:
        found, home = safetensors.scan(place), lambda tensor: tensor.file.name
    stored = sorted(found.values(), key=lambda tensor: _natural(tensor.name))
    rows = [(t.name, str(list(t.shape)), str(t.dtype), f"{t.nbytes:,}", home(t)) for t in stored]
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
