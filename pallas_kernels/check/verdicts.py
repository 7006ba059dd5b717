"""What checks have found on a device, kept in the user's cache: a file of JSON for each device, driver, jax and source of the kernels.

A file is whole or not there. One that is damaged, or somebody else's, is ignored with a sentence: the check then runs again.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import logging
import os
from pathlib import Path
import re
import stat
import tempfile
import time

import jax
import jaxlib
import platformdirs

_FORMAT = 1
_TOOLS = ("emulator", "aot", "predict", "__pycache__")  # rooms that have no say in what a kernel does
_MOST = 1 << 20  # bytes of a file
_log = logging.getLogger(__name__)
_ignored: set[Path] = set()  # files of which it was said

Found = Mapping[str, Mapping]  # `selection.label` -> {"verdict", "why", "cases": case -> {"error", "worst"}}


@dataclasses.dataclass(frozen=True)
class Key:
    """What a verdict holds for.

    Attributes:
      device: the kind, such as "NVIDIA H200".
      driver: versions of NVIDIA's driver and of CUDA.
      jax, jaxlib: versions.
      kernels: a digest of their source.
    """

    device: str
    driver: str
    jax: str
    jaxlib: str
    kernels: str

    @property
    def path(self) -> Path:
        """Where it is kept."""
        name = hashlib.sha256(json.dumps(dataclasses.astuple(self)).encode()).hexdigest()[:32]
        return folder() / f"{name}.json"


def folder() -> Path:
    """Where verdicts lie, in the user's cache."""
    cache = platformdirs.user_cache_path("gptoss-jax")
    return (cache if cache.is_absolute() else Path(os.devnull)) / "kernels"  # without a home there is none, and nothing can be kept


def key(device_kind: str, platform_version: str) -> Key:
    """The key of this machine, with a device that JAX calls so, and says that of its platform."""
    return Key(device_kind, f"{_driver()}, {' '.join(platform_version.split())}", jax.__version__, jaxlib.__version__, sources())


@functools.cache
def sources() -> str:
    """A digest of every line that has a say in a kernel, or in how it is checked."""
    digest, home = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(home.rglob("*.py")):
        if path.relative_to(home).parts[0] not in _TOOLS:
            data = path.read_bytes()
            digest.update(f"{path.relative_to(home).as_posix()} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown driver"
    found = re.search(r"Module[^\n]*?\s(\d+(?:\.\d+)+)\s", text)
    return found[1] if found else text.split("\n")[0][:100]


def read(key: Key) -> Found:
    """What is known; nothing where there is no file, or none that can be believed, which is said once."""
    path = key.path
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise ValueError("it must be a file that you own and nobody else can write")
            with open(descriptor, "rb", closefd=False) as file:
                data = json.loads(file.read(_MOST))
        finally:
            os.close(descriptor)
        if not isinstance(data, dict) or data.get("format") != _FORMAT or data.get("key") != dataclasses.asdict(key):
            raise ValueError("it is of another format, or of another machine")
        return _believed(data["kernels"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if path not in _ignored:
            _log.warning("The verdict on kernels in %s is ignored: %s.", path, str(error).split("\n")[0][:200])
        _ignored.add(path)
        return {}


def _believed(kernels: dict) -> Found:
    """The same, if every part of it is what it must be."""
    for name, found in kernels.items():
        cases = found["cases"].values()
        numbers = [one[part] for one in cases for part in ("error", "worst")]
        words = (name, found["verdict"], found["why"], *found["cases"])
        if found["verdict"] not in ("passed", "wrong", "failed", "crashed", "hung") or not all(isinstance(word, str) for word in words):
            raise ValueError("a verdict in it is none")
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError("a number in it is none")
    return kernels


def add(key: Key, found: Found) -> Path | None:
    """Writes what was found beside what is known; where that cannot be done a sentence is logged, and None returned."""
    path = key.path
    known = {**read(key), **found}
    body = json.dumps({"format": _FORMAT, "key": dataclasses.asdict(key), "kernels": known}, indent=1)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:  # which nobody else may read
            try:
                file.write(body)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        _log.warning("The verdict on kernels cannot be kept in %s (%s); the next start checks them again.", path, error.strerror)
        return None
    _ignored.discard(path)
    return path


@contextlib.contextmanager
def alone(key: Key, seconds: float) -> Iterator[None]:
    """Within this no other process of this machine is, with the same key; after so many seconds of waiting it may be.

    The system gives the lock back when a process ends, however it does. Where it knows no locks nobody waits.
    """
    try:
        key.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(key.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        yield
        return
    try:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.2)
            except OSError:
                break
        yield
    finally:
        os.close(file)
