"""Continuations as /v1/completions has them: a text_completion, or the parts of one. Knows no jax.

Answers are numbered through all prompts. With `echo` a prompt stands before each of its continuations; where nothing is drawn it is all
there is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_jax.openai import errors
from gptoss_jax.openai.asked import Asked
from gptoss_jax.openai.echoed import Echoed
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.events import Event
from gptoss_jax.openai.told import Told
from gptoss_jax.openai.writing import usage
from gptoss_jax.openai.writing.parts import Part, Parts, joined
from gptoss_jax.openai.writing.shown import CUT
from gptoss_jax.tokenizer import Tokenizer
from gptoss_jax.turns.completion import Completion, CompletionPiece
from gptoss_jax.turns.task import Outcome


def body(
    asked: Asked, told: Told, outcomes: Sequence[Outcome], tokenizer: Tokenizer | None, echoed: Sequence[Echoed] | None = None
) -> dict:
    """The text_completion object of outcomes without error; of none where nothing was to be drawn."""
    texts = _texts(asked, tokenizer, echoed)
    answers = [answer for outcome in outcomes for answer in outcome.answers] if outcomes else [None] * len(texts)
    choices = []
    for text, answer in zip(texts, answers, strict=True):
        part = joined([*text.echo(), *([] if answer is None else text.rest(answer))], text.listed)
        choices.append(_choice(len(choices), part, _finish(answer)))
    return _head(told) | {"choices": choices, "usage": _usage(outcomes, told, echoed)}


class CompletionEvents:
    """The text_completion objects of a stream; see `events.Events`."""

    def __init__(self, asked: Asked, told: Told, tokenizer: Tokenizer | None, echoed: Sequence[Echoed] | None = None):
        self.told, self._usage, self._echoed = told, asked.include_usage, echoed
        self._texts = _texts(asked, tokenizer, echoed)
        self._left, self._over = set(range(len(self._texts))), False

    def begin(self) -> list[Event]:
        return [self._chunk(answer, part) for answer, text in enumerate(self._texts) for part in text.echo()]

    def add(self, answer: int, piece: CompletionPiece) -> list[Event]:
        return [] if self._over else [self._chunk(answer, part) for part in self._texts[answer].add(piece)]

    def done(self, answer: int, reply: Completion) -> list[Event]:
        if self._over:
            return []
        out = [self._chunk(answer, part) for part in self._texts[answer].rest(reply)]
        return out if reply.error else [*out, self._end(answer, reply)]

    def end(self, outcomes: Sequence[Outcome]) -> list[Event]:
        if self._over:
            return []
        if refusal := errors.of_outcomes(outcomes):
            return self.fail(refusal)
        out = [self._end(answer, None) for answer in sorted(self._left)]  # of which nothing was drawn
        self._over = True
        spent = {"choices": [], "usage": _usage(outcomes, self.told, self._echoed)}
        return [*out, (None, _head(self.told) | spent)] if self._usage else out

    def fail(self, refusal: Refused) -> list[Event]:
        out, self._over = [] if self._over else [(None, errors.body_of(refusal))], True
        return out

    def _end(self, answer: int, reply: Completion | None) -> Event:
        self._left.discard(answer)
        return self._chunk(answer, ("", None), _finish(reply))

    def _chunk(self, answer: int, part: Part, finish: str | None = None) -> Event:
        return None, _head(self.told) | {"choices": [_choice(answer, part, finish)]} | ({"usage": None} if self._usage else {})


def _texts(asked: Asked, tokenizer: Tokenizer | None, echoed: Sequence[Echoed] | None) -> list[Parts]:
    """What writes the text of each answer."""
    out = []
    for i, task in enumerate(asked.tasks):
        prompt, before = None, None
        if asked.echo:
            prompt, before = task.prompt, echoed[i] if echoed is not None else None
        out += [Parts(tokenizer, task.sampling.logprobs is not None, prompt, before) for _ in range(task.n)]
    return out


def _head(told: Told) -> dict[str, Any]:
    head = {"id": f"cmpl-{told.id}", "object": "text_completion", "created": told.created, "model": told.model}
    return {**head, "system_fingerprint": None}


def _choice(index: int, part: Part, finish: str | None) -> dict:
    text, lists = part
    return {"text": text, "index": index, "logprobs": lists, "finish_reason": finish}


def _finish(answer: Completion | None) -> str:
    """None was not to be drawn: its 0 tokens are all that was asked for."""
    return "length" if answer is None or answer.finish_reason in CUT else answer.finish_reason


def _usage(outcomes: Sequence[Outcome], told: Told, echoed: Sequence[Echoed] | None) -> Mapping:
    out = usage.of_chat(outcomes, told)
    if not outcomes and echoed is not None:
        read = sum(len(one.tokens) for one in echoed)
        out |= {"prompt_tokens": read, "total_tokens": read}
    return out
