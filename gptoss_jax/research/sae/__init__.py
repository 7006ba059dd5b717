"""Sparse autoencoders at a site: what one is, in SAELens' files, and changes for `patch` that go through its features.

    autoencoder = sae.load("my-sae")                                                       # cfg.json, sae_weights.safetensors
    features = sae.encode(autoencoder, values["layers.2.residual_post"])                  # [B, T, d_sae]
    logits = gj.patch(gj.forward, {autoencoder.hook_name: sae.clamp(autoencoder, 17, 0.0)})(params, config, tokens)

Formulas are those of SAELens 6, in float32. Training one is not here: `notebooks/11_features.ipynb` does.
"""

from gptoss_jax.research.sae.autoencoder import SAE as SAE
from gptoss_jax.research.sae.autoencoder import decode as decode
from gptoss_jax.research.sae.autoencoder import encode as encode
from gptoss_jax.research.sae.autoencoder import reconstruct as reconstruct
from gptoss_jax.research.sae.changes import clamp as clamp
from gptoss_jax.research.sae.changes import spliced as spliced
from gptoss_jax.research.sae.changes import steer as steer
from gptoss_jax.research.sae.files import load as load
from gptoss_jax.research.sae.files import save as save

__all__ = ["SAE", "clamp", "decode", "encode", "load", "reconstruct", "save", "spliced", "steer"]
