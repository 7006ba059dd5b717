"""Frames of zstd as a stream of bytes, block by block: no block holds more than 128 KiB, however small it was made."""

from collections.abc import Iterator
import io
from typing import BinaryIO

import zstandard

_PIECE = 1 << 18  # bytes that are skipped at a time


class Unpacked(io.RawIOBase):
    """The contents of all frames, one after the other. A cut in the last one is an EOFError (zstandard's own reader says nothing)."""

    def __init__(self, raw: BinaryIO):
        self._blocks, self._ready = _blocks(raw), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._ready = memoryview(block)
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n


def _blocks(raw: BinaryIO) -> Iterator[bytes]:
    """What each block holds. Where blocks begin and end is read here (RFC 8878), what is in them by zstandard."""
    while magic := raw.read(4):
        if magic[1:] == b"\x2a\x4d\x18" and magic[0] >> 4 == 5:  # a frame to be skipped
            _skip(raw, int.from_bytes(_exactly(raw, 4), "little"))
            continue
        frame = zstandard.ZstdDecompressor().decompressobj()
        frame.decompress(magic)
        head = _exactly(raw, 1)
        descriptor = head[0]
        single, dictionary, size = descriptor >> 5 & 1, descriptor & 3, descriptor >> 6
        yield frame.decompress(head + _exactly(raw, (1 - single) + (0, 1, 2, 4)[dictionary] + (single, 2, 4, 8)[size]))
        last = False
        while not last:
            head = _exactly(raw, 3)
            number = int.from_bytes(head, "little")
            last, repeated, size = number & 1, number >> 1 & 3 == 1, number >> 3
            yield frame.decompress(head + _exactly(raw, 1 if repeated else size))
        if descriptor >> 2 & 1:
            yield frame.decompress(_exactly(raw, 4))  # its checksum
        if not frame.eof:
            raise zstandard.ZstdError("a frame goes on after its last block")


def _exactly(raw: BinaryIO, count: int) -> bytes:
    data = raw.read(count)
    if len(data) < count:
        raise EOFError("it ends in the middle of a frame")
    return data


def _skip(raw: BinaryIO, count: int) -> None:
    while count:
        count -= len(_exactly(raw, min(count, _PIECE)))
