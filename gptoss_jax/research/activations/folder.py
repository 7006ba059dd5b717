"""Rows of sites to files, as they come. Nothing waits in memory; any thread may write."""

from collections import OrderedDict
import dataclasses
import errno
import fcntl
import json
import math
import numbers
import os
from pathlib import Path
import threading
from typing import Self
import weakref

import numpy as np

from gptoss_jax.quoting import quoted, said
from gptoss_jax.research.activations import layout

_MOST_OPEN = 128  # files


class Folder:
    """Takes rows of sites by request and name, and keeps them in files. A context manager; any thread may write.

    Args:
      path: a folder that is not there yet, an empty one, or one of activations, which is gone on with.

    Raises:
      ValueError: the folder holds something else, or another Folder writes to it.
      OSError: it cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = layout.path_of(path)
        self._lock = threading.Lock()
        self._arrays: dict[str, dict[str, layout.Rows]] = {}
        self._open: OrderedDict[Path, int] = OrderedDict()
        mark = self.path / layout.MARK
        if self.path.exists() and not mark.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ValueError(f"path must be a new folder, an empty one or one of activations; got {quoted(str(path))}; pass another.")
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(descriptor).st_size:
                os.write(descriptor, json.dumps(layout.FORMAT).encode() + b"\n")
            layout.check_mark(self.path)
        except BlockingIOError:
            os.close(descriptor)
            raise ValueError(
                f"a folder must have one writer; another Folder writes to {quoted(str(path))}; close it, or pass another path."
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        self._closing = weakref.finalize(self, _close, descriptor, self._open)

    def request(self, key: str | int) -> "Writer":
        """What takes the rows of one request; `key` names its folder."""
        number = isinstance(key, numbers.Integral) and not isinstance(key, bool) and -(2**63) <= key < 2**63
        return Writer(self, layout.named("a request's key", str(key) if number else key))

    def write(self, name: str, start: int, array: np.ndarray) -> None:
        """`Writer.write` of a request "0", where there is but one."""
        self.request(0).write(name, start, array)

    def close(self) -> None:
        """Closes the files, which are whole at any time, and lets another Folder write. May be called again."""
        with self._lock:
            self._closing()
            self._arrays.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Folder({str(self.path)!r}{'' if self._closing.alive else ', closed'})"

    def _write(self, key: str, name: str, start: int, array: np.ndarray) -> None:
        name, start, array = layout.named("a name", name), layout.token_of(start), layout.checked(name, array)
        with self._lock:
            if not self._closing.alive:
                raise ValueError(f"a folder must be open; that of {quoted(str(self.path))} is closed; make another Folder of its path.")
            try:
                kept = self._kept(key, name, start, array)
                layout.check_fits(f"{name} of request {key}", kept, start, array)
                self._append(kept, array)
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"{name} of request {key} must be written to {quoted(str(self.path))}, and that failed: {said(error)}; "
                    "what was written before stays readable; make room or pass another folder.",
                ) from error

    def _kept(self, key: str, name: str, start: int, array: np.ndarray) -> layout.Rows:
        """The array of a name, made where there is none."""
        folder = self.path / key
        if key not in self._arrays:
            folder.mkdir(exist_ok=True)
            self._arrays[key] = {one: layout.found(folder, one, first) for one, first in layout.starts_of(folder, mend=True).items()}
        arrays = self._arrays[key]
        if name not in arrays:
            made = layout.Rows(folder / f"{name}.npy", start, array.dtype, array.shape[1:])
            self._descriptor(made, os.O_CREAT | os.O_TRUNC)
            self._append(made, array[:0])
            layout.append_line(folder / layout.STARTS, {"name": name, "start": start})
            arrays[name] = made
        return arrays[name]

    def _append(self, kept: layout.Rows, array: np.ndarray) -> None:
        """Rows first, then the header that counts them; a fault in between leaves the old count."""
        descriptor, header = self._descriptor(kept), kept.header(kept.rows + len(array))
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        layout.write_all(descriptor, data, len(header) + kept.rows * kept.dtype.itemsize * math.prod(kept.shape))
        layout.write_all(descriptor, header, 0)
        kept.rows += len(array)

    def _descriptor(self, kept: layout.Rows, flags: int = 0) -> int:
        """The open file of an array; of many the one that was used longest ago is closed."""
        if kept.path not in self._open:
            while len(self._open) >= _MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
            self._open[kept.path] = os.open(kept.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o666)
        self._open.move_to_end(kept.path)
        descriptor = self._open[kept.path]
        if not os.fstat(descriptor).st_nlink:
            raise FileNotFoundError(errno.ENOENT, f"{kept.path} was removed")
        return descriptor


@dataclasses.dataclass(frozen=True)
class Writer:
    """What takes the rows of one request, of `Folder.request`."""

    folder: Folder
    key: str

    def write(self, name: str, start: int, array: np.ndarray) -> None:
        """Appends rows `start ... start + n` of a name: they are in the file when this returns.

        Args:
          name: of a site, or any name of a file.
          start: the request's token that the first row belongs to. A name's first write may begin anywhere, each later one where the last
            one ended.
          array: [n, ...] numbers or bools, of the same dtype and row's shape at every write.

        Raises:
          ValueError: rows that do not follow those that are there, or are of another kind; a name that is none of a file; a closed folder.
          OSError: the disk is full, or the like. What was written before stays readable, and the same rows may be written again.
        """
        self.folder._write(self.key, name, start, array)

    def close(self) -> None:
        """The request has ended: what is remembered of its arrays is let go. Writing goes on where it is asked for again."""
        with self.folder._lock:
            for kept in self.folder._arrays.pop(self.key, {}).values():
                if (descriptor := self.folder._open.pop(kept.path, None)) is not None:
                    os.close(descriptor)


def _close(lock: int, files: OrderedDict[Path, int]) -> None:
    for descriptor in [*files.values(), lock]:
        os.close(descriptor)
    files.clear()
