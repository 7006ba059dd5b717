"""Converts a checkpoint, array by array: python -m checkpoints.convert --checkpoint=gpt-oss-120b --out=120b-orbax

    --to=orbax             what `gptoss_jax.load` reads onto any mesh in parallel; experts stay in MXFP4, or as they are
    --to=huggingface       as published, which transformers loads; bf16 experts are rounded to MXFP4, exactly if they came from it
    --to=huggingface-bf16  experts expanded, as fine-tunes are saved
    --to=original          OpenAI's own layout

From whatever `gptoss_jax.load` loads. What exists is never overwritten, and a conversion that is killed leaves nothing of the name.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import json
from pathlib import Path
import time
from typing import Any, get_args

from absl import app, flags
import jax

from checkpoints import writer
from gptoss_jax.bars import Bar
from gptoss_jax.config import Config
from gptoss_jax.config.fields import read_json
from gptoss_jax.model.params import Params, abstract_params, expert_width, is_spec
from gptoss_jax.parallel import launch, processes, sharding
from gptoss_jax.parallel.sharding import Partition
from gptoss_jax.weights import layouts, locate, matching, placing, safetensors
from gptoss_jax.weights.orbax import restoring, saving, store, whole
from pallas_kernels.mxfp4 import Mxfp4, quantize

TARGETS = ("orbax", *get_args(layouts.Layout))
# What goes with the weights if it lies beside them. Most of it is for transformers.
_COMPANIONS = (
    "generation_config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint that is read array by array.

    Attributes:
        directory: where it lies.
        config: of its config.json.
        experts: how it holds them.
        dtype: which holds what is neither packed nor always float32 as it is stored.
        partition: how arrays shall lie.
        read: makes the arrays of an entry of the table for this partition, of its name in `Params` and the entry.
    """

    directory: Path
    config: Config
    experts: store.Form
    dtype: str
    partition: Partition | None
    read: Callable[[str, Any], Any]


def open_source(path: str, mesh: jax.sharding.Mesh | None = None) -> Source:
    """The checkpoint of that name. Raises as `gptoss_jax.load` does."""
    directory = locate.checkpoint(path)
    config = Config.from_json(directory / "config.json")
    partition = sharding.partition(mesh, config)
    if locate.is_store(directory):
        opened = store.examine(directory, config)
        reader = restoring.Reader(opened, partition)
        read = lambda name, entry: reader.begin(name, entry)()
        return Source(directory, config, opened.index.experts, opened.index.dtype, partition, read)
    stored = safetensors.scan(directory)
    layout = layouts.detect(stored)
    sources = layouts.sources(config, layout)
    matching.check(layouts.tensors(sources), stored, directory)
    named = dict(_named(sources, lambda x: isinstance(x, layouts.Source)))
    read = lambda name, entry: placing.place(named[name], stored, entry, partition)
    wide = {tensor.dtype for tensor in stored.values()} - {"BF16", "U8"}
    experts = "stacked" if layout == "huggingface-bf16" else "packed"
    return Source(directory, config, experts, "float32" if wide else "bfloat16", partition, read)


def arrays(source: Source, experts: store.Form, dtype: str) -> Params:
    """A tree of functions, each of which reads one array or expert matrix in the form asked for."""
    rounded = (source.experts, experts) == ("stacked", "packed")
    table = abstract_params(source.config, dtype, "stacked" if rounded else experts, source.partition)

    def reading(path, entry) -> Callable[[], Any]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if rounded and name.endswith((".gate_up", ".down")):
            return lambda: _round(source.read(name, entry))
        return lambda: source.read(name, entry)

    return jax.tree_util.tree_map_with_path(reading, table, is_leaf=_is_entry)


@jax.jit
def _round(experts: jax.Array) -> Mxfp4:
    return jax.lax.map(quantize, experts)  # one by one: what lies between takes several times as much


def convert(path: str, out: str, to: str = "orbax", *, dtype: str | None = None, mesh: jax.sharding.Mesh | None = None) -> str:
    """Writes the checkpoint `path` to a new directory and says what was written.

    Args:
        path: whatever `gptoss_jax.load` loads.
        out: the new directory.
        to: one of `TARGETS`.
        dtype: "bfloat16" or "float32", of an Orbax directory's unpacked arrays; None for that of the checkpoint. The others are bfloat16.
        mesh: devices over which an Orbax directory is read and written, or None for the host alone.

    Raises:
        FileNotFoundError: there is no such checkpoint, or a part of it is absent.
        ValueError: it is damaged, out exists, or the layout cannot hold it.
    """
    if to != "orbax" and (dtype or mesh):
        raise ValueError(f"dtype and mesh are for Orbax directories; got {to!r}, which is always bfloat16; leave them out.")
    began = time.perf_counter()
    with _on_host() if mesh is None else contextlib.nullcontext():
        source = open_source(path, mesh)
        if to == "orbax":
            _write_orbax(source, out, dtype or source.dtype)
        else:
            _write_published(source, out, to)
    written = (store if to == "orbax" else safetensors).scan(Path(out))
    nbytes = sum(array.nbytes for array in written.values())
    return f"{len(written)} tensors, {nbytes:,} bytes, {time.perf_counter() - began:.1f} s: {out}"


def _on_host() -> contextlib.AbstractContextManager:
    """Arrays that are read lie on the host, where JAX has a backend for it."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS=cuda
        return contextlib.nullcontext()


def _write_orbax(source: Source, out: str, dtype: str) -> None:
    description = _described(source, source.config.to_dict(), packed=source.experts == "packed")
    pieces = store.split(arrays(source, source.experts, dtype))

    def read() -> Iterator[tuple[str, Any]]:
        with Bar(len(pieces), shown=processes.is_first(), desc=f"writing {out}", unit="piece") as bar:
            for name, piece in pieces.items():
                yield name, jax.tree.map(lambda make: make(), piece)
                bar.update()

    width = expert_width(source.config, source.experts, source.partition)
    files = _companions(source) | {"config.json": _json(description)}
    saving.write(out, source.config, read(), experts=source.experts, dtype=dtype, expert_hidden=width, files=files)


def _write_published(source: Source, out: str, layout: layouts.Layout) -> None:
    experts = "stacked" if layout == "huggingface-bf16" else "packed"
    with whole.appearing(out) as partial:
        writer.write(partial, source.config, arrays(source, experts, source.dtype), layout, progress=True)
        if layout != "original":
            description = _described(source, read_json(partial / "config.json"), packed=experts == "packed")
            (partial / "config.json").write_bytes(_json(description))
        for name, data in _companions(source).items():
            (partial / name).write_bytes(data)


def _described(source: Source, description: dict[str, Any], packed: bool) -> dict[str, Any]:
    """config.json, with whatever else that of the source says."""
    values = read_json(source.directory / "config.json")
    if "model_type" not in values:  # OpenAI's has other names for the same
        return description
    kept = {name: value for name, value in values.items() if name not in description or name == "quantization_config"}
    if not packed:
        kept.pop("quantization_config", None)
    return description | kept | {name: "bfloat16" for name in ("dtype", "torch_dtype") if name in kept}


def _companions(source: Source) -> dict[str, bytes]:
    homes = [source.directory, source.directory.parent] if source.directory.name == "original" else [source.directory]
    found = {name: home / name for home in reversed(homes) for name in _COMPANIONS if (home / name).is_file()}
    return {name: path.read_bytes() for name, path in found.items()}


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


def _is_entry(x: Any) -> bool:
    return is_spec(x) or isinstance(x, Mxfp4)


def _named(tree: Any, is_leaf: Callable[[Any], bool]) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]:
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


def define_flags(to: flags.FlagValues) -> None:
    """Adds this program's flags to a set of them."""
    flags.DEFINE_string("checkpoint", None, "Whatever gptoss_jax.load loads.", to, required=True)
    flags.DEFINE_string("out", None, "Directory to write.", to, required=True)
    flags.DEFINE_enum("to", "orbax", TARGETS, "What to write.", to)
    flags.DEFINE_enum("dtype", None, ("bfloat16", "float32"), "Of an Orbax directory's unpacked arrays; as stored if not given.", to)
    launch.define_flags(to)  # an Orbax directory can be read and written over a mesh, by several processes


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        mesh = launch.start(given)
        if processes.is_first():
            for left in whole.stopped(given.out):
                print(f"{left} is what a stopped conversion left, or a running one has so far; delete it if none runs.")
        summary = convert(given.checkpoint, given.out, given.to, dtype=given.dtype, mesh=mesh)
        if processes.is_first():
            print(summary)
    except (OSError, ValueError) as error:
        raise app.UsageError(str(error)) from error


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
