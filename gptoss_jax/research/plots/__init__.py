"""Plots of what lenses, patches and log-probabilities say, for notebooks. Host arrays and token ids in, a Matplotlib Axes or HTML out.

Matplotlib is imported when something is drawn: the package does not need it (extra `notebooks`).
"""

from gptoss_jax.research.plots.heat import (
    plot_attention,
    plot_expert_load,
    plot_logit_lens,
    plot_patching,
    plot_sink_mass,
    plot_token_experts,
)
from gptoss_jax.research.plots.strip import TokenStrip, token_strip
from gptoss_jax.research.plots.texts import token_texts

__all__ = [
    "TokenStrip",
    "plot_attention",
    "plot_expert_load",
    "plot_logit_lens",
    "plot_patching",
    "plot_sink_mass",
    "plot_token_experts",
    "token_strip",
    "token_texts",
]
