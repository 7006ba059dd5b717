"""Activation patching over a grid: where a run on one prompt is decided, by putting values of another one into it, place by place.

    metric = logit_difference(right, wrong)
    effects = grid(params, config, clean, corrupt, metric, "residual_post")
    effects.normalised      # [layers, positions]: 0 as in the corrupt run, 1 as in the clean one
    estimate(params, config, clean, corrupt, metric, "residual_post")       # the same from one backward pass

Many cells are one call of one compiled program, whichever they are. Values before the first token in which two prompts differ are the same
in both: they are left as they are, and a cell of such alone is exactly the run without a patch.

Source: activation patching, denoising and noising (arXiv:2404.15255), attribution patching (arXiv:2310.10348).
"""

from gptoss_jax.research.patching.effects import Effects
from gptoss_jax.research.patching.metrics import Metric, log_probability, logit_difference
from gptoss_jax.research.patching.running import estimate, grid

__all__ = ["Effects", "Metric", "estimate", "grid", "log_probability", "logit_difference"]
