"""The tiny checkpoint cut to its first two layers, one sliding and one full: half of what there is to compile."""

import dataclasses
import functools
from pathlib import Path

import gptoss_jax as gj

LAYERS = 2
DIRECTORY = Path(__file__).parents[1] / "data" / "tiny"


@functools.cache
def small_model(dtype: str = "float32", experts: str = "stacked") -> gj.Model:
    model = gj.load(DIRECTORY, dtype=dtype, experts=experts, progress=False)
    config = dataclasses.replace(model.config, num_hidden_layers=LAYERS, layer_types=model.config.layer_types[:LAYERS])
    return gj.Model(config, model.params.replace(layers=model.params.layers[:LAYERS]), None)
