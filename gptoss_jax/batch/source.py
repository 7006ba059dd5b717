"""The input of a job: its lines as a stream, what tells it from another input, and which ids it has had. Knows no JSON."""

from array import array
from collections.abc import Iterator
import dataclasses
import hashlib
from pathlib import Path

from gptoss_jax.batch import files

_BOM = b"\xef\xbb\xbf"
_SEEN = 1 << 10  # places for ids at first


@dataclasses.dataclass(frozen=True)
class Source:
    """An input file.

    Attributes:
        path: of lines, compressed or not.
        records: how many of its lines are not blank.
        size, digest: of all its bytes, uncompressed.
    """

    path: Path
    records: int
    size: int
    digest: str

    @property
    def identity(self) -> dict:
        """What must be the same when a job goes on."""
        return {"size": self.size, "blake2b": self.digest, "records": self.records}


def survey(path: Path) -> Source:
    """Reads the whole input once. Raises OSError or ValueError where that cannot be done."""
    digest, size, records = hashlib.blake2b(digest_size=16), 0, 0
    for line in files.lines(path):
        digest.update(line)
        size += len(line)
        records += not line.isspace()
    return Source(path, records, size, digest.hexdigest())


def records(source: Source) -> Iterator[tuple[int, int, bytes]]:
    """Of every line that is not blank: its place among those from 0, its number in the file from 1, and the line."""
    place = 0
    for number, line in enumerate(files.lines(source.path), 1):
        if not line.isspace():
            yield place, number, line.removeprefix(_BOM) if number == 1 else line
            place += 1


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
