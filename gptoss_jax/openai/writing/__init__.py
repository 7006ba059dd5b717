"""Answers to OpenAI's bodies, whole or as the events of a stream; the two agree to the byte. Knows no jax.

What is whole is what a client would have put together of the events: Responses are made by the writer of their events, and both ways of
the other two go through the same pieces.
"""

from collections.abc import Sequence

from gptoss_jax.openai import errors
from gptoss_jax.openai.asked import Asked
from gptoss_jax.openai.echoed import Echoed
from gptoss_jax.openai.events import Events
from gptoss_jax.openai.told import Told
from gptoss_jax.openai.writing import chat, completions, responses
from gptoss_jax.tokenizer import Tokenizer
from gptoss_jax.turns.task import Outcome


def body(
    asked: Asked, told: Told, outcomes: Sequence[Outcome], tokenizer: Tokenizer | None, *, echoed: Sequence[Echoed] | None = None
) -> dict:
    """The object that answers a request.

    Args:
        outcomes: one for each task; none where nothing was to be drawn, and the prompts are all that comes back.
        tokenizer: spells the tokens of log-probabilities and of prompts; may be None where there are none.
        echoed: for /v1/completions with `echo`: the prompts, one for each task.

    Raises:
        Refused: a task was refused, or failed on the way.
    """
    if refusal := errors.of_outcomes(outcomes):
        raise refusal
    if asked.endpoint == "chat":
        return chat.body(asked, told, outcomes, tokenizer)
    if asked.endpoint == "responses":
        return responses.body(asked, told, outcomes, tokenizer)
    return completions.body(asked, told, outcomes, tokenizer, echoed)


def events(asked: Asked, told: Told, tokenizer: Tokenizer | None, *, echoed: Sequence[Echoed] | None = None) -> Events:
    """What writes the events of a stream. Args as `body`."""
    if asked.endpoint == "chat":
        return chat.ChatEvents(asked, told, tokenizer)
    if asked.endpoint == "responses":
        return responses.ResponseEvents(asked, told, tokenizer)
    return completions.CompletionEvents(asked, told, tokenizer, echoed)
