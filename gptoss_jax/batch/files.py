"""Files of lines: gzip and zstd by suffix, read as a stream, written whole or not at all."""

from collections.abc import Iterator
import contextlib
import gzip
import io
import os
from pathlib import Path
from typing import BinaryIO
import zlib

import zstandard

COMPRESSED = (".gz", ".zst")
_BLOCK = 1 << 18  # bytes that are read at a time
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, each with its line break if it has one.

    Raises:
        ValueError: what is compressed is damaged or cut off.
    """
    with open(path, "rb", buffering=_BLOCK) as raw:
        try:
            yield from _uncompressed(path, raw)
        except _DAMAGE as error:
            raise ValueError(f"{path} must be a whole {path.suffix} file; reading it failed: {error}; make it again.") from error


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write bytes to, which has its name only once all of it is on the disk; an error leaves no trace.

    Raises:
        OSError: the disk is full, or the like.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as raw:
            with _compressing(path, raw) as file:
                yield file
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(f"{path} must be written, and that failed: {error}; make room and start the same command again.") from error
        raise
    sync_directory(path)


def sync_directory(path: Path) -> None:
    """Makes the name of a file, or that it is gone, outlive the machine."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _uncompressed(path: Path, raw: BinaryIO) -> BinaryIO:
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), _BLOCK)
    return io.BufferedReader(_Zstd(raw), _BLOCK) if path.suffix == ".zst" else raw


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


class _Zstd(io.RawIOBase):
    """Frames of zstd, one after the other; a cut in the last one is an EOFError (zstandard's own reader says nothing)."""

    def __init__(self, raw: BinaryIO):
        self._raw, self._frame, self._given, self._ready = raw, None, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            self._given = self._given or self._raw.read(_BLOCK)
            if not self._given:
                if self._frame is not None:
                    raise EOFError("it ends in the middle of a frame")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._ready, self._given = self._frame.decompress(self._given), b""
            if self._frame.eof:
                self._given, self._frame = self._frame.unused_data, None
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n
