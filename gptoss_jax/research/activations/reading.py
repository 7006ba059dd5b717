"""What a folder of activations holds, memory-mapped: of an array only what is looked at is read."""

from collections.abc import Iterator, Mapping
import functools
import os
from pathlib import Path

import numpy as np

from gptoss_jax.quoting import quoted
from gptoss_jax.research.activations import layout


class Request(Mapping[str, np.ndarray]):
    """The arrays of one request by name, memory-mapped when they are asked for, as long as they are then.

    Attributes:
      starts: of each name the request's token that its first row belongs to.
    """

    def __init__(self, path: Path):
        self.path = path

    @functools.cached_property
    def starts(self) -> dict[str, int]:
        return layout.starts_of(self.path)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.starts:
            raise KeyError(f"{quoted(str(self.path.name))} has no {quoted(name)}; it has {', '.join(list(self.starts)[:6])}.")
        return layout.opened(self.path / f"{name}.npy")

    def __iter__(self) -> Iterator[str]:
        return iter(self.starts)

    def __len__(self) -> int:
        return len(self.starts)


def read(path: str | os.PathLike[str]) -> dict[str, Request]:
    """What a `Folder` has written, also while it writes: {request: {name: array [n, ...]}}. The arrays cannot be written to.

    Raises:
      ValueError: it is no folder of activations.
    """
    path = layout.path_of(path)
    layout.check_mark(path)
    numbers_first = lambda name: (not name.isdecimal(), name.zfill(20) if name.isdecimal() else name)
    return {key: Request(path / key) for key in sorted((one.name for one in path.iterdir() if one.is_dir()), key=numbers_first)}
