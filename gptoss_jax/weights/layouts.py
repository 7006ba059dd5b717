"""The published layouts of a gpt-oss checkpoint: which stored tensors make up each array of `Params`.

Only names, and how the tensors of one array are joined and split; shapes follow from `abstract_params`. Serves the loader, in
one direction, and whatever writes a checkpoint, in the other. Knows no files and no devices.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.model.params import Params, abstract_params, is_spec
from gptoss_jax.quoting import quoted
from pallas_kernels.mxfp4 import Mxfp4
from pallas_kernels.mxfp4.tiles import Tiles, from_tiles

Layout = Literal["huggingface", "huggingface-bf16", "original"]
"""huggingface: as published, experts in MXFP4. huggingface-bf16: as fine-tunes are saved. original: OpenAI's own, in original/."""

_HUGGING_FACE = {
    "embedding": ("model.embed_tokens.weight",),
    "norm": ("model.norm.weight",),
    "unembedding": ("lm_head.weight",),
    "layers": "model.layers.{}.",
    "attention.norm": ("input_layernorm.weight",),
    "attention.qkv": tuple(f"self_attn.{x}_proj.weight" for x in "qkv"),
    "attention.qkv_bias": tuple(f"self_attn.{x}_proj.bias" for x in "qkv"),
    "attention.sinks": ("self_attn.sinks",),
    "attention.out": ("self_attn.o_proj.weight",),
    "attention.out_bias": ("self_attn.o_proj.bias",),
    "moe.norm": ("post_attention_layernorm.weight",),
    "moe.router": ("mlp.router.weight",),
    "moe.router_bias": ("mlp.router.bias",),
    "moe.gate_up": ("mlp.experts.gate_up_proj_blocks", "mlp.experts.gate_up_proj_scales"),
    "moe.gate_up_bias": ("mlp.experts.gate_up_proj_bias",),
    "moe.down": ("mlp.experts.down_proj_blocks", "mlp.experts.down_proj_scales"),
    "moe.down_bias": ("mlp.experts.down_proj_bias",),
}
_NAMES: dict[Layout, dict[str, str | tuple[str, ...]]] = {
    "huggingface": _HUGGING_FACE,
    "huggingface-bf16": _HUGGING_FACE | {"moe.gate_up": ("mlp.experts.gate_up_proj",), "moe.down": ("mlp.experts.down_proj",)},
    "original": {
        "embedding": ("embedding.weight",),
        "norm": ("norm.scale",),
        "unembedding": ("unembedding.weight",),
        "layers": "block.{}.",
        "attention.norm": ("attn.norm.scale",),
        "attention.qkv": ("attn.qkv.weight",),
        "attention.qkv_bias": ("attn.qkv.bias",),
        "attention.sinks": ("attn.sinks",),
        "attention.out": ("attn.out.weight",),
        "attention.out_bias": ("attn.out.bias",),
        "moe.norm": ("mlp.norm.scale",),
        "moe.router": ("mlp.gate.weight",),
        "moe.router_bias": ("mlp.gate.bias",),
        "moe.gate_up": ("mlp.mlp1_weight.blocks", "mlp.mlp1_weight.scales"),
        "moe.gate_up_bias": ("mlp.mlp1_bias",),
        "moe.down": ("mlp.mlp2_weight.blocks", "mlp.mlp2_weight.scales"),
        "moe.down_bias": ("mlp.mlp2_bias",),
    },
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file, as the layout wants it."""

    name: str
    shape: tuple[int, ...]
    packed: bool  # bytes of MXFP4; otherwise a floating-point number


@dataclass(frozen=True)
class Source:
    """The stored tensors of one array of Params (of one expert matrix, if that is what it is)."""

    tensors: tuple[Tensor, ...]
    heads: tuple[int, int, int] | None = None  # (K, G, H) of a fused query, key and value
    transposed: bool = False  # experts stored [E, in, out]

    @property
    def is_experts(self) -> bool:
        return self.transposed or self.tensors[0].packed

    def cuts(self, index: tuple[slice, ...]) -> list[tuple[Tensor, tuple[slice, ...]]]:
        """The ranges of stored tensors that hold a piece of the array of Params; not for experts.

        Args:
            index: a range of every axis.
        """
        if self.heads is None:
            return [(self.tensors[0], index)]
        K, G, H = self.heads
        heads, _, _, *rest = index
        each = (G * H, H, H)  # rows of a kv head: its queries, its key, its value
        fused = len(self.tensors) == 1  # one after another: all queries, all keys, all values
        tensors = self.tensors * 3 if fused else self.tensors
        before = (0, K * G * H, K * (G + 1) * H) if fused else (0, 0, 0)
        return [
            (tensor, (slice(start + heads.start * rows, start + heads.stop * rows), *rest))
            for tensor, start, rows in zip(tensors, before, each, strict=True)
        ]

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The piece that what was read at `cuts` makes; not for experts."""
        if self.heads is None:
            return parts[0]
        _, G, H = self.heads
        K = len(parts[1]) // H
        return np.concatenate([part.reshape(K, -1, H, *part.shape[1:]) for part in parts], axis=1)  # [K, G+2, H, ...]

    def split(self, array) -> list[np.ndarray]:
        """The inverse: stored tensors of an array of Params, which for experts is an Mxfp4, Tiles or [E, out, in]."""
        if isinstance(array, Tiles):
            array = from_tiles(array)
        if isinstance(array, Mxfp4):
            return [np.asarray(array.blocks), np.asarray(array.scales)]
        array = np.asarray(array)
        if self.transposed:
            return [array.swapaxes(1, 2)]
        if self.heads is None:
            return [array]
        _, G, _ = self.heads
        parts = [part.reshape(-1, *array.shape[3:]) for part in np.split(array, [G, G + 1], axis=1)]
        return parts if len(self.tensors) == 3 else [np.concatenate(parts)]


def detect(names: Iterable[str]) -> Layout:
    """The layout that tensors of these names are in; "huggingface" where they tell nothing."""
    names = list(names)
    if any(name.startswith("block.") or name == "embedding.weight" for name in names):
        return "original"
    return "huggingface-bf16" if any(name.endswith(".mlp.experts.gate_up_proj") for name in names) else "huggingface"


def sources(config: Config, layout: Layout) -> Params:
    """A Params tree whose leaves are `Source`, an expert matrix being one leaf in every layout.

    Raises:
        ValueError: there is no such layout.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout must be one of {', '.join(get_args(Layout))}; got {quoted(layout)}.")
    names = _NAMES[layout]
    form = "stacked" if layout == "huggingface-bf16" else "packed"

    def source(path, spec) -> Source:
        keys = jax.tree_util.keystr(path, simple=True, separator=".").split(".")  # layers.3.attention.norm
        if keys[0] != "layers":
            return _source(names[keys[0]], spec, config)
        prefix, leaf = names["layers"].format(keys[1]), ".".join(keys[2:])
        return _source([prefix + name for name in names[leaf]], spec, config, transposed=form == "stacked" and leaf in _EXPERTS)

    specs = abstract_params(config, experts=form)
    return jax.tree_util.tree_map_with_path(source, specs, is_leaf=lambda x: is_spec(x) or isinstance(x, Mxfp4))


_EXPERTS = ("moe.gate_up", "moe.down")


def _source(names: Sequence[str], spec, config: Config, transposed: bool = False) -> Source:
    if isinstance(spec, Mxfp4):
        shapes = (spec.blocks.shape, spec.scales.shape)
        return Source(tuple(Tensor(name, shape, packed=True) for name, shape in zip(names, shapes, strict=True)))
    if transposed:
        E, out, width = spec.shape
        return Source((Tensor(names[0], (E, width, out), packed=False),), transposed=True)
    if "kv_heads" not in spec.axes:
        return Source((Tensor(names[0], spec.shape, packed=False),))
    K, parts, H, *rest = spec.shape  # [K, G+2, H, ...]
    rows = (K * (parts - 2) * H, K * H, K * H)
    rows = rows if len(names) == 3 else (sum(rows),)
    tensors = tuple(Tensor(name, (n, *rest), packed=False) for name, n in zip(names, rows, strict=True))
    return Source(tensors, heads=(K, parts - 2, H))


def tensors(tree: Params) -> dict[str, Tensor]:
    """Every stored tensor of a tree of sources, by name."""
    return {tensor.name: tensor for source in jax.tree.leaves(tree) for tensor in source.tensors}
