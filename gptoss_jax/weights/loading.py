"""From a checkpoint directory to a `Model`: parameters on the device, or on a mesh of them, piece by piece, exact.

Everything that can be wrong with a checkpoint is found from its headers, before memory is spent, and so is whether the
processes of a mesh hold the same one. Then each array of `Params` is placed (`gptoss_jax.weights.placing`) before the next is read, so
that the host never holds much more than a piece of one.
"""

from collections.abc import Mapping
import dataclasses
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import jax
import numpy as np

from gptoss_jax import tokenizer
from gptoss_jax.bars import Bar
from gptoss_jax.config import Config, published
from gptoss_jax.config.fields import read_json
from gptoss_jax.model.params import ExpertsForm, Params, abstract_params, form_of, is_spec, param_bytes
from gptoss_jax.parallel import memory, processes, sharding
from gptoss_jax.parallel.sharding import Partition
from gptoss_jax.quoting import quoted
from gptoss_jax.weights import layouts, locate, matching, placing, safetensors, trusted
from gptoss_jax.weights.trusted import Kernels
from gptoss_jax.weights.watching import AUTO_BYTES, Watch
from pallas_kernels import dispatch
from pallas_kernels.mxfp4.tiles import TILE

if TYPE_CHECKING:
    from gptoss_jax.weights.orbax import store

_O200K_SIZE = 201_088  # a model with fewer ids and no tokenizer of its own takes and gives token ids only


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A loaded checkpoint.

    Attributes:
        config: the geometry.
        params: the weights, on one device, or on a mesh as `params.partition` says. What is computed with them runs there.
        tokenizer: its vocabulary, or None if the checkpoint has none (random checkpoints): use token ids.
    """

    config: Config
    params: Params
    tokenizer: tokenizer.Tokenizer | None

    def __post_init__(self):
        for name, value, kind in (("config", self.config, Config), ("params", self.params, Params)):
            if not isinstance(value, kind):
                raise ValueError(f"{name} of a model must be its {kind.__name__}; got a {type(value).__name__}; load one with load.")

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer, by config.json and generation_config.json."""
        return self.config.eos_token_ids

    def __repr__(self) -> str:
        c = self.config
        table = abstract_params(c, experts="stacked")
        values = sum(math.prod(spec.shape) for spec in jax.tree.leaves(table, is_leaf=is_spec))
        nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))
        partition = self.params.partition
        return (
            f"Model({_short(values)} weights, {_short(nbytes)}B: {c.num_hidden_layers} layers of width {c.hidden_size}, "
            f"{c.num_local_experts} experts {form_of(self.params)}, {self.params.embedding.dtype}, "
            f"{type(self.tokenizer).__name__ if self.tokenizer else 'no tokenizer'}, {c.vocab_size:,} ids"
            f"{f', on {_mesh(partition)} {partition.mesh.devices.flat[0].platform} devices' if partition else ''}"
            f"{f', without the kernels {', '.join(self.params.without)}' if self.params.without else ''})"
        )


def load(
    path: str | os.PathLike,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    experts: Literal["auto"] | ExpertsForm = "auto",
    check: Literal["auto", "finite"] | None = "auto",
    verify: bool = True,
    kernels: Kernels = "auto",
    progress: bool = True,
) -> Model:
    """The model of a checkpoint directory, its parameters on JAX's default device (see `jax.default_device`) or spread over a mesh.

    Reads the Hugging Face layout (sharded or not; MXFP4 experts, or bf16, f16 or f32 as fine-tunes are saved), OpenAI's original/,
    and Orbax directories that `save` has written. On a mesh each process reads what its own devices hold, and that once. Host memory
    on top of parameters that lie in it stays under the largest tensor (of an Orbax directory: layer) plus 1 GB; for devices with
    memory of their own, under the largest piece plus 1 GB.

    Args:
        path: a directory; "nano", the bundled checkpoint; or a name on the Hugging Face hub, such as "openai/gpt-oss-20b".
        mesh: of `gptoss_jax.mesh`; None for one device. Where several processes share one, each must call this, with the same arguments
            and the same files.
        dtype: of everything but packed experts, norms, biases, sinks and the router (the last four are always float32).
        experts: "packed" keeps MXFP4 as published. "tiled" keeps the same bits in the order that the Hopper kernels read. "stacked" and
            "split" expand it once to dtype, which is exact and takes four or eight times the memory: one array per matrix, or one per
            expert, which XLA's CPU backend multiplies faster. "auto" is "packed"; "tiled" on a Hopper GPU where the kernels cover the
            sizes and dtype, and those of decoding are not left out; "split" on a CPU if that fits half of the available memory.
        check: "finite" looks at every value as it passes, and refuses NaN and infinity (of MXFP4 a scale of 0xFF) by the tensor's name;
            None does not. "auto" is "finite" for a checkpoint of less than 1 GB, and None for a larger one.
        verify: compare what an Orbax directory holds with the checksums that `save` wrote. Older ones have none, published files neither.
        kernels: on a Hopper GPU: "auto" runs those that passed `python -m pallas_kernels.check` there, which is done now, once, where
            nobody has (a minute or two), and XLA's forms in place of the others, with one warning; "on" runs all, unchecked; "off" none.
            On other devices XLA's forms run, and "on" is refused. It is the model's own: others in the process keep theirs.
        progress: show a bar of the bytes that this process reads on stderr.

    Raises:
        FileNotFoundError: there is no such checkpoint, or a part of it is absent.
        ValueError: it is damaged, not gpt-oss, or does not fit its config.json; a value is refused (`check`, `verify`); the mesh cannot
            divide it; processes hold different ones; or an argument is none of the above.
    """
    sharding.check_mesh(mesh)
    _check_arguments(dtype, experts, check, verify=verify, progress=progress)
    trusted.check_argument(kernels)
    alone = mesh is None or not mesh.is_multi_process
    with processes.together(f"load {path}", "config", "tensors", "arguments", alone=alone) as same:
        directory = locate.checkpoint(path)
        config = _config(directory)
        partition = sharding.partition(mesh, config)
        found = _examine(directory, config)
        without = trusted.left_out(kernels, config, dtype, partition)
        form = _form(experts, found.layout, config, dtype, partition, without)
        vocabulary = _tokenizer(directory, config)
        same["config"] = repr(config)
        same["tensors"] = repr(sorted((stored.name, stored.shape, str(stored.dtype)) for stored in found.stored.values()))
        devices = mesh and (mesh.shape, [device.id for device in mesh.devices.flat])
        same["arguments"] = repr((dtype, experts, check, verify, kernels, devices))
    if not alone:
        form, without = _agreed(form, without)
    small = sum(stored.nbytes for stored in found.stored.values()) < AUTO_BYTES
    watch = Watch(finite=check == "finite" or (check == "auto" and small), verify=verify, keep=not alone)
    with processes.together(f"read {path}", alone=alone):
        if found.orbax:
            from gptoss_jax.weights.orbax import restoring

            params = restoring.restore(found.orbax, dtype, form, partition, progress, watch)
        else:
            table = abstract_params(config, dtype, form, partition)
            params = _read(directory, layouts.sources(config, found.layout), found.stored, table, progress, watch)
        watch.end()
    return Model(config, _staying(params).replace(without=without), vocabulary)


def _staying(params: Params) -> Params:
    """Parameters that stay where they have been placed, whatever JAX's default device is later. Nothing is copied."""
    return params if params.partition is not None else jax.device_put(params, sharding.default_device())


def _agreed(form: ExpertsForm, without: tuple[str, ...]) -> tuple[ExpertsForm, tuple[str, ...]]:
    """One form for all processes, which may have measured different memory; what any leaves out, each having checked its own GPU."""
    somewhere = processes.anywhere(np.array([name in without for name in dispatch.KERNELS]))
    form = get_args(ExpertsForm)[int(processes.broadcast(np.int32(get_args(ExpertsForm).index(form))))]
    return form, tuple(name for name, bad in zip(dispatch.KERNELS, somewhere, strict=True) if bad)


def _check_arguments(dtype: str, experts: str, check: str | None, **flags: bool) -> None:
    if not isinstance(dtype, str | np.dtype) or dtype not in ("bfloat16", "float32"):
        raise ValueError(f"dtype must be 'bfloat16' or 'float32'; got {quoted(dtype)}; use one of these.")
    if not isinstance(experts, str) or experts not in ("auto", *get_args(ExpertsForm)):
        raise ValueError(f"experts must be one of 'auto', {', '.join(map(repr, get_args(ExpertsForm)))}; got {quoted(experts)}.")
    if not isinstance(check, str | None) or check not in ("auto", "finite", None):
        raise ValueError(f"check must be 'auto', 'finite' or None; got {quoted(check)}; use one of these.")
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False; got {quoted(value)}; pass one of them.")


def save(model: Model, directory: str | os.PathLike) -> None:
    """Writes a model as an Orbax directory (OCDBT), which `load` restores on one device or on any mesh, in parallel.

    The values are kept exactly as they are held: packed experts stay packed, tiles become packed again, split experts are stacked.
    The directory appears when it is whole; what a killed process leaves is named like it, with .partial- and eight digits behind.
    Where several processes share the model's mesh, each must call this, with the same path on a file system that they share.

    Args:
        model: as `load` returns it, or with other params of the same shapes.
        directory: what to make; there must be nothing of that name, or an empty directory.

    Raises:
        ValueError: there is something, or the parameters are not those of the model's config.
        OSError: it could not be written, as where the disk is full; nothing is left of it.
    """
    from gptoss_jax.weights.orbax import saving

    if not isinstance(model, Model):
        raise ValueError(f"model must be a Model, as load returns it; got a {type(model).__name__}; pass gptoss_jax.Model(...).")
    own = isinstance(model.tokenizer, tokenizer.SentencePiece)
    saving.save(directory, model.config, model.params, {"tokenizer.model": model.tokenizer.serialized()} if own else None)


@dataclasses.dataclass(frozen=True)
class _Found:
    """What a directory holds, by headers.

    Attributes:
        layout: of published tensors, or the one whose experts are held like those of an Orbax directory.
        stored: every tensor or array by its name.
        orbax: the Orbax directory, if it is one.
    """

    layout: layouts.Layout
    stored: Mapping[str, "safetensors.Stored | store.Stored"]
    orbax: "store.Store | None" = None


def _examine(directory: Path, config: Config) -> _Found:
    """What a directory holds; raises ValueError where that is not what config.json asks for."""
    if locate.is_store(directory):
        from gptoss_jax.weights.orbax import store

        orbax = store.examine(directory, config)
        return _Found("huggingface" if orbax.index.experts == "packed" else "huggingface-bf16", orbax.arrays, orbax)
    stored = safetensors.scan(directory)
    layout = layouts.detect(stored)
    matching.check(layouts.tensors(layouts.sources(config, layout)), stored, directory)
    return _Found(layout, stored)


def _read(directory: Path, sources: Params, stored: dict[str, safetensors.Stored], table: Params, progress: bool, watch: Watch) -> Params:
    """The parameters of a table."""
    partition, table = table.partition, table.replace(partition=None)  # as `sources` are, or they could not be mapped together
    sizes = jax.tree.map(lambda source, entry: placing.nbytes(source, stored, entry, partition), sources, table)
    total = sum(jax.tree.leaves(sizes))
    with Bar(total, shown=progress, unit="B", unit_scale=True, desc=f"loading {directory.name}") as bar:

        def place(source, size, entry):
            array = jax.block_until_ready(placing.place(source, stored, entry, partition, watch))
            bar.update(size)
            return array

        return jax.tree.map(place, sources, sizes, table).replace(partition=partition)


def _config(directory: Path) -> Config:
    """config.json, and generation_config.json's further ids that end an answer."""
    config = Config.from_json(directory / "config.json")
    generation = directory / "generation_config.json"
    more = published.more_eos(read_json(generation), config.vocab_size, generation) if os.path.lexists(generation) else []
    return dataclasses.replace(config, eos_token_ids=tuple(dict.fromkeys([*config.eos_token_ids, *more])))


def _tokenizer(directory: Path, config: Config) -> tokenizer.Tokenizer | None:
    homes = [directory, directory.parent] if directory.name == "original" else [directory]
    for home in homes:
        if os.path.lexists(home / "tokenizer.model"):
            return tokenizer.load(home, config)
    return tokenizer.load(directory, config) if config.vocab_size >= _O200K_SIZE else None


def _form(
    experts: str, layout: layouts.Layout, config: Config, dtype: str, partition: Partition | None, without: tuple[str, ...]
) -> ExpertsForm:
    """How to hold the experts, for programs that do without some kernels."""
    bf16 = layout == "huggingface-bf16"
    if experts in ("packed", "tiled") and bf16:
        raise ValueError(
            f"experts='{experts}' keeps published MXFP4 blocks, and this checkpoint holds expanded experts, which MXFP4 cannot hold "
            "exactly; pass experts='auto', 'stacked' or 'split'."
        )
    tiles = config.hidden_size % TILE == 0 and config.intermediate_size % TILE == 0
    if experts == "tiled" and not tiles:
        raise ValueError(
            f"experts='tiled' needs hidden and intermediate sizes that are multiples of {TILE}; got {config.hidden_size} and "
            f"{config.intermediate_size}; pass experts='packed'."
        )
    if experts != "auto":
        return experts
    own = sharding.device_of(partition).platform
    decoded = {"moe_gate_up", "moe_down"}.isdisjoint(without)  # XLA's forms read packed ones with fewer steps
    if not bf16 and tiles and dtype == "bfloat16" and decoded and trusted.on_hopper(partition):
        return "tiled"
    devices = 1 if partition is None else len(partition.mesh.local_devices)
    if own == "cpu" and (bf16 or devices * param_bytes(config, dtype, "split", partition) < memory.host() / 2):
        return "split"
    return "stacked" if bf16 else "packed"


def _mesh(partition: Partition) -> str:
    """The mesh as its maker named it."""
    return f"data={partition.parts('batch')} x model={partition.parts('vocab')}"


def _short(number: float) -> str:
    """13761264768 -> "13.8 G"."""
    for unit in ("", "k", "M"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} G"
