"""What lies where a checkpoint or an adapter should, in words, and what to do about it: for errors. Looks at names, opens no file."""

from collections.abc import Iterator
import os
from pathlib import Path

from gptoss_jax.quoting import quoted

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_ORBAX = ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt")
_LISTED = 5  # names in an error
_LONGEST = 4096  # bytes of a path
_LOOKED_AT, _DEPTH = 500, 3  # directories, and how far down


def path_of(given: object, what: str) -> Path:
    """A path that a caller gives. Raises ValueError where it is none."""
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(text, str):
        raise ValueError(f"{what} must be named by a path; got a {type(given).__name__}; pass a string or a pathlib.Path.")
    if not text:
        raise ValueError(f"{what} must be named by a path; got an empty one; pass '.' for the current directory.")
    try:
        possible = len(os.fsencode(text)) < _LONGEST and "\0" not in text
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ValueError(f"{what} must be named by a path; got {quoted(text)}, which none can be; check it.")
    return Path(os.path.expanduser(text))


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds a LoRA adapter, and no weights beside it."""
    names = set(names_in(directory))
    weights = {name for name in names if name.endswith((".safetensors", ".safetensors.index.json"))}
    return bool(names & {*ADAPTER, "adapter_model.bin"}) and weights <= {ADAPTER[1]}


def held(directory: Path) -> str:
    """What a directory holds, for a sentence: "it holds a, b"."""
    names = names_in(directory)
    return f"it holds {quoted(', '.join(names[:_LISTED]))[1:-1]}{', ...' if len(names) > _LISTED else ''}" if names else "it is empty"


def of_file(path: Path, shown: str) -> str:
    """What to do with a file that is given for a directory."""
    if path.suffix == ".gguf":
        return f"GGUF is not read here; give the directory of the safetensors files that {shown} was made of"
    if path.suffix in _PICKLED:
        return "PyTorch's pickled files are not read; give a directory of safetensors files"
    return "pass the directory that holds it"


def told(directory: Path) -> str:
    """What that is which a directory holds in a checkpoint's place, and what to do; "" where it cannot be told."""
    names = names_in(directory)
    for inside in (directory, directory.parent):
        if inside.name == "params" and (inside / "index.json").is_file():
            return f"the inside of an Orbax directory; pass {inside.parent}"
    if any(name.endswith(".gguf") for name in names):
        return "GGUF is not read here; give the safetensors files that it was made of"
    if inner := list(_checkpoints(directory)):
        return f"the checkpoint is in {' and in '.join(map(str, inner[:2]))}; pass that directory"
    if set(names) & set(_ORBAX):
        return "an Orbax checkpoint of another program; only those that gptoss_jax.save or checkpoints.convert have written are read"
    if any(name.endswith(_PICKLED) for name in names):
        return "PyTorch's pickled files are not read; save the model with safetensors (save_pretrained does)"
    return ""


def _checkpoints(directory: Path) -> Iterator[Path]:
    """Directories below that hold safetensors files, or an Orbax checkpoint; not below those."""
    level = [directory]
    for _ in range(_DEPTH):
        below = [each / name for each in level for name in names_in(each)]
        level = []
        for each in below[:_LOOKED_AT]:
            if not os.path.isdir(each):
                continue
            names = names_in(each)
            shards = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names) and not is_adapter(each)
            if shards or os.path.isfile(each / "params" / "index.json"):
                yield each
            else:
                level.append(each)


def names_in(directory: Path) -> list[str]:
    """What a directory holds, sorted; nothing where there is none, or where it must not be looked at."""
    try:
        return sorted(os.listdir(directory))
    except OSError:  # no directory, or not for us to read
        return []
