"""JSON schemas as data: of which draft one is, whether it is valid, which schemas it holds and what a reference names.

What a tool's parameters and an answer's form go through alike (`checked`), before `harmony` shows them to the model and `grammar` holds
it to them. Knows neither of those two, nor tokens.
"""

from gptoss_jax.schemas.checking import checked

__all__ = ["checked"]
