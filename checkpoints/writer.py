"""Writes a checkpoint in a published layout, shard by shard, through the safetensors library."""

from collections.abc import Iterator
import dataclasses
import json
import math
import os
from pathlib import Path
import shutil
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from gptoss_jax.bars import Bar
from gptoss_jax.config import Config
from gptoss_jax.weights import layouts

SHARD_BYTES = 1 << 30


def write(
    out: str | os.PathLike,
    config: Config,
    params: Any,
    layout: layouts.Layout = "huggingface",
    *,
    max_shard_bytes: int = SHARD_BYTES,
    progress: bool = False,
) -> None:
    """Writes config.json and safetensors files that `gptoss_jax.load` and the reference implementations read.

    Args:
        out: the directory, made if need be; it must not hold a checkpoint yet.
        config: the geometry.
        params: a Params tree of arrays, or of functions without arguments that make one: those are called one by one, so that a
            checkpoint of any size takes the memory of a shard. Expert matrices are an `Mxfp4`, or [E, out, in] for
            "huggingface-bf16". Everything else is stored in bfloat16.
        layout: "huggingface", "huggingface-bf16" or "original".
        max_shard_bytes: of a file, unless one array is larger.
        progress: show a bar of bytes on stderr.

    Raises:
        ValueError: out holds a checkpoint, the layout cannot hold this geometry, or an array has the wrong shape.
    """
    description = _description(config, layout)
    sources, tree = jax.tree.flatten(layouts.sources(config, layout))
    arrays = tree.flatten_up_to(params)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if any(out.glob("*.safetensors")):
        raise ValueError(f"{out} already holds a checkpoint; give another directory, or delete it first.")
    shards = _plan(sources, max_shard_bytes)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))] if len(shards) > 1 else ["model.safetensors"]
    files = {}
    with Bar(sum(map(_nbytes, sources)), shown=progress, unit="B", unit_scale=True, desc=f"writing {out}") as bar:
        for name, members in zip(names, shards, strict=True):
            parts: dict[str, np.ndarray] = {}
            for i in members:
                parts.update(_stored(sources[i], arrays[i]))
                bar.update(_nbytes(sources[i]))
            save_file(parts, out / name, metadata={"format": "pt"})
            files |= dict.fromkeys(parts, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(map(_nbytes, sources))}, "weight_map": files}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    (out / "config.json").write_text(json.dumps(description, indent=1) + "\n")
    for name in names:  # which safetensors made readable to their owner only
        shutil.copymode(out / "config.json", out / name)


def _stored(source: layouts.Source, array) -> Iterator[tuple[str, np.ndarray]]:
    parts = source.split(array() if callable(array) else array)
    for tensor, part in zip(source.tensors, parts, strict=True):
        if part.shape != tensor.shape:
            raise ValueError(f"{tensor.name} must have shape {tensor.shape}; got {part.shape}; make params for this config.")
        yield tensor.name, np.ascontiguousarray(part, np.uint8 if tensor.packed else ml_dtypes.bfloat16)


def _nbytes(source: layouts.Source) -> int:
    return sum(math.prod(tensor.shape) * (1 if tensor.packed else 2) for tensor in source.tensors)


def _plan(sources: list[layouts.Source], max_shard_bytes: int) -> list[list[int]]:
    """Which arrays go into which file: in order, as many as fit."""
    shards: list[list[int]] = []
    room = 0
    for i, source in enumerate(sources):
        if not shards or room < _nbytes(source):
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(i)
        room -= _nbytes(source)
    return shards


def _description(config: Config, layout: layouts.Layout) -> dict[str, Any]:
    """config.json of the layout."""
    if layout == "huggingface":
        kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
        return config.to_dict() | {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": kept}}
    if layout == "huggingface-bf16":
        return config.to_dict() | {"torch_dtype": "bfloat16"}
    description = {
        "num_hidden_layers": config.num_hidden_layers,
        "num_experts": config.num_local_experts,
        "experts_per_token": config.num_experts_per_tok,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "swiglu_limit": config.swiglu_limit,
        "head_dim": config.head_dim,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "sliding_window": config.sliding_window,
        "initial_context_length": config.rope_original_context,
        "rope_theta": config.rope_theta,
        "rope_scaling_factor": config.rope_factor,
        "rope_ntk_alpha": config.rope_beta_slow,
        "rope_ntk_beta": config.rope_beta_fast,
    }
    if dataclasses.replace(Config.from_dict(description), eos_token_ids=config.eos_token_ids) != config:
        raise ValueError(
            "OpenAI's config.json cannot say this geometry (its layers alternate, its context is the original times the RoPE factor, "
            "its epsilon is 1e-5, its swiglu_alpha 1.702); use layout='huggingface'."
        )
    return description
