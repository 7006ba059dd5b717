"""An Orbax directory: a checkpoint written piece by piece, whole or not at all.

    config.json, tokenizer.model, ...                    as in a published checkpoint
    params/embedding  params/layers.0 ... params/final   each an Orbax checkpoint (OCDBT)
    params/index.json                                    how experts are stored, every file's size, every chunk's checksum

Experts are stored packed or as arrays [E, out, in], as wide as they were held. This room knows what such a directory must hold and
finds what it does; `saving` writes one, `restoring` reads its arrays.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
import tensorstore as ts

from gptoss_jax.config import Config
from gptoss_jax.config.fields import INDEX, Many, Text, Whole, parse, read_json, take
from gptoss_jax.model.params import Params, Spec, abstract_params, is_spec
from gptoss_jax.quoting import quoted
from gptoss_jax.weights import headers, locate

Form = Literal["packed", "stacked"]

CONTEXT = {"file_io_concurrency": {"limit": 128}, "cache_pool#ocdbt": {"total_bytes_limit": 100_000_000}}
"""Of TensorStore, as Orbax makes it."""

VERSION = 1
_HEADER = b"/.zarray"
_LISTED = 20  # of each kind of mismatch
_SUM = Whole(0, (1 << 32) - 1)
_INDEX = {
    "version": Whole(VERSION, VERSION),
    "experts": Text(get_args(Form)),
    "dtype": Text(("bfloat16", "float32")),
    "intermediate_size": Whole(1, 1 << 20),
    "expert_hidden": Whole(1, 1 << 20),
    "files": Many(Whole(0, 1 << 60), "sizes of files", most=1_000_000, named=True),
    "checksums": Many(Many(_SUM, "checksums", most=1_000_000), "lists of checksums", most=100_000, named=True, default={}),
    "file_checksums": Many(_SUM, "checksums", most=1_000_000, named=True, default={}),
}
_ARRAY = {  # of zarr's headers
    "shape": Many(Whole(0, 1 << 40), "sizes", most=16),
    "chunks": Many(Whole(1, 1 << 40), "sizes", most=16),
    "dtype": Text(("bfloat16", "<f4", "|u1")),
    "order": Text(("C",)),
    "dimension_separator": Text((".",), default="."),
}


@dataclasses.dataclass(frozen=True)
class Index:
    """params/index.json.

    Attributes:
        experts: how they are stored.
        dtype: of everything but packed experts and what is always float32.
        intermediate_size: the experts' hidden width by config.json.
        expert_hidden: the same as stored, more where a mesh had widened it with zeros.
        files: the size of every other file under params/, by its path there.
        checksums: CRC-32 of the chunks of each array, in the order of their grid, by names in `Params`; older directories have none.
        file_checksums: the same of small files under params/, which hold more than chunks.
    """

    experts: Form
    dtype: str
    intermediate_size: int
    expert_hidden: int
    files: dict[str, int]
    checksums: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    file_checksums: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Stored:
    """What the headers of an Orbax checkpoint say of one array.

    Attributes:
        name: as in `Params`: "embedding", "layers.3.attention.norm", "layers.3.moe.down.blocks".
        piece: the directory of the Orbax checkpoint that holds it.
        key: its name there.
        chunks: sizes of what it is cut into; the last of an axis may reach beyond the array.
    """

    name: str
    piece: Path
    key: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def grid(self) -> tuple[int, ...]:
        """How many chunks it has along every axis."""
        return tuple(-(-size // chunk) for size, chunk in zip(self.shape, self.chunks, strict=True))


@dataclasses.dataclass(frozen=True)
class Store:
    """An Orbax directory that has been examined; arrays go by their names in `Params`."""

    directory: Path
    config: Config
    index: Index
    arrays: Mapping[str, Stored]


def split(params: Params) -> dict[str, Any]:
    """The pieces in which a model is stored, by name: of a tree of arrays, of the table, or of anything else."""
    layers = {f"layers.{i}": layer for i, layer in enumerate(params.layers)}
    return {"embedding": {"embedding": params.embedding}, **layers, "final": {"norm": params.norm, "unembedding": params.unembedding}}


def table(config: Config, dtype: str, experts: Form, expert_hidden: int) -> dict[str, Spec]:
    """What is stored, by its name in `Params`, where experts are held so wide."""
    named = {}
    for piece, tree in split(abstract_params(config, dtype, experts)).items():
        for key, spec in named_leaves(tree):
            sizes = zip(spec.shape, spec.axes, strict=True)
            shape = tuple(n * expert_hidden // config.intermediate_size if axis == "expert_hidden" else n for n, axis in sizes)
            named[name_of(piece, key)] = dataclasses.replace(spec, shape=shape)
    return named


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] = is_spec) -> list[tuple[str, Any]]:
    """The arrays of a piece by the names that Orbax gives them: "moe.down.blocks"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def name_of(piece: str, key: str) -> str:
    """The name in `Params` of an array of a piece."""
    return f"{piece}.{key}" if piece.startswith("layers.") else key


def read_index(directory: Path) -> Index:
    """What an Orbax directory says of itself, all of whose files are there and of their sizes.

    Raises:
        ValueError: it is a part of one, damaged, or of another program.
    """
    params = directory / "params"
    if not (params / locate.INDEX).is_file():
        raise ValueError(
            f"{directory} must be a whole Orbax directory; its params/{locate.INDEX}, which is written last, is absent: a conversion was "
            "stopped, or files were lost; convert or copy it again."
        )
    path = params / locate.INDEX
    values = read_json(path, INDEX)
    if not isinstance(values, dict) or values.get("version") != VERSION:
        raise ValueError(f"{path} must be of version {VERSION}; it is not; convert the checkpoint again.")
    values = take(values, _INDEX, path)
    if missing := [name for name, value in values.items() if value is None]:
        raise ValueError(f"{path} must have {', '.join(missing)}; absent; convert the checkpoint again.")
    index = Index(**{field.name: values[field.name] for field in dataclasses.fields(Index)})
    for name in index.files:
        headers.inside(params, name, path)
    wrong = [name for name, size in index.files.items() if not (params / name).is_file() or (params / name).stat().st_size != size]
    if wrong:
        raise ValueError(
            f"by {path}, the files under {params} must be as they were written; absent or cut off: {listing(wrong)}; copy them again."
        )
    return index


def scan(pieces: Path | Iterable[Path]) -> dict[str, Stored]:
    """Every array of an Orbax directory by its name in `Params`, or of some of its pieces, from headers, which are read all at once.

    Raises:
        ValueError: a piece is not whole.
    """
    if isinstance(pieces, Path):
        pieces = sorted(path for path in (pieces / "params").iterdir() if path.is_dir())
    context = ts.Context(CONTEXT)
    opening = {piece: ts.KvStore.open(kvstore(piece), context=context) for piece in pieces}
    stores = {piece: _result(piece, future) for piece, future in opening.items()}
    listing = {piece: each.list() for piece, each in stores.items()}
    heads = [(piece, name) for piece, future in listing.items() for name in _result(piece, future) if name.endswith(_HEADER)]
    found = {}
    for (piece, head), future in zip(heads, [stores[piece].read(name) for piece, name in heads], strict=True):
        stored = _stored(piece, head.removesuffix(_HEADER).decode(errors="replace"), _result(piece, future).value)
        found[stored.name] = stored
    return found


def _stored(piece: Path, key: str, header: bytes) -> Stored:
    name = name_of(piece.name, key)
    where = f"the header of {quoted(name)} in {piece}"
    values = parse(header, where)
    found = take(values, _ARRAY, where)
    if None in found.values() or len(found["chunks"]) != len(found["shape"]) or values.get("compressor") or values.get("filters"):
        raise ValueError(f"{where} must be of an array that is not compressed, with shape and chunks; it is not; convert it again.")
    return Stored(name, piece, key, tuple(found["shape"]), tuple(found["chunks"]), np.dtype(found["dtype"]))


def kvstore(piece: Path, key: str = "") -> dict[str, Any]:
    """What TensorStore calls the place of a piece, or of an array in it."""
    base = {"driver": "file", "path": f"{piece}/"}
    return {"driver": "ocdbt", "base": base, "path": key and f"{key}/", "cache_pool": "cache_pool#ocdbt"}


def _result(piece: Path, future: ts.Future) -> Any:
    try:
        return future.result()
    except Exception as error:  # TensorStore's have no type of their own
        raise ValueError(f"{piece} must be a whole Orbax checkpoint; got: {first_line(error)}; convert or copy it again.") from error


def examine(directory: Path, config: Config) -> Store:
    """An Orbax directory that holds the arrays that its config.json asks for. Reads none of them.

    Raises:
        ValueError: a part is missing or cut off, or not what config.json says: one error lists every difference.
    """
    index = read_index(directory)
    if index.intermediate_size != config.intermediate_size or index.expert_hidden < config.intermediate_size:
        raise ValueError(
            f"{directory} holds experts of hidden width {index.intermediate_size} by its params/{locate.INDEX}, and its config.json says "
            f"{config.intermediate_size}; put back its own config.json."
        )
    found = scan(directory)
    wanted = table(config, index.dtype, index.experts, index.expert_hidden)
    differing = [
        f"{name} (is {found[name].dtype} {list(found[name].shape)}, must be {spec.dtype} {list(spec.shape)})"
        for name, spec in wanted.items()
        if name in found and (found[name].shape, found[name].dtype) != (spec.shape, spec.dtype)
    ]
    kinds = [("missing", wanted.keys() - found.keys()), ("surplus", found.keys() - wanted.keys()), ("not as they must be", differing)]
    problems = "; ".join(f"{len(names)} {kind}: {listing(names)}" for kind, names in kinds if names)
    if problems:
        raise ValueError(
            f"the arrays in {directory} must be those that its config.json and params/{locate.INDEX} describe; {problems}; convert the "
            "checkpoint again, or correct its config.json."
        )
    wrong = [name for name, sums in index.checksums.items() if name not in found or len(sums) != math.prod(found[name].grid)]
    if wrong:
        path = directory / "params" / locate.INDEX
        raise ValueError(f"{path} must hold a checksum of every chunk of its arrays; it does not for {listing(wrong)}; copy it again.")
    return Store(directory, config, index, found)


def first_line(error: BaseException) -> str:
    """Of what an error says, enough for a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".;: ")


def listing(names: Iterable[str]) -> str:
    """Names for a sentence."""
    names = sorted(names)
    return ", ".join(quoted(name)[1:-1] for name in names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
