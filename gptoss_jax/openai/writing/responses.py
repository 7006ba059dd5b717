"""A turn as /v1/responses has it: the events of its stream, and the Response that they end with. Knows no jax."""

from collections.abc import Mapping, Sequence

from gptoss_jax.openai import errors
from gptoss_jax.openai.asked import Asked
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.events import Event
from gptoss_jax.openai.told import Told
from gptoss_jax.openai.writing import usage
from gptoss_jax.openai.writing.items import Item, Numbering
from gptoss_jax.openai.writing.response import begun
from gptoss_jax.openai.writing.shown import CUT, Shown, last
from gptoss_jax.openai.writing.spelling import entries
from gptoss_jax.tokenizer import Tokenizer
from gptoss_jax.turns.reply import Reply, ReplyPiece
from gptoss_jax.turns.task import Outcome

_NAMES = {"reasoning": "response.reasoning_text", "message": "response.output_text", "function_call": "response.function_call_arguments"}
_CODES = {429: "rate_limit_exceeded", 400: "invalid_prompt"}  # of a Response's error; it knows no others that fit


def body(asked: Asked, told: Told, outcomes: Sequence[Outcome], tokenizer: Tokenizer | None) -> dict:
    """The response object of an outcome without error: what the stream of it would have ended with."""
    writer = ResponseEvents(asked, told, tokenizer)
    [reply] = outcomes[0].answers
    writer.done(0, reply)
    [(_, event)] = writer.end(outcomes)
    return event["response"]


class ResponseEvents:
    """The events of a stream; see `events.Events`.

    An item is closed when the next one begins or the turn is whole: only then is it known whether it is complete.
    """

    def __init__(self, asked: Asked, told: Told, tokenizer: Tokenizer | None):
        self.told = told
        self._tokenizer, self._response = tokenizer, begun(asked, told)
        self._numbering, self._shown = Numbering(told), Shown()
        self._item: Item | None = None  # that is open
        self._about: dict = {}  # what each event of its content names
        self._output: list[dict] = []
        self._cut, self._number, self._over = False, 0, False

    def begin(self) -> list[Event]:
        return [self._event(f"response.{name}", {"response": self._response}) for name in ("created", "in_progress")]

    def add(self, answer: int, piece: ReplyPiece) -> list[Event]:
        if self._over:
            return []
        self._shown.add(piece)
        return self._take(piece)

    def done(self, answer: int, reply: Reply) -> list[Event]:
        if self._over:
            return []
        out = [event for piece in self._shown.rest(reply) for event in self._take(piece)]
        self._cut = reply.finish_reason in CUT
        message = last(reply)
        whole = not reply.error and not (self._cut and message is not None and message.end is None)
        return out + self._close("completed" if whole else "incomplete")

    def end(self, outcomes: Sequence[Outcome]) -> list[Event]:
        if self._over:
            return []
        spent = {"usage": usage.of_response(outcomes, self.told)}
        if refusal := errors.of_outcomes(outcomes):
            return self._fail(refusal, spent)
        self._over = True
        if self._cut:
            return self._last("incomplete", {"incomplete_details": {"reason": "max_output_tokens"}, **spent})
        return self._last("completed", spent)

    def fail(self, refusal: Refused) -> list[Event]:
        return [] if self._over else self._fail(refusal, {})

    def _fail(self, refusal: Refused, more: Mapping) -> list[Event]:
        out, self._over = self._close("incomplete"), True
        said = {"code": refusal.code, "message": str(refusal), "param": refusal.field}
        error = {"code": _CODES.get(refusal.status, "server_error"), "message": str(refusal)}
        return [*out, self._event("error", said), *self._last("failed", {"error": error, **more})]

    def _last(self, status: str, more: Mapping) -> list[Event]:
        """The last event, of the whole Response."""
        when = {"completed_at": self.told.completed} if status == "completed" and not self.told.as_batch else {}
        return [
            self._event(f"response.{status}", {"response": {**self._response, "status": status, **when, "output": self._output, **more}})
        ]

    def _take(self, piece: ReplyPiece) -> list[Event]:
        out = [] if self._item is not None and self._item.message == piece.message else self._open(piece)
        listed = []
        if piece.logprobs and self._item.kind == "message":
            listed = entries(piece.tokens, piece.logprobs, piece.top_logprobs, self._tokenizer)
            self._item.logprobs += listed
        if piece.text:
            self._item.texts.append(piece.text)
        if piece.text or listed:
            more = {"logprobs": listed} if self._item.kind == "message" else {}
            out.append(self._event(f"{_NAMES[self._item.kind]}.delta", {**self._about, "delta": piece.text, **more}))
        return out

    def _open(self, piece: ReplyPiece) -> list[Event]:
        out = self._close("completed")
        item = self._item = self._numbering.item(piece)
        out.append(self._event("response.output_item.added", {"output_index": item.place, "item": item.shown("in_progress")}))
        self._about = {"item_id": item.id, "output_index": item.place}
        if item.kind != "function_call":
            self._about["content_index"] = 0
            out.append(self._event("response.content_part.added", {**self._about, "part": item.part()}))
        return out

    def _close(self, status: str) -> list[Event]:
        item, self._item = self._item, None
        if item is None:
            return []
        shown = item.shown(status)
        self._output.append(shown)
        name, about = f"{_NAMES[item.kind]}.done", self._about
        if item.kind == "function_call":
            out = [self._event(name, {**about, "arguments": shown["arguments"], "name": item.name})]
        else:
            [part] = shown["content"]
            more = {"logprobs": part["logprobs"]} if item.kind == "message" else {}
            out = [self._event(name, {**about, "text": part["text"], **more})]
            out.append(self._event("response.content_part.done", {**about, "part": part}))
        return [*out, self._event("response.output_item.done", {"output_index": item.place, "item": shown})]

    def _event(self, name: str, data: Mapping) -> Event:
        self._number += 1
        return name, {"type": name, "sequence_number": self._number - 1, **data}
