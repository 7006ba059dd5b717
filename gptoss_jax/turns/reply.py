"""The assistant's turn as it comes out of the engine: tokens to deltas of text by channel, then to a whole reply."""

import dataclasses
import html
from typing import Literal

import numpy as np

from gptoss_jax import harmony
from gptoss_jax.engine.requests import Piece, Request
from gptoss_jax.tokenizer import Tokenizer
from gptoss_jax.turns.builder import Builder
from gptoss_jax.turns.stop import TextStop, Waiting


@dataclasses.dataclass(frozen=True)
class ReplyPiece:
    """The next text of a turn.

    Attributes:
      text: to be appended to what came before on this channel.
      channel: "analysis" is reasoning, "final" the answer, "commentary" a tool call (then `recipient` is the tool) or a word
        to the user before one; None where the model named none, and its own word where it named one that there is not: then,
        without a recipient, it is the answer.
      recipient: the tool that is called, such as "functions.weather", or None.
      message: which of the turn's messages it is of, from 0: those of `Reply.said`. Of messages that are not the assistant's, which only
        a malformed turn has, there are no pieces.
      begins, ends: whether it is the first, and the last, of its message; such a piece may have no text.
      tokens: of the message's content, those whose text is complete with this piece; all of its pieces have all of them.
      logprobs, top_logprobs, given_logprobs, processed_logprobs, top_processed_logprobs: of these tokens, as in `Completion`.
    """

    text: str
    channel: str | None
    recipient: str | None
    message: int = 0
    begins: bool = False
    ends: bool = False
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[dict[int, float], ...] | None = None
    given_logprobs: tuple[dict[int, float], ...] | None = None
    processed_logprobs: tuple[float, ...] | None = None
    top_processed_logprobs: tuple[dict[int, float], ...] | None = None

    @property
    def call(self) -> str | None:
        """The function that is called, without "functions."; None where the piece is of no call."""
        return harmony.called("assistant", self.recipient)

    @property
    def answers(self) -> bool:
        """Whether it is of the answer, as `harmony.Message.answers`."""
        return harmony.answers("assistant", self.channel, self.recipient)


@dataclasses.dataclass(frozen=True)
class Reply:
    """The assistant's turn.

    Attributes:
      text: the answer (final channel; also what the model wrote on none, or on one that there is not).
      reasoning: the analysis channel.
      tool_calls: `harmony.ToolCall`s, each with name, arguments and whether these are valid JSON.
      messages: the turn as chat messages, to append to the history for the next call. Where the history's last message was continued, the
        whole of it, to take its place: `text`, `reasoning` and a stream's pieces hold what is new.
      tokens: ids, the token that ended the turn included.
      logprobs, top_logprobs, given_logprobs, processed_logprobs, top_processed_logprobs: as in `Completion`.
      finish_reason: "stop", "tool_calls" where the turn ended with a call, whatever its channel and its last token, "length", "timeout"
        at the time limit, "error" where something failed, or "cancelled" where it was left or has not ended: then this is what came before.
      malformed: the model broke the harmony format; what could be read is here all the same.
      parsed: every message with its span of tokens; `parsed.problems` says what was malformed.
      said: its messages up to the stop string, if there is one: the last one's text ends before it, and its `content` with the last token
        that is part of that text.
      routed_experts, captured, error, weights_version: as in `Completion`.
    """

    text: str
    reasoning: str
    tool_calls: tuple[harmony.ToolCall, ...]
    messages: list[dict]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    top_logprobs: tuple[dict[int, float], ...] | None
    finish_reason: Literal["stop", "tool_calls", "length", "timeout", "cancelled", "error"]
    malformed: bool
    parsed: harmony.Parsed = dataclasses.field(repr=False)
    said: tuple[harmony.Message, ...] = dataclasses.field(default=(), repr=False)
    routed_experts: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    error: str | None = None
    weights_version: int | str | None = dataclasses.field(default=None, compare=False, repr=False)
    given_logprobs: tuple[dict[int, float], ...] | None = dataclasses.field(default=None, repr=False)
    processed_logprobs: tuple[float, ...] | None = dataclasses.field(default=None, repr=False)
    top_processed_logprobs: tuple[dict[int, float], ...] | None = dataclasses.field(default=None, repr=False)
    captured: dict[str, np.ndarray] | None = dataclasses.field(default=None, compare=False, repr=False)

    def _repr_html_(self) -> str:
        """What a notebook shows: the reasoning to be unfolded, calls, the answer, and how it ended."""
        text = lambda what: f'<div style="white-space: pre-wrap">{html.escape(what)}</div>'
        parts = [f"<details><summary>reasoning</summary>{text(self.reasoning)}</details>"] if self.reasoning else []
        parts += [f"<div><code>{html.escape(f'{call.name}({call.arguments})')}</code></div>" for call in self.tool_calls]
        parts.append(text(self.text))
        end = f"{len(self.tokens)} tokens, {self.finish_reason}{', malformed' if self.malformed else ''}"
        end += f": {html.escape(self.error)}" if self.error else ""
        return "".join(parts) + f'<div style="opacity: 0.6"><small>{end}</small></div>'


class ReplyBuilder(Builder):
    """Adds up the pieces of one turn, and ends it at a stop string in an answer: one that stands whole in one of its messages.

    Args:
      continued: the beginning of the turn, if the prompt ends in the middle of it.
      one_call: whether the turn ends with its first call, whatever ended that.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, continued: harmony.Continued | None = None, *, one_call: bool = False):
        self._tokenizer, self._continued, self._one_call = tokenizer, continued, one_call
        self._channel = None if continued is None else continued.channel
        super().__init__(request)

    def _begin(self) -> None:
        super()._begin()
        self._parser = harmony.StreamParser(self._tokenizer, channel=self._channel)
        self._answer, self._waiting = TextStop(self._request.sampling.stop), Waiting()
        self._parts: list[_Part] = []  # of the next pieces
        self._before = 0  # characters of the answers before this one
        self._told = 0  # token that the next piece begins with
        self._cut: tuple[int, int, int] | None = None  # the message that a stop string ended, its characters, where its tokens end
        self._enough = self._over = False

    def _add(self, piece: Piece) -> list[ReplyPiece]:
        """What the tokens complete: a piece for each message."""
        for i in range(len(piece.tokens)):
            if self._cut or self._enough:
                break
            for delta in self._parser.push(self._keep(piece, i)):
                self._show(delta)
                self._enough |= self._one_call and delta.calls and delta.ends
        if piece.finish_reason and not self._cut and not self._enough:
            for delta in self._parser.finish():
                self._show(delta)
        if self._cut or self._enough:
            self._satisfy()
        self._over = self._over or bool(self._cut or self._enough or piece.finish_reason)
        parts, self._parts = self._parts, []
        return [self._piece(part) for part in parts if part.texts or part.begins or part.ends or part.begin < part.end]

    def _show(self, delta: harmony.Delta) -> None:
        """Adds a delta to the next pieces; another role's is none of the turn's."""
        if delta.role != "assistant" or self._cut:
            return
        if delta.begins:
            self._told = delta.content[0]
        if not self._parts or self._parts[-1].message != delta.message:
            recipient = delta.recipient if delta.calls else None
            self._parts.append(_Part(delta.message, delta.channel, recipient, self._told))
        part, text, end = self._parts[-1], delta.text, delta.content[1]
        if self._request.sampling.stop and delta.answers:
            text, end = self._up_to_stop(delta)
        if text:
            part.texts.append(text)
        part.end = self._told = end
        part.begins |= delta.begins
        part.ends |= delta.ends or self._cut is not None

    def _up_to_stop(self, delta: harmony.Delta) -> tuple[str, int]:
        """What is certain of an answer with a delta of it: text, and where the tokens end that are whole with that."""
        if delta.begins:
            self._waiting, self._before = Waiting(delta.content[0]), self._answer.taken
        text = self._answer.push(delta.text)
        self._waiting.write(self._answer.taken - self._before, delta.content[1])
        if delta.ends and not self._answer.found:
            text += self._answer.flush()
        self._waiting.show(len(text))
        if self._answer.found:
            self._waiting.stop()
            self._cut = (delta.message, self._waiting.shown, self._waiting.told)
        return text, self._waiting.told

    def _piece(self, part: "_Part") -> ReplyPiece:
        said = self._said_of(part.begin, part.end)
        how = {"message": part.message, "begins": part.begins, "ends": part.ends}
        return ReplyPiece("".join(part.texts), part.channel, part.recipient, **how, **said)

    def _result(self) -> Reply:
        parsed = self._parser.result() if self._over else self._parsed()
        reason = "tool_calls" if self._reason == "stop" and _ends_with_call(parsed) else self._reason
        return self._reply(parsed, reason)

    def _result_of_failure(self) -> Reply:
        try:
            return self._reply(self._parsed(), "error")
        except Exception:  # what cannot be read is nothing but tokens
            tokens = tuple(self._tokens)
            return self._reply(harmony.Parsed(tokens, (), ((0, len(tokens)),), ("it could not be read",), "an error"), "error")

    def _parsed(self) -> harmony.Parsed:
        return harmony.parse(self._tokenizer, self._tokens, channel=self._channel)

    def _reply(self, parsed: harmony.Parsed, reason: str) -> Reply:
        said = parsed if self._cut is None else dataclasses.replace(parsed, messages=_up_to(parsed.messages, *self._cut))
        text = said.final
        messages = said.to_chat_messages() if self._continued is None else self._continued.chat_messages(said)
        if self._cut and not text and not (self._channel == "final" and self._continued.text):
            messages += [] if messages and messages[-1].keys() == {"role", "reasoning"} else [{"role": "assistant"}]
            messages[-1]["content"] = ""  # the stop string was all of the answer
        return Reply(
            text=text,
            reasoning=parsed.reasoning,
            tool_calls=parsed.tool_calls,
            messages=messages,
            finish_reason=reason,
            malformed=parsed.malformed,
            parsed=parsed,
            said=said.messages,
            error=self._error,
            **self._numbers(),
        )


@dataclasses.dataclass
class _Part:
    """What comes of one message with a piece of the engine's."""

    message: int
    channel: str | None
    recipient: str | None
    begin: int  # of its tokens
    end: int = 0
    texts: list[str] = dataclasses.field(default_factory=list)
    begins: bool = False
    ends: bool = False


def _up_to(messages: tuple[harmony.Message, ...], last: int, length: int, end: int) -> tuple[harmony.Message, ...]:
    """The messages up to the last, with so many characters of that, whose tokens end at `end`."""
    cut = (dataclasses.replace(one, text=one.text[:length], content=(one.content[0], end)) for one in messages[last : last + 1])
    return (*messages[:last], *cut)


def _ends_with_call(parsed: harmony.Parsed) -> bool:
    return bool(parsed.messages) and parsed.messages[-1].tool_call is not None
