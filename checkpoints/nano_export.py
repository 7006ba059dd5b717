"""Trained parameters to a checkpoint in the published Hugging Face layout: experts packed in MXFP4, the rest bfloat16."""

import json
import os
from pathlib import Path
import shutil

from checkpoints import writer
from gptoss_jax.config import Config
from gptoss_jax.config.fields import read_json
from gptoss_jax.model.params import Params
from gptoss_jax.tokenizer import SentencePiece
from pallas_kernels.mxfp4 import quantize


def write(folder: str | os.PathLike, params: Params, config: Config, vocabulary: str) -> None:
    """Writes config.json, model.safetensors and tokenizer.model, a copy of `vocabulary`, over what the folder holds of them.

    Args:
      folder: made if need be.
      params: float32, with stacked experts.
      config: their geometry.
      vocabulary: path of a SentencePiece model.
    """
    folder = Path(folder)
    for old in folder.glob("*.safetensors"):
        old.unlink()
    writer.write(folder, config, params.replace(layers=tuple(map(_packed, params.layers))))
    # transformers takes 199,999 for padding where a config.json names none, which is outside a small vocabulary
    padding = {"pad_token_id": SentencePiece(vocabulary).special["<|endoftext|>"]}
    description = folder / "config.json"
    description.write_text(json.dumps(read_json(description) | padding, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(vocabulary, folder / "tokenizer.model")


def _packed(layer):
    return layer.replace(moe=layer.moe.replace(gate_up=quantize(layer.moe.gate_up), down=quantize(layer.moe.down)))
