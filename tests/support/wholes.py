"""Turns in short, read as the engine's pieces: what writers of answers are given."""

from as_written import written
from small_vocabulary import small_vocabulary

from gptoss_jax.engine.requests import Piece, Request
from gptoss_jax.openai import writing
from gptoss_jax.openai.asked import Asked
from gptoss_jax.openai.events import Event
from gptoss_jax.openai.told import Told
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.turns.reply import Reply, ReplyBuilder, ReplyPiece
from gptoss_jax.turns.task import Outcome, Task

TOLD = Told("0f", created=5, completed=9, model="m", cached=True)
CALL = 'C!commentary to=functions.f K!jsonM!{"x": 1}A!'


def turn(text: str, *, reason: str = "stop", logprobs: int | None = None, error: str | None = None) -> tuple[list[ReplyPiece], Reply]:
    """The pieces of a turn that came token by token, and the whole."""
    request, pieces = Request([1], Sampling(logprobs=logprobs)), []
    builder, tokens = ReplyBuilder(request, small_vocabulary()), written(small_vocabulary(), text)
    for i, token in enumerate(tokens):
        last = i == len(tokens) - 1
        pieces += builder.add(
            Piece(
                request, [token], [-0.5], [{token: -0.5}], ("error" if error else reason) if last else None, error=error if last else None
            )
        )
    return pieces, builder.result()


def asked(endpoint: str, *, n: int = 1, logprobs: int | None = None, form=None, **given) -> Asked:
    return Asked(endpoint, (Task(messages="", n=n, sampling=Sampling(logprobs=logprobs), response_format=form),), given)


def outcome(of: Asked, *replies: Reply) -> Outcome:
    error = next((reply.error for reply in replies if reply.error), None)
    return Outcome(of.tasks[0], replies, 7, error, failed=error is not None, cached_tokens=3)


def whole(of: Asked, *replies: Reply, told: Told = TOLD) -> dict:
    """The body of some answers."""
    return writing.body(of, told, [outcome(of, *replies)], small_vocabulary())


def streamed(of: Asked, *turns: tuple[list[ReplyPiece], Reply]) -> list[Event]:
    """The events of some answers, one after the other."""
    events = writing.events(of, TOLD, small_vocabulary())
    out = events.begin()
    for number, (pieces, reply) in enumerate(turns):
        out += [event for piece in pieces for event in events.add(number, piece)] + events.done(number, reply)
    return out + events.end([outcome(of, *(reply for _, reply in turns))])
