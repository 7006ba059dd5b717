"""Programs as they were lowered, kept on disk: a later start traces nothing, and XLA's own cache finds what they compile to.

One file a program, written by `jax.export` (StableHLO; nothing is unpickled), in the folder `lowered` of JAX's compilation cache if there
is one. Its name is a digest of all that made it: this package's source, the function, its options, what it is called with and how that
lies, JAX's version, backend and flags. (XLA's flags are in the key of XLA's cache.) Where anything differs, is damaged or fails the
program is traced. What lies there is run, so the folder must be its owner's alone. Knows no engine: functions and arrays.

The source is that on the disk and that which is loaded: whoever replaces a function of the model, or edits a file that is imported already,
gets programs of his own, and leaves none to others. What a replacement closes over is not looked at.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
from pathlib import Path
import stat
import sys
import tempfile
import types
from typing import Any

import jax
from jax import export
from jax.sharding import SingleDeviceSharding
import jaxlib
import numpy as np

from gptoss_jax.quoting import said
import pallas_kernels
from pallas_kernels import dispatch

LIMIT = 1 << 30  # bytes of the folder; those used longest ago go first
_MAGIC = b"gptoss-jax lowered program 1\n"
_DIGEST = 32  # bytes of a SHA-256
_NO_MATTER = (  # a program is traced for the device that its arrays lie on
    "jax_compilation_cache", "jax_persistent_cache", "jax_enable_compilation_cache", "jax_log", "jax_dump", "jax_traceback",
    "jax_default_device",
)  # fmt: skip

_MAKERS = (
    "config", "model", "sampling", "parallel.sharding", *(f"engine.device.{name}" for name in ("decode", "hooked", "routes", "state")),
)  # fmt: skip
_log = logging.getLogger(__name__)


def lower(function: Callable, arguments: tuple, options: Mapping[str, Any], *, donated: Any, result: Any) -> Callable[[], Callable]:
    """`function`, a jitted one, lowered for arguments like these: read if it is kept; traced and then kept if not.

    Args:
      function: takes arguments, then options by keyword.
      arguments: trees of arrays, and static values in the places of static arguments.
      options: static ones, by name.
      donated: the tree among the arguments whose arrays the function may write over, as its decorator says.
      result: a tree like what it returns, whatever its leaves.

    Returns:
      What compiles it, which may be done in a thread: called with nothing it gives a callable of the arguments but for the static ones.
    """
    plain = lambda: function.lower(*arguments, **options)
    # Several processes must compile the same, whatever lies on their disks; and a device that is only named is a matter of trying things.
    usual = jax.process_count() == 1 and not dispatch.pretending()
    folder = _folder() if usual else None
    if folder is None:
        return plain().compile
    program = _Program(function, arguments, options, donated, result)
    try:
        path = folder / program.key
    except Exception as error:  # a source that cannot be read, say
        _once("Programs cannot be kept in %s (%s).", folder, _why(error))
        return plain().compile
    if (kept := _read(path)) is not None:
        try:
            return program.of_trees(program.call(kept))
        except Exception as error:  # of another make, in spite of its name: as good as none
            _log.warning("The program kept in %s cannot be used (%s); it is traced again.", path, said(error))
    try:
        traced = program.lower()
    except Exception as error:  # what is wrong with the function itself is said below, as without a folder
        _log.warning("%s cannot be kept in %s (%s).", function.__name__, folder, said(error))
        return plain().compile
    _write(path, traced)
    return program.of_trees(program.call(traced))


class _Program:
    """A function of flat arrays, which is what can be written to a file: trees and static values stay here."""

    def __init__(self, function: Callable, arguments: tuple, options: Mapping[str, Any], donated: Any, result: Any):
        self._function, self._options = function, dict(options)
        self._leaves, self._tree = jax.tree.flatten(arguments)
        self._places = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, jax.Array)]
        self._arrays = [self._leaves[i] for i in self._places]
        mine = {id(leaf) for leaf in jax.tree.leaves(donated)}
        self._donated = tuple(i for i, array in enumerate(self._arrays) if id(array) in mine)
        self._result = jax.tree.structure(result)

    @property
    def key(self) -> str:
        """A name for the file."""
        values = [(x.shape, str(x.dtype), _lies(x)) if isinstance(x, jax.Array) else x for x in self._leaves]
        facts = (
            *(_source(), _loaded(), jax.__version__, jaxlib.__version__, _devices(self._arrays), flags()),
            *(self._function.__module__, self._function.__qualname__, self._tree, values, sorted(self._options.items())),
            *(self._donated, self._result),
        )
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def lower(self) -> export.Exported:
        """Traces and lowers it."""
        kernels = [export.DisabledSafetyCheck.custom_call(name) for name in dispatch.CUSTOM_CALLS]
        like = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in self._arrays]
        return export.export(jax.jit(self._flat), disabled_checks=kernels)(*like)

    def call(self, exported: export.Exported) -> jax.stages.Lowered:
        """A program of flat arrays that is nothing but `exported`."""
        # Its name holds the platform. Where jax reads there that it is for CPUs it imports SciPy, for LAPACK, which no program here calls.
        checks = (*exported.disabled_safety_checks, export.DisabledSafetyCheck.platform())
        exported = dataclasses.replace(exported, platforms=("any",), disabled_safety_checks=checks)
        call = lambda *arrays: exported.call(*arrays)
        call.__name__ = self._function.__name__  # the program's own, for profiles
        return jax.jit(call, donate_argnums=self._donated).lower(*self._arrays)

    def of_trees(self, lowered: jax.stages.Lowered) -> Callable[[], Callable]:
        """What compiles a program of flat arrays, to a function of trees, which does not hold on to this one's arrays."""
        result = self._result

        def compile() -> Callable:
            program = lowered.compile()
            return lambda *arguments: jax.tree.unflatten(result, program(*jax.tree.leaves(arguments)))

        return compile

    def _flat(self, *arrays: jax.Array) -> list[jax.Array]:
        leaves = list(self._leaves)
        for place, array in zip(self._places, arrays, strict=True):
            leaves[place] = array
        result = self._function(*jax.tree.unflatten(self._tree, leaves), **self._options)
        if jax.tree.structure(result) != self._result:
            raise TypeError(f"{self._function.__name__} must return {self._result}; got {jax.tree.structure(result)}.")
        return jax.tree.leaves(result)


def _lies(array: jax.Array) -> Any:
    """How an array lies, the same of whichever device it has to itself: what is lowered for one runs on another of its kind."""
    return array.sharding.memory_kind if isinstance(array.sharding, SingleDeviceSharding) else array.sharding


def _devices(arrays: Sequence[jax.Array]) -> list[tuple]:
    devices = sorted({device for array in arrays for device in array.sharding.device_set}, key=lambda device: device.id)
    number = lambda device: device.id if len(devices) > 1 else None
    return [(number(device), device.platform, device.device_kind, device.client.platform_version) for device in devices]


def flags() -> str:
    """JAX's settings, those of this thread, but for such as change nothing in a program."""
    return repr([(name, getattr(jax.config, name, None)) for name in sorted(jax.config.values) if not name.startswith(_NO_MATTER)])


@functools.cache
def _source() -> str:
    """A digest of every line that could have a say in a program."""
    digest = hashlib.sha256()
    for home in (Path(__file__).parents[2], Path(pallas_kernels.__file__).parent):
        for path in sorted(home.rglob("*.py")):
            digest.update(f"{path.relative_to(home.parent)} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _rooms() -> list[types.ModuleType]:
    """The modules that programs come from, before the first is traced: that may load kernels, and a later start must find the same."""
    makers = (*(f"gptoss_jax.{name}" for name in _MAKERS), "pallas_kernels")
    return [module for name, module in sorted(sys.modules.items()) if name.startswith(makers)]


def _loaded() -> str:
    """A digest of the functions and constants of the rooms that programs come from, as they are now."""
    digest = hashlib.sha256()
    for module in _rooms():
        for name, value in sorted(vars(module).items()):
            if not name.startswith("__"):
                digest.update(f"{module.__name__}.{name} {_meaning(value)}\n".encode())
    return digest.hexdigest()


def _meaning(value: Any) -> Any:
    """What a function or constant says, the same in every process; its type of anything else."""
    if isinstance(value, types.CodeType):
        return _of_code(value)
    if isinstance(value, type):
        return value.__qualname__, [(name, _meaning(own)) for name, own in sorted(vars(value).items()) if not name.startswith("__")]
    if isinstance(value, property):
        return _meaning(value.fget)
    if isinstance(value, functools.partial):
        return _meaning(value.func), _meaning(value.args), _meaning(sorted(value.keywords.items()))
    if isinstance(value, tuple | list):
        return [_meaning(one) for one in value]
    if isinstance(value, frozenset | set):
        return sorted(map(repr, value))
    if isinstance(value, dict):
        return [(repr(name), _meaning(one)) for name, one in value.items()]
    if isinstance(value, int | float | str | bytes | None | np.dtype) or dataclasses.is_dataclass(value):
        return repr(value)
    inner = getattr(value, "__wrapped__", value)  # of jit, custom derivatives, caches
    code = getattr(inner, "__code__", None)
    return (_meaning(code), _meaning(inner.__defaults__), _meaning(inner.__kwdefaults__)) if code else type(value).__name__


@functools.cache
def _of_code(code: types.CodeType) -> str:
    parts = (code.co_code, code.co_names, code.co_varnames, [_meaning(constant) for constant in code.co_consts])
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _folder() -> Path | None:
    """Where programs are kept: None where JAX keeps none, or where somebody else could have written what lies there."""
    home = jax.config.jax_compilation_cache_dir
    if not home or not jax.config.jax_enable_compilation_cache or "://" in home:
        return None
    folder = Path(home) / "lowered"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        _once("Programs cannot be kept in %s (%s).", folder, _why(error))
        return None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        _once("Programs kept in %s are not run: the folder must be yours alone; `chmod 700` it, or delete it.", folder)
        return None
    return folder


@functools.cache
def _once(*words: Any) -> None:
    """Logs a sentence that holds for every program, and is said of the first."""
    _log.warning(*words)


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or said(error)  # without the name of a file that is another each time


def _read(path: Path) -> export.Exported | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    with contextlib.suppress(OSError):  # a folder may be for reading only
        os.utime(path)
    head, body = data[: len(_MAGIC) + _DIGEST], data[len(_MAGIC) + _DIGEST :]
    try:
        if head != _MAGIC + _digest(path, body):
            raise ValueError("it is damaged, or another's")
        return export.deserialize(bytearray(body))
    except Exception as error:  # whatever a file can hold
        _log.warning("The program kept in %s cannot be read (%s); it is traced again.", path, said(error))
        return None


def _digest(path: Path, body: bytes) -> bytes:
    """Of a program and its name: under another name it is not that program."""
    return hashlib.sha256(path.name.encode() + body).digest()


def _write(path: Path, traced: export.Exported) -> None:
    """Puts a program there, whole or not at all, and makes room if the folder is full."""
    try:
        body = traced.serialize(vjp_order=0)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:  # which nobody else may read
            try:
                file.write(_MAGIC + _digest(path, body) + body)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(file.name)
                raise
        _make_room(path)
    except Exception as error:
        _once("A program cannot be kept in %s (%s).", path.parent, _why(error))


def _make_room(newest: Path) -> None:
    found = []
    for entry in os.scandir(newest.parent):
        with contextlib.suppress(OSError):  # another process makes room too
            if entry.is_file(follow_symlinks=False):
                found.append((entry.stat(follow_symlinks=False), Path(entry)))
    total = sum(status.st_size for status, _ in found)
    for status, path in sorted(found, key=lambda each: each[0].st_mtime_ns):
        if total <= LIMIT:
            return
        if path != newest:
            path.unlink(missing_ok=True)
            total -= status.st_size
