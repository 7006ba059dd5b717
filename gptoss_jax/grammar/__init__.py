"""Structured output: what a caller asks an answer to look like, to the tokens that may come next.

Token ids in, bits out: knows the tokenizer and harmony's headers, neither arrays of a device nor the model. The grammars are
llguidance's; what this package adds is the door, the vocabulary, and where in a chat turn a grammar holds.
"""

from gptoss_jax.grammar.constraint import Constraint, for_text
from gptoss_jax.grammar.turn import for_chat

__all__ = ["Constraint", "for_chat", "for_text"]
