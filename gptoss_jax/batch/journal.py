"""The journal of a job: every result as soon as it is there, in a file that only grows and survives a kill at any moment.

    gptoss-jax batch journal {"input": ..., "settings": ...}
    PLACE ERROR TOKENS_IN TOKENS_OUT CRC {"id": ...}

A result is written at once, so that no death of the process loses it; the disk is told to keep it in the background, so that a death
of the machine loses little. What is torn or damaged is cut off when the journal is opened, and is done again.
"""

from array import array
from collections.abc import Iterator, Mapping
import dataclasses
import errno
import fcntl
import json
import os
from pathlib import Path
import stat
import threading
import zlib

from gptoss_jax.batch import files

_MAGIC = b"gptoss-jax batch journal "
_SYNC_SECONDS = 0.2
_LONGEST_HEADER = 1 << 20  # bytes; results have no limit, for it was we who wrote them


@dataclasses.dataclass
class Totals:
    """Of the results so far: how many, how many of them errors, and their tokens."""

    done: int = 0
    errors: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, error: bool, tokens_in: int, tokens_out: int) -> None:
        self.done += 1
        self.errors += error
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out


class Journal:
    """Results by their place in the output, 0 ... places - 1, each once.

    Args:
        path: is made where there is none; its folder must exist.
        header: what must be the same whenever the job goes on. Plain JSON.
        places: how many results the finished job has.
        private: its mode is 0600; else a new one has what the umask leaves.

    Raises:
        ValueError: another process has it open, its header is another, or it is no journal, or a link.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, header: Mapping, places: int, *, private: bool = False):
        self.path, self.totals, self.cut = path, Totals(), 0
        self._offsets = array("q", [-1]) * places
        self._lock = threading.Lock()
        self._file = _locked(path, private)
        try:
            self._end = self._read(header)
        except BaseException:
            self._file.close()
            raise
        self._syncing = _Syncing(self._file.fileno())

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def has(self, place: int) -> bool:
        return self._offsets[place] >= 0

    @property
    def missing(self) -> int:
        return len(self._offsets) - self.totals.done

    def add(self, place: int, result: bytes, *, error: bool, tokens_in: int = 0, tokens_out: int = 0) -> None:
        """Writes a result, one line without its line break.

        Raises:
            OSError: the disk is full, or the like; what was in the journal still is.
        """
        if self.has(place):
            raise ValueError(f"a result must be written once; that of place {place} is there; give each place one result.")
        numbers = b"%d %d %d %d " % (place, error, tokens_in, tokens_out)
        record = b"%b%08x %b\n" % (numbers, zlib.crc32(result, zlib.crc32(numbers)), result)
        with self._lock:
            try:
                _write(self._file.fileno(), record)
                self._syncing.tell()
            except OSError as failure:
                os.ftruncate(self._file.fileno(), self._end)
                raise OSError(
                    f"results must be kept, but writing {self.path} failed: {failure.strerror or failure}; the {self.totals.done:,} in it "
                    "are safe; make room and start the same command again."
                ) from failure
            self._offsets[place] = self._end
            self._end += len(record)
            self.totals.add(error, tokens_in, tokens_out)

    def results(self) -> Iterator[bytes]:
        """The results in the order of their places, each with its line break; there must be all of them."""
        with open(_opened(self.path, os.O_RDONLY), "rb") as file:  # anew: a buffer may hold what was cut off
            for offset in self._offsets:
                file.seek(offset)
                yield file.readline().split(b" ", 5)[5]

    def close(self) -> None:
        """Makes all of it outlive the machine and lets others open it."""
        if not self._file.closed:
            self._syncing.stop()
            self._file.close()

    def remove(self) -> None:
        """For when the output is written."""
        self.path.unlink()
        files.sync_directory(self.path)
        self.close()

    def _read(self, header: Mapping) -> int:
        """Learns what is there, cuts off what is torn, and returns where it ends."""
        first = _MAGIC + json.dumps(header, sort_keys=True).encode() + b"\n"
        found = self._file.readline(_LONGEST_HEADER)
        if not found.endswith(b"\n") and first.startswith(found):  # new, or torn before anything was in it
            os.ftruncate(self._file.fileno(), 0)
            _write(self._file.fileno(), first)
            os.fsync(self._file.fileno())
            files.sync_directory(self.path)
            return len(first)
        _compare(self.path, found, first)
        end = len(first)
        for record in self._file:
            if not self._learn(record, end):
                break
            end += len(record)
        self.cut = os.fstat(self._file.fileno()).st_size - end
        os.ftruncate(self._file.fileno(), end)
        return end

    def _learn(self, record: bytes, offset: int) -> bool:
        """Whether the record is whole."""
        try:
            *numbers, crc, result = record.split(b" ", 5)
            place, error, tokens_in, tokens_out = map(int, numbers)
            wanted = zlib.crc32(result[:-1], zlib.crc32(b"%d %d %d %d " % (place, error, tokens_in, tokens_out)))
            whole = result.endswith(b"\n") and int(crc, 16) == wanted and place >= 0 and not self.has(place)
        except (ValueError, IndexError, OverflowError):
            return False
        if whole:
            self._offsets[place] = offset
            self.totals.add(bool(error), tokens_in, tokens_out)
        return whole


class _Syncing:
    """Tells the disk to keep what was written, at most every 0.2 seconds, in a thread: no device waits for a slow disk."""

    def __init__(self, descriptor: int):
        self._descriptor, self._failure = descriptor, None
        self._written, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    def tell(self) -> None:
        """Something was written. Raises OSError where the disk refused something before."""
        if self._failure is not None:
            raise self._failure
        self._written.set()

    def stop(self) -> None:
        self._stop.set()
        self._written.set()
        self._thread.join()
        if self._failure is None:
            os.fsync(self._descriptor)

    def _work(self) -> None:
        while not self._stop.is_set():
            self._written.wait()
            self._written.clear()
            try:
                os.fsync(self._descriptor)
            except OSError as failure:
                self._failure = failure
                return
            self._stop.wait(_SYNC_SECONDS)


def _opened(path: Path, flags: int, mode: int = 0o666) -> int:
    """The descriptor of a file that is no link, no device and the like. Raises ValueError for those."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
    else:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    raise ValueError(
        f"{path} must be a file, for a job keeps its results there; it is a link or the like; remove it, or give --output another name."
    )


def _locked(path: Path, private: bool):
    """The open file, which no other process has open; a file that was removed in the meantime does not count."""
    while True:
        descriptor = _opened(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, files.PRIVATE if private else 0o666)
        file = open(descriptor, "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ValueError(
                f"one job at a time may write an output; another one has {path} open; wait for it, or give --output another name."
            ) from None
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                if private:
                    os.fchmod(descriptor, files.PRIVATE)
                return file
        except FileNotFoundError:
            pass
        file.close()


def _compare(path: Path, found: bytes, wanted: bytes) -> None:
    """Raises ValueError where the journal is of another job."""
    try:
        old, new = (json.loads(line.removeprefix(_MAGIC)) for line in (found, wanted))
        if not found.startswith(_MAGIC) or not isinstance(old, dict):
            raise ValueError
    except ValueError:
        raise ValueError(f"{path} must be a job's journal; it is some other file; move it away, or give --output another name.") from None
    if old != new:
        names = ", ".join(_differences(old, new))
        raise ValueError(
            f"a job must go on with what it began with; {path} is of another {names}; give that again, or remove {path.name} to begin anew."
        )


def _differences(old: object, new: object, name: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [found for key in names for found in _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)]
    return [] if old == new else [f"{name} ({json.dumps(old)}, now {json.dumps(new)})"]


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
