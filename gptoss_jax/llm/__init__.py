"""The whole path for a script or a notebook, from text or messages to text or messages.

With the entry points the only wing that sees both a message and an array. `llm` generates, `asking` draws nothing, `living` and `adapting`
change it.
"""

from gptoss_jax.llm.llm import LLM as LLM
