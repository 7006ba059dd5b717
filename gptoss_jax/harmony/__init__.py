"""Harmony: messages to the ids of a prompt (`render`) or of a whole conversation that is to be learnt (`render_for_training`), ids of an
answer back to messages (`parse`, `StreamParser`).

Stands between the tokenizer and the model, and knows neither arrays nor the model. Rendering is strict and refuses what a
conversation must not hold; parsing reads whatever a model wrote, never raises and never loses a token.
"""

from gptoss_jax.harmony.continued import Continued, continued
from gptoss_jax.harmony.conversation import to_conversation
from gptoss_jax.harmony.functions import Function, read_functions
from gptoss_jax.harmony.header import answers, called
from gptoss_jax.harmony.least import least_tokens
from gptoss_jax.harmony.parse import StreamParser, parse
from gptoss_jax.harmony.parsed import Delta, Message, Parsed, ToolCall
from gptoss_jax.harmony.render import render
from gptoss_jax.harmony.trained import Rendered, RenderedMessage, TrainOn, render_for_training, turns

__all__ = [
    "Continued",
    "Delta",
    "Function",
    "Message",
    "Parsed",
    "Rendered",
    "RenderedMessage",
    "StreamParser",
    "ToolCall",
    "TrainOn",
    "answers",
    "called",
    "continued",
    "least_tokens",
    "parse",
    "read_functions",
    "render",
    "render_for_training",
    "to_conversation",
    "turns",
]
