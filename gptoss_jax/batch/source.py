"""The input of a job: its lines as a stream, what tells it from another input, and which ids it has had. Knows no JSON.

A line that is longer than is allowed is passed over piece by piece: no input takes more memory than its longest allowed line.
"""

from array import array
from collections.abc import Iterator
import dataclasses
import hashlib
from pathlib import Path

from gptoss_jax.batch import files

MAX_LINE_BYTES = 16_000_000
_PIECE = 1 << 18  # bytes of a line that are looked at together where the whole of it does not matter
_BOM = b"\xef\xbb\xbf"
_SEEN = 1 << 10  # places for ids at first


@dataclasses.dataclass(frozen=True)
class Source:
    """An input file.

    Attributes:
        path: of lines, compressed or not.
        records: how many of its lines are not blank.
        size, digest: of all its bytes, uncompressed.
        most: bytes of a line, its line break apart, that is read as a whole.
    """

    path: Path
    records: int
    size: int
    digest: str
    most: int = MAX_LINE_BYTES

    @property
    def identity(self) -> dict:
        """What must be the same when a job goes on."""
        return {"size": self.size, "blake2b": self.digest, "records": self.records}


def survey(path: Path, most: int = MAX_LINE_BYTES) -> Source:
    """Reads the whole input once. Raises OSError or ValueError where that cannot be done."""
    digest, size, records, blank = hashlib.blake2b(digest_size=16), 0, 0, True
    for piece in files.lines(path, _PIECE):
        digest.update(piece)
        size += len(piece)
        blank = blank and piece.isspace()
        if piece.endswith(b"\n"):
            records, blank = records + (not blank), True
    return Source(path, records + (not blank), size, digest.hexdigest(), most)


def records(source: Source) -> Iterator[tuple[int, int, bytes | None]]:
    """Of every line that is not blank: its place among those from 0, its number in the file from 1, and the line; None for one too long."""
    place = 0
    for number, line in enumerate(_lines(source), 1):
        if line is None or not line.isspace():
            yield place, number, line.removeprefix(_BOM) if line is not None and number == 1 else line
            place += 1


def _lines(source: Source) -> Iterator[bytes | None]:
    """The lines; of those too long the blank ones are one byte, the others None."""
    long, blank = False, True
    for piece in files.lines(source.path, source.most + 1):
        goes_on = len(piece) > source.most and not piece.endswith(b"\n")
        if not long and not goes_on:
            yield piece
            continue
        long, blank = goes_on, blank and piece.isspace()
        if not goes_on:
            yield b"\n" if blank else None
            blank = True
    if long:
        yield b"\n" if blank else None


class Ids:
    """Which ids there have been, as digests of 16 bytes in a table with open addressing: some 50 bytes an id, however long it is."""

    def __init__(self):
        self._low, self._high, self._used = array("Q", bytes(8 * _SEEN)), array("Q", bytes(8 * _SEEN)), 0

    def add(self, name: str) -> bool:
        """Whether it is new."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if 3 * self._used >= 2 * len(self._low):
            self._grow()
        return self._put(int.from_bytes(digest[:8], "little") | 1, int.from_bytes(digest[8:], "little"))

    def _put(self, low: int, high: int) -> bool:
        mask = len(self._low) - 1
        place = (low >> 1) & mask
        while self._low[place]:  # 0 is an empty place; `low` is odd
            if self._low[place] == low and self._high[place] == high:
                return False
            place = (place + 1) & mask
        self._low[place], self._high[place] = low, high
        self._used += 1
        return True

    def _grow(self) -> None:
        old = zip(self._low, self._high, strict=True)
        size = 2 * len(self._low)
        self._low, self._high, self._used = array("Q", bytes(8 * size)), array("Q", bytes(8 * size)), 0
        for low, high in old:
            if low:
                self._put(low, high)
