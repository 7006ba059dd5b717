"""From what a caller calls a checkpoint (a directory, "nano", a name on the Hugging Face hub) to the directory that holds it."""

import contextlib
import logging
import os
from pathlib import Path
import re

from gptoss_jax.weights import foreign, safetensors

# The published repositories hold the same weights two or three times; this is what of them is read.
_WANTED = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.model"]
_DUPLICATES = ["original/*", "metal/*"]
_EXAMPLE, _NOT = "openai/gpt-oss-20b", "'original/*' 'metal/*'"

_log = logging.getLogger(__name__)

INDEX = "index.json"  # of an Orbax directory, under params/


def checkpoint(path: str | os.PathLike) -> Path:
    """The directory that holds config.json and the safetensors files, or an Orbax checkpoint (`is_store`).

    A directory in which only original/ holds weights stands for that. "nano" is the bundled checkpoint (for a directory of that
    name write "./nano"). A name such as "openai/gpt-oss-20b" that is no local directory is fetched from the Hugging Face hub, or
    taken from its cache.

    Raises:
        FileNotFoundError: there is no such checkpoint, or it holds no weights.
        ValueError: path is a file, none at all, or a directory of something else: of a LoRA adapter.
    """
    directory = _directory(path)
    if is_store(directory):
        return directory
    if foreign.is_adapter(directory):
        raise ValueError(
            f"{directory} must hold a gpt-oss checkpoint; it holds a LoRA adapter, which is a part of none; load the model that it was "
            "trained on, then gptoss_jax.adapters.load(directory, model.config) and adapters.attach."
        )
    for candidate in (directory, directory / "original"):
        if candidate.is_dir() and safetensors.has_shards(candidate):
            return candidate
    told = foreign.told(directory)
    more = f": {told}." if told else f"; download one with `hf download {_EXAMPLE} --exclude {_NOT} --local-dir gpt-oss-20b`."
    raise FileNotFoundError(
        f"{directory} must hold the safetensors files and the config.json of a gpt-oss checkpoint; {foreign.held(directory)}{more}"
    )


def is_store(directory: Path) -> bool:
    """Whether a directory holds an Orbax checkpoint as `gptoss_jax.save` writes it, or a part of one."""
    return (directory / "params").is_dir() and not safetensors.has_shards(directory)


def _directory(path: str | os.PathLike) -> Path:
    directory = foreign.path_of(path, "a checkpoint")
    if str(path) == "nano":
        return _bundled()
    if os.path.isdir(directory):
        return directory
    if os.path.exists(directory):
        raise ValueError(f"a checkpoint is a directory; got the file {directory}; {foreign.of_file(directory, directory.name)}.")
    if isinstance(path, str) and re.fullmatch(r"\w[\w.-]*/[\w.-]*\w", path) and not os.path.isdir(directory.parent):
        return _fetch(path)
    raise FileNotFoundError(f"there is no checkpoint directory {directory}; check the path, or pass 'nano' for the bundled one.")


def _bundled() -> Path:
    here = Path(__file__).resolve().parent.parent
    for directory in (here.parent / "checkpoints" / "nano", here / "nano"):  # in a clone; in an installed wheel
        if (directory / "config.json").is_file():
            return directory
    raise FileNotFoundError(f"the bundled checkpoint 'nano' is missing beside {here}; install gptoss-jax again or run it from a clone.")


def _is_whole(directory: Path) -> bool:
    """Whether a snapshot in the hub's cache has every file that is read."""
    try:
        safetensors.scan(directory)
    except (ValueError, FileNotFoundError):
        return False
    return (directory / "config.json").is_file()


def _fetch(name: str) -> Path:
    import huggingface_hub

    wanted = {"allow_patterns": _WANTED, "ignore_patterns": _DUPLICATES}
    try:
        return Path(huggingface_hub.snapshot_download(name, **wanted))
    except Exception as error:  # offline, no such repository, no permission: the hub's errors share no base class
        reason = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
        with contextlib.suppress(Exception):  # a disk that is full or for reading only, a proxy's page: what is there may be all
            found = Path(huggingface_hub.snapshot_download(name, local_files_only=True, **wanted))
            if _is_whole(found):
                _log.warning("The Hugging Face hub cannot be asked for %s (%s); its cache's copy is loaded: %s.", name, reason, found)
                return found
        raise FileNotFoundError(
            f"there is no local directory {name}, and fetching it from the Hugging Face hub failed: {reason}; check the name, or, "
            f"where there is a network, run `hf download {name} --exclude {_NOT} --local-dir {name.split('/')[1]}` "
            "and pass that directory."
        ) from error
