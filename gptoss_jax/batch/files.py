"""Files of lines: gzip and zstd by suffix, read as a stream of bounded memory, written whole or not at all.

While a file is written it has a name of its own beside the one that it will have, `.results.jsonl.0123456789abcdef.tmp`. Nothing else of
that name is written over and no link is followed; what a job that was killed left of it is removed by the next one.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import gzip
import io
import os
from pathlib import Path
import re
import secrets
import stat
from typing import BinaryIO
import zlib

import zstandard

from gptoss_jax.batch import zstd

COMPRESSED = (".gz", ".zst")
PRIVATE = 0o600
_BLOCK = 1 << 18  # bytes that are read at a time
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_LONGEST = 200  # bytes of a name that are part of the temporary one


def lines(path: Path, most: int = -1) -> Iterator[bytes]:
    """The lines of a file, each with its line break if it has one.

    Args:
        most: bytes; a longer line comes in pieces of so many, the last with its line break. -1 for no limit.

    Raises:
        ValueError: what is compressed is damaged or cut off.
    """
    with open(path, "rb", buffering=_BLOCK) as raw:
        try:
            stream = _uncompressed(path, raw)
            while line := stream.readline(most):
                yield line
        except _DAMAGE as error:
            raise ValueError(f"{path} must be a whole {path.suffix} file; reading it failed: {error}; make it again.") from error


@contextlib.contextmanager
def written_whole(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A file to write bytes to, which has its name only once all of it is on the disk; an error leaves no trace.

    Args:
        path: where it is a link, what that leads to is replaced, and the link stays. A file that is there hands its mode on.
        private: its mode is 0600, whatever it was.

    Raises:
        ValueError: `path` is no file that can be replaced.
        OSError: the disk is full, or the like.
    """
    target = replaced(path)
    _remove_left_over(target)
    temporary = None
    try:
        temporary, descriptor = _made(target, _mode(target, private))
        with open(descriptor, "wb") as raw:
            with _compressing(path, raw) as file:
                yield file
            raw.flush()
            os.fsync(raw.fileno())
            os.replace(temporary, target)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(f"{path} must be written, and that failed: {error}; make room and start the same command again.") from error
        raise
    sync_directory(target)


def replaced(path: Path) -> Path:
    """What is replaced when `path` is written: itself, or what it leads to, be it there or not.

    Raises:
        ValueError: it is a link in a circle, leads to no folder that is there, or is a device, a pipe or the like.
    """
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise ValueError(f"{path} must be a file; it is a link that leads to itself; remove it, or name another file.")
    if not target.parent.is_dir():
        raise ValueError(f"{path} must be in a folder that is there; {target.parent} is not; make it.")
    if target.exists() and not target.is_file():
        raise ValueError(f"{path} must be a file; it is a folder, a device or a stream; name another file.")
    return target


def sync_directory(path: Path) -> None:
    """Makes the name of a file, or that it is gone, outlive the machine."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _made(target: Path, mode: int | None) -> tuple[Path, int]:
    """A new file beside another, nobody else's and held as long as it is open: its name and descriptor. `mode` None: as the umask says."""
    while True:
        temporary = target.with_name(f"{_beginning(target)}{secrets.token_hex(8)}.tmp")
        descriptor = os.open(temporary, _NEW, 0o666 if mode is None else PRIVATE)
        if mode not in (None, stat.S_IMODE(os.fstat(descriptor).st_mode)):
            os.fchmod(descriptor, mode)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # it was not taken for one that was left over before it was held
            return temporary, descriptor
        os.close(descriptor)


def _beginning(target: Path) -> str:
    """Of the names of its temporary files; no longer than a file system takes."""
    return f".{os.fsdecode(os.fsencode(target.name)[:_LONGEST])}."


def _mode(target: Path, private: bool) -> int | None:
    """That of the file which is replaced; None for a new one, which has what the umask leaves."""
    if private:
        return PRIVATE
    try:
        return stat.S_IMODE(os.stat(target).st_mode) & 0o777
    except FileNotFoundError:
        return None


def _remove_left_over(target: Path) -> None:
    """Removes temporary files of this target that no living process holds."""
    pattern = re.compile(re.escape(_beginning(target)) + r"[0-9a-f]{16}\.tmp")
    for path in [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]:
        with contextlib.suppress(OSError):  # a link, another's file, or one that is held
            descriptor = os.open(path, _OLD)
            try:
                about = os.fstat(descriptor)
                if stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            finally:
                os.close(descriptor)


def _uncompressed(path: Path, raw: io.BufferedReader) -> BinaryIO:
    if path.suffix in COMPRESSED and not raw.peek(1):
        raise EOFError("there is nothing in it, not even a beginning")
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), _BLOCK)
    return io.BufferedReader(zstd.Unpacked(raw), _BLOCK) if path.suffix == ".zst" else raw


@contextlib.contextmanager
def _compressing(path: Path, raw: BinaryIO) -> Iterator[BinaryIO]:
    """The same bytes give the same file: no name and no time are in it."""
    if path.suffix == ".gz":
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as file:
            yield file
    elif path.suffix == ".zst":
        with zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(raw, closefd=False) as file:
            yield file
    else:
        yield raw
