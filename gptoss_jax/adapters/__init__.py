"""Low-rank adapters (LoRA) on attention and experts: made, read and written as PEFT does, kept beside the weights or merged into them.

An adapter is a dictionary {"layers.3.q_proj": Factors}: a pytree of floating-point arrays and nothing else, so that `jax.grad` and any
optimizer take it as it is, while the weights, MXFP4 among them, stay as they are.

    adapter = adapters.init(key, model.config, rank=8)
    grads = jax.grad(lambda adapter: loss(adapters.attach(model.params, model.config, adapter)))(adapter)

An LLM that lives has several side by side: `LLM.attach`.

Source: LoRA (arXiv:2106.09685), rank stabilised scaling (arXiv:2312.03732), PEFT's files of version 0.17 and later.
"""

from gptoss_jax.adapters.attaching import attach, merge
from gptoss_jax.adapters.factors import TARGETS, Adapter, Factors, init
from gptoss_jax.adapters.files import load, save
from gptoss_jax.adapters.fitting import fitted, room_for

__all__ = ["TARGETS", "Adapter", "Factors", "attach", "fitted", "init", "load", "merge", "room_for", "save"]
