"""Trained parameters to a checkpoint in the published Hugging Face layout: experts packed in MXFP4, the rest bfloat16."""

import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from gptoss_jax.config import Config
from gptoss_jax.model.params import Layer, Params
from gptoss_jax.tokenizer import SentencePiece
from pallas_kernels.mxfp4 import quantize

NOT_PACKED = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]


def tensors(params: Params, config: Config) -> dict[str, np.ndarray]:
    """Every tensor of the published layout by name; params have stacked experts."""
    named = {"model.embed_tokens.weight": params.embedding, "model.norm.weight": params.norm, "lm_head.weight": params.unembedding}
    named = {name: _bfloat16(value) for name, value in named.items()}
    for i, layer in enumerate(params.layers):
        named |= {f"model.layers.{i}.{name}": value for name, value in _layer(layer, config).items()}
    return named


def _layer(layer: Layer, config: Config) -> dict[str, np.ndarray]:
    attention, moe, D, G = layer.attention, layer.moe, config.hidden_size, config.group
    dense = {
        "input_layernorm.weight": attention.norm,
        "post_attention_layernorm.weight": moe.norm,
        "self_attn.q_proj.weight": attention.qkv[:, :G].reshape(-1, D),
        "self_attn.k_proj.weight": attention.qkv[:, G].reshape(-1, D),
        "self_attn.v_proj.weight": attention.qkv[:, G + 1].reshape(-1, D),
        "self_attn.q_proj.bias": attention.qkv_bias[:, :G].reshape(-1),
        "self_attn.k_proj.bias": attention.qkv_bias[:, G].reshape(-1),
        "self_attn.v_proj.bias": attention.qkv_bias[:, G + 1].reshape(-1),
        "self_attn.o_proj.weight": attention.out,
        "self_attn.o_proj.bias": attention.out_bias,
        "self_attn.sinks": attention.sinks,
        "mlp.router.weight": moe.router,
        "mlp.router.bias": moe.router_bias,
        "mlp.experts.gate_up_proj_bias": moe.gate_up_bias,
        "mlp.experts.down_proj_bias": moe.down_bias,
    }
    named = {name: _bfloat16(value) for name, value in dense.items()}
    for name, weights in (("gate_up_proj", moe.gate_up), ("down_proj", moe.down)):
        packed = quantize(weights)
        named |= {f"mlp.experts.{name}_blocks": np.asarray(packed.blocks), f"mlp.experts.{name}_scales": np.asarray(packed.scales)}
    return named


def _bfloat16(value) -> np.ndarray:
    return np.ascontiguousarray(jnp.asarray(value).astype(jnp.bfloat16))


def write(folder: str, params: Params, config: Config, vocabulary: str) -> None:
    """Writes config.json, model.safetensors and tokenizer.model, a copy of `vocabulary`."""
    os.makedirs(folder, exist_ok=True)
    extra = {
        "torch_dtype": "bfloat16",
        "pad_token_id": SentencePiece(vocabulary).special["<|endoftext|>"],
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": NOT_PACKED},
    }
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config.to_dict() | extra, file, indent=2)
        file.write("\n")
    shutil.copyfile(vocabulary, os.path.join(folder, "tokenizer.model"))
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(save(tensors(params, config), metadata={"format": "pt"}))
