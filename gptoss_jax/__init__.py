"""gpt-oss in JAX: `load` a published checkpoint, `LLM` to ask it, `forward` to study it."""

from gptoss_jax.config import GPT_OSS_20B, GPT_OSS_120B, TINY, Config
from gptoss_jax.llm import LLM
from gptoss_jax.model.hooks import capture, patch, sites
from gptoss_jax.model.named import select, substitute
from gptoss_jax.model.transformer import forward
from gptoss_jax.parallel.sharding import mesh
from gptoss_jax.research.scoring import PromptLogprobs
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.turns.completion import Completion
from gptoss_jax.turns.reply import Reply
from gptoss_jax.turns.tasks import Outcome, Task
from gptoss_jax.weights.loading import Model, load, save

__all__ = [
    "GPT_OSS_120B",
    "GPT_OSS_20B",
    "LLM",
    "TINY",
    "Completion",
    "Config",
    "Model",
    "Outcome",
    "PromptLogprobs",
    "Reply",
    "Sampling",
    "Task",
    "capture",
    "forward",
    "load",
    "mesh",
    "patch",
    "save",
    "select",
    "sites",
    "substitute",
]
