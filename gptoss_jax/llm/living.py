"""What changes in an LLM that lives on: its weights."""

from gptoss_jax.engine.engine import Engine
from gptoss_jax.weights.loading import Model


class Living:
    """The calls of an LLM that change it."""

    model: Model
    engine: Engine
