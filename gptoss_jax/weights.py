"""From a checkpoint directory to a `Model`: parameters on the device, tensor by tensor, exact.

Everything that can be wrong with a checkpoint is found from its headers, before memory is spent. Then each array of
`Params` is read, joined and placed before the next is read, so that the host never holds much more than one of them.
"""

from collections.abc import Iterable
import dataclasses
import math
import os
from pathlib import Path
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gptoss_jax import layouts, locate, shards, tokenizer
from gptoss_jax.config import Config, read_json
from gptoss_jax.model.params import ExpertsForm, Params, abstract_params, is_spec, param_bytes
from pallas_kernels import dispatch, mxfp4
from pallas_kernels.mxfp4 import Mxfp4
from pallas_kernels.mxfp4.tiles import LARGEST_SCALE, TILE, Tiles, fits, to_tiles

_O200K_SIZE = 201_088  # a model with fewer ids and no tokenizer of its own takes and gives token ids only
_LISTED = 20  # of each kind of mismatch


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A loaded checkpoint.

    Attributes:
        config: the geometry.
        params: the weights, on the default device.
        tokenizer: its vocabulary, or None if the checkpoint has none (random checkpoints): use token ids.
    """

    config: Config
    params: Params
    tokenizer: tokenizer.Tokenizer | None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer, by config.json and generation_config.json."""
        return self.config.eos_token_ids

    def __repr__(self) -> str:
        c, experts = self.config, self.params.layers[0].moe.gate_up
        form = {Mxfp4: "packed", Tiles: "tiled", tuple: "split"}.get(type(experts), "stacked")
        table = abstract_params(c, experts="stacked")
        values = sum(math.prod(spec.shape) for spec in jax.tree.leaves(table, is_leaf=is_spec))
        nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))
        return (
            f"Model({_short(values)} weights, {_short(nbytes)}B: {c.num_hidden_layers} layers of width {c.hidden_size}, "
            f"{c.num_local_experts} experts {form}, {self.params.embedding.dtype}, "
            f"{type(self.tokenizer).__name__ if self.tokenizer else 'no tokenizer'}, {c.vocab_size:,} ids)"
        )


def load(
    path: str | os.PathLike,
    *,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    experts: Literal["auto"] | ExpertsForm = "auto",
    progress: bool = True,
) -> Model:
    """The model of a checkpoint directory, its parameters on JAX's default device.

    Reads the Hugging Face layout (sharded or not; MXFP4 experts, or bf16, f16 or f32 as fine-tunes are saved) and OpenAI's
    original/. Host memory on top of the parameters stays under the largest tensor plus 1 GB.

    Args:
        path: a directory; "nano", the bundled checkpoint; or a name on the Hugging Face hub, such as "openai/gpt-oss-20b".
        dtype: of everything but packed experts, norms, biases, sinks and the router (the last four are always float32).
        experts: "packed" keeps MXFP4 as published. "tiled" keeps the same bits in the order that the Hopper kernels read. "stacked" and
            "split" expand it once to dtype, which is exact and takes four or eight times the memory: one array per matrix, or one per
            expert, which XLA's CPU backend multiplies faster. "auto" is "packed"; "tiled" on a Hopper GPU where the kernels cover the
            sizes and dtype; "split" on a CPU if that fits half of the available memory.
        progress: show a bar of bytes on stderr.

    Raises:
        FileNotFoundError: there is no such checkpoint, or a part of it is absent.
        ValueError: it is damaged, not gpt-oss, or does not fit its config.json; or an argument is none of the above.
    """
    if dtype not in ("bfloat16", "float32"):
        raise ValueError(f"dtype must be 'bfloat16' or 'float32'; got {dtype!r}; use one of these.")
    if experts not in ("auto", *get_args(ExpertsForm)):
        raise ValueError(f"experts must be one of 'auto', {', '.join(map(repr, get_args(ExpertsForm)))}; got {experts!r}.")
    directory = locate.checkpoint(path)
    config = _config(directory)
    stored = shards.scan(directory)
    layout = layouts.detect(stored)
    sources = layouts.sources(config, layout)
    _check(layouts.tensors(sources), stored, directory)
    form = _form(experts, layout, config, dtype)
    vocabulary = _tokenizer(directory, config)

    total = sum(tensor.nbytes for tensor in stored.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"loading {directory.name}", disable=not progress) as bar:

        def place(source: layouts.Source, spec):
            array = _place_experts(source, stored, spec, form, dtype) if source.is_experts else _place(source, stored, spec)
            jax.block_until_ready(array)
            bar.update(sum(stored[tensor.name].nbytes for tensor in source.tensors))
            return array

        params = jax.tree.map(place, sources, abstract_params(config, dtype, form))
    return Model(config, params, vocabulary)


def _config(directory: Path) -> Config:
    """config.json, and generation_config.json's further ids that end an answer."""
    config = Config.from_json(directory / "config.json")
    generation = directory / "generation_config.json"
    more = read_json(generation) if generation.is_file() else {}
    more = more.get("eos_token_id") if isinstance(more, dict) else None
    more = [] if more is None else more if isinstance(more, list) else [more]
    return dataclasses.replace(config, eos_token_ids=tuple(dict.fromkeys([*config.eos_token_ids, *more])))


def _tokenizer(directory: Path, config: Config) -> tokenizer.Tokenizer | None:
    homes = [directory, directory.parent] if directory.name == "original" else [directory]
    for home in homes:
        if (home / "tokenizer.model").is_file():
            return tokenizer.load(home, config)
    return tokenizer.load(directory, config) if config.vocab_size >= _O200K_SIZE else None


def _form(experts: str, layout: layouts.Layout, config: Config, dtype: str) -> ExpertsForm:
    """How to hold the experts."""
    bf16 = layout == "huggingface-bf16"
    if experts in ("packed", "tiled") and bf16:
        raise ValueError(
            f"experts={experts!r} keeps published MXFP4 blocks, and this checkpoint holds expanded experts, which MXFP4 cannot hold "
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
    if not bf16 and tiles and dtype == "bfloat16" and dispatch.for_hopper():
        return "tiled"
    if jax.default_backend() == "cpu" and (bf16 or param_bytes(config, dtype, "split") < _available_memory() / 2):
        return "split"
    return "stacked" if bf16 else "packed"


def _available_memory() -> int:
    """Bytes that this machine can still give out; 0 where it does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:  # not Linux: all of it, of which half is asked for at most
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def _place(source: layouts.Source, stored: dict[str, shards.Stored], spec) -> jax.Array:
    return jax.device_put(source.join([shards.read(stored[tensor.name], spec.dtype) for tensor in source.tensors]))


def _place_experts(source: layouts.Source, stored: dict[str, shards.Stored], spec, form: ExpertsForm, dtype: str):
    """One expert matrix: Mxfp4, Tiles, [E, out, in], or a tuple of [out, in]."""
    parts = [stored[tensor.name] for tensor in source.tensors]
    if source.transposed:
        kind = jnp.dtype(dtype)
        each = [_transpose(shards.read(parts[0], kind, expert)) for expert in range(parts[0].shape[0])]
        return tuple(each) if form == "split" else jnp.stack(each)
    packed = Mxfp4(*(jax.device_put(shards.read(part, np.uint8)) for part in parts))
    if form == "packed":
        return packed
    if form == "tiled":
        if not fits(packed):
            raise ValueError(
                f"{parts[-1].name} has scales above 2^{LARGEST_SCALE - 127}, which the kernels do not take; pass experts='packed'."
            )
        return _tile(packed, spec.interleaved)
    if form == "stacked":
        return _unpack(packed, dtype)
    return tuple(_unpack_one(packed, expert, dtype) for expert in range(packed.shape[0]))


_transpose = jax.jit(jnp.transpose)
_unpack = jax.jit(mxfp4.unpack, static_argnames="dtype")


@jax.jit(static_argnames="interleaved")
def _tile(packed: Mxfp4, interleaved: int) -> Tiles:
    return jax.lax.map(lambda expert: to_tiles(expert, interleaved), packed)  # one by one: what lies between takes 8 bytes a weight


@jax.jit(static_argnames="dtype")
def _unpack_one(packed: Mxfp4, expert: jax.Array, dtype: str) -> jax.Array:
    return mxfp4.unpack(packed[expert], dtype)


def _check(wanted: dict[str, layouts.Tensor], stored: dict[str, shards.Stored], directory: Path) -> None:
    """Raises one ValueError that lists every difference between what config.json asks for and what the headers hold."""
    shapes, dtypes = [], []
    for name in wanted.keys() & stored.keys():
        tensor, got = wanted[name], stored[name]
        allowed = ["U8"] if tensor.packed else list(shards.FLOATS)
        if got.dtype not in allowed:
            dtypes.append(f"{name} (is {got.dtype}, must be {' or '.join(allowed)})")
        if got.shape != tensor.shape:
            shapes.append(f"{name} (is {list(got.shape)}, must be {list(tensor.shape)})")
    kinds = [
        ("missing", wanted.keys() - stored.keys()),
        ("surplus", stored.keys() - wanted.keys()),
        ("of the wrong shape", shapes),
        ("of the wrong dtype", dtypes),
    ]
    problems = "; ".join(f"{len(names)} {kind}: {_listing(names)}" for kind, names in kinds if names)
    if problems:
        raise ValueError(
            f"the tensors in {directory} must be those that its config.json describes; {problems}; "
            "download the checkpoint again, or correct its config.json."
        )


def _listing(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _short(number: float) -> str:
    """13761264768 -> "13.8 G"."""
    for unit in ("", "k", "M"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} G"
