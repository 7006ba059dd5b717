"""Turns as /v1/chat/completions has them: a chat.completion, or its chunks. Knows no jax.

`content` is all that the user is told, in order: the answer, and before it what the model says on the commentary channel. Where the answer
is to be of some form, content is the answer alone: commentary then goes with the reasoning.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_jax.openai import errors
from gptoss_jax.openai.asked import Asked
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.events import Event
from gptoss_jax.openai.told import Told
from gptoss_jax.openai.writing import usage
from gptoss_jax.openai.writing.shown import CUT, Shown
from gptoss_jax.openai.writing.spelling import beside, entries
from gptoss_jax.tokenizer import Tokenizer
from gptoss_jax.turns.reply import Reply, ReplyPiece
from gptoss_jax.turns.task import Outcome

REASONING = ("reasoning", "reasoning_content")  # some clients look for it under the one name, some under the other


def body(asked: Asked, told: Told, outcomes: Sequence[Outcome], tokenizer: Tokenizer | None) -> dict:
    """The chat.completion object of outcomes without error."""
    replies = [reply for outcome in outcomes for reply in outcome.answers]
    formed = asked.tasks[0].response_format is not None
    return {
        "id": f"chatcmpl-{told.id}",
        "object": "chat.completion",
        "created": told.created,
        "model": told.model,
        "choices": [_choice(index, reply, told, tokenizer, formed) for index, reply in enumerate(replies)],
        "usage": usage.of_chat(outcomes, told),
        "system_fingerprint": None,
    }


class ChatEvents:
    """The chat.completion.chunk objects of a stream; see `events.Events`."""

    def __init__(self, asked: Asked, told: Told, tokenizer: Tokenizer | None):
        self.told = told
        formed = asked.tasks[0].response_format is not None
        self._answers = [_Answer(i, told, tokenizer, formed) for i in range(sum(task.n for task in asked.tasks))]
        self._usage, self._over = asked.include_usage, False

    def begin(self) -> list[Event]:
        return [self._chunk(answer.index, {"role": "assistant", "content": ""}) for answer in self._answers]

    def add(self, answer: int, piece: ReplyPiece) -> list[Event]:
        if self._over:
            return []
        one = self._answers[answer]
        one.shown.add(piece)
        return [self._chunk(answer, *said) for said in one.said(piece)]

    def done(self, answer: int, reply: Reply) -> list[Event]:
        if self._over:
            return []
        one = self._answers[answer]
        out = [self._chunk(answer, *said) for piece in one.shown.rest(reply) for said in one.said(piece)]
        return out if reply.error else [*out, self._chunk(answer, {}, finish=_finish(reply))]

    def end(self, outcomes: Sequence[Outcome]) -> list[Event]:
        if self._over:
            return []
        if refusal := errors.of_outcomes(outcomes):
            return self.fail(refusal)
        self._over = True
        return [(None, self._head() | {"choices": [], "usage": usage.of_chat(outcomes, self.told)})] if self._usage else []

    def fail(self, refusal: Refused) -> list[Event]:
        out, self._over = [] if self._over else [(None, errors.body_of(refusal))], True
        return out

    def _head(self) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.told.id}",
            "object": "chat.completion.chunk",
            "created": self.told.created,
            "model": self.told.model,
            "system_fingerprint": None,
        }

    def _chunk(self, index: int, delta: Mapping, logprobs: Mapping | None = None, *, finish: str | None = None) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return None, self._head() | {"choices": [choice]} | ({"usage": None} if self._usage else {})


class _Answer:
    """One of the answers, as its pieces come.

    Attributes:
        shown: the pieces that came.
    """

    def __init__(self, index: int, told: Told, tokenizer: Tokenizer | None, formed: bool):
        self.index, self.shown = index, Shown()
        self._told, self._tokenizer, self._formed = told, tokenizer, formed
        self._calls = 0
        self._calling: int | None = None  # the message of the last of them

    def said(self, piece: ReplyPiece) -> list[tuple[dict, dict | None]]:
        """Deltas, and the log-probabilities that belong to each."""
        if piece.call is not None:
            return [({"tool_calls": [part]}, None) for part in self._call(piece)]
        if _reasons(piece, self._formed):
            return [(dict.fromkeys(REASONING, piece.text), None)] if piece.text else []
        listed = _logprobs([piece], self._tokenizer) if piece.logprobs else None
        return [({"content": piece.text}, listed)] if piece.text or listed else []

    def _call(self, piece: ReplyPiece) -> list[dict]:
        out = []
        if self._calling != piece.message:
            self._calling = piece.message
            head = {"index": self._calls, "id": _call_id(self._told, self.index, self._calls), "type": "function"}
            out.append({**head, "function": {"name": piece.call, "arguments": ""}})
            self._calls += 1
        return [*out, {"index": self._calls - 1, "function": {"arguments": piece.text}}] if piece.text else out


def _choice(index: int, reply: Reply, told: Told, tokenizer: Tokenizer | None, formed: bool) -> dict:
    calls, thoughts, said = [], [], []
    for piece in Shown().rest(reply):
        (calls if piece.call is not None else thoughts if _reasons(piece, formed) else said).append(piece)
    content, reasoning = _text(said), _text(thoughts)
    message = {"role": "assistant", "content": content if content or not calls else None, "refusal": None}
    if reasoning:
        message |= dict.fromkeys(REASONING[told.as_batch :], reasoning)
    if calls:
        message["tool_calls"] = [
            {"id": _call_id(told, index, i), "type": "function", "function": {"name": piece.call, "arguments": piece.text}}
            for i, piece in enumerate(calls)
        ]
    logprobs = None if reply.logprobs is None else _logprobs(said, tokenizer)
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": _finish(reply)}


def _reasons(piece: ReplyPiece, formed: bool) -> bool:
    """Whether what is no call goes with the reasoning."""
    return piece.channel == "analysis" or (formed and not piece.answers)


def _text(pieces: Sequence[ReplyPiece]) -> str:
    return "".join(piece.text for piece in pieces)


def _logprobs(pieces: Sequence[ReplyPiece], tokenizer: Tokenizer) -> dict:
    tops = (beside(one.top_logprobs, one.given_logprobs) for one in pieces)
    listed = [entry for one, top in zip(pieces, tops, strict=True) for entry in entries(one.tokens, one.logprobs, top, tokenizer)]
    return {"content": listed, "refusal": None}


def _call_id(told: Told, index: int, number: int) -> str:
    return f"call_{told.id}_{index}_{number}"


def _finish(reply: Reply) -> str:
    return "length" if reply.finish_reason in CUT else reply.finish_reason  # OpenAI knows no other word for an answer cut off
