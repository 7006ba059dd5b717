"""One pass through the small model, plain and with every site on record: what tests of hooks compare with."""

import functools

import jax
import numpy as np
from small_model import small_model

from gptoss_jax.model.hooks import capture
from gptoss_jax.model.sites import IN_LAYER
from gptoss_jax.model.transformer import forward

T = 24
TOKENS = np.random.default_rng(0).integers(0, 320, (3, T), np.int32)
ON_REQUEST = [f"layers.*.{name}" for name, site in IN_LAYER.items() if site.on_request]
ALL = ["*", *ON_REQUEST]


@functools.cache
def seen():
    """Logits and every site of one pass, on request too."""
    model = small_model()
    return jax.jit(capture(forward, ALL), static_argnames="config")(model.params, model.config, TOKENS)


@functools.cache
def plain():
    model = small_model()
    return jax.jit(forward, static_argnames="config")(model.params, model.config, TOKENS)
