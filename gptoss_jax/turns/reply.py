"""The assistant's turn as it comes out of the engine: tokens to deltas of text by channel, then to a whole reply."""

import dataclasses
import html
from typing import Literal

import numpy as np

from gptoss_jax import harmony
from gptoss_jax.engine.requests import Piece, Request
from gptoss_jax.tokenizer import Tokenizer
from gptoss_jax.turns.builder import Builder
from gptoss_jax.turns.stop import TextStop


@dataclasses.dataclass(frozen=True)
class ReplyPiece:
    """The next text of a turn.

    Attributes:
      text: to be appended to what came before on this channel.
      channel: "analysis" is reasoning, "final" the answer, "commentary" a tool call (then `recipient` is the tool) or a word
        to the user before one; None where the model named none, and its own word where it named one that there is not: then,
        without a recipient, it is the answer.
      recipient: the tool that is called, such as "functions.weather", or None.
      message: which of the turn's messages it is of, from 0: those of `Reply.parsed`.
      begins, ends: whether it is the first, and the last, of its message; such a piece may have no text.
      tokens: of the message's content, those whose text is complete with this piece; all of its pieces have all of them.
      logprobs, top_logprobs: of these tokens, as in `Completion`.
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
      logprobs, top_logprobs: as in `Completion`.
      finish_reason: "stop", "tool_calls" where the turn ended with a call, whatever its channel and its last token, "length", "timeout"
        at the time limit, "error" where something failed, or "cancelled" where it was left or has not ended: then this is what came before.
      malformed: the model broke the harmony format; what could be read is here all the same.
      parsed: every message with its span of tokens; `parsed.problems` says what was malformed.
      routed_experts, error: as in `Completion`.
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
    routed_experts: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    error: str | None = None

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
    """Adds up the pieces of one turn.

    Args:
      continued: the beginning of the turn, if the prompt ends in the middle of it.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, continued: harmony.Continued | None = None):
        super().__init__(request)
        self._tokenizer, self._continued = tokenizer, continued
        self._channel = None if continued is None else continued.channel
        self._parser = harmony.StreamParser(tokenizer, channel=self._channel)
        self._answer = TextStop(request.sampling.stop)

    def _add(self, piece: Piece) -> list[ReplyPiece]:
        """The text that the tokens complete."""
        out = []
        for i in range(len(piece.tokens)):
            if self._answer.found:
                break
            out += [self._show(delta) for delta in self._parser.push(self._keep(piece, i))]
        if self._answer.found:
            self._satisfy()
        elif piece.finish_reason:
            out += [self._show(delta) for delta in self._parser.finish()]
            out.append(ReplyPiece(self._answer.flush(), "final", None))
        return [one for one in out if one.text]

    def _result(self) -> Reply:
        parsed = harmony.parse(self._tokenizer, self._tokens, channel=self._channel)
        reason = "tool_calls" if self._reason == "stop" and _ends_with_call(parsed) else self._reason
        return self._reply(parsed, reason)

    def _result_of_failure(self) -> Reply:
        try:
            return self._reply(harmony.parse(self._tokenizer, self._tokens, channel=self._channel), "error")
        except Exception:  # what cannot be read is nothing but tokens
            tokens = tuple(self._tokens)
            return self._reply(harmony.Parsed(tokens, (), ((0, len(tokens)),), ("it could not be read",), "an error"), "error")

    def _reply(self, parsed: harmony.Parsed, reason: str) -> Reply:
        text = self._answer.finish() if self._answer.found else parsed.final
        said = _cut(parsed, len(text)) if self._answer.found else parsed
        messages = said.to_chat_messages() if self._continued is None else self._continued.chat_messages(said)
        if self._answer.found and not text and not (self._channel == "final" and self._continued.text):
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
            error=self._error,
            **self._numbers(),
        )

    def _show(self, delta: harmony.Delta) -> ReplyPiece:
        """The delta as a piece; the answer's text goes through the search for stop strings, another role's is none of the turn's."""
        if delta.role != "assistant":
            return ReplyPiece("", delta.channel, delta.recipient)
        text = self._answer.push(delta.text) if delta.answers else delta.text
        return ReplyPiece(text, delta.channel, delta.recipient if delta.calls else None)


def _cut(parsed: harmony.Parsed, length: int) -> harmony.Parsed:
    """The turn with so many characters of its answers."""
    messages = []
    for message in parsed.messages:
        if message.answers:
            message = dataclasses.replace(message, text=message.text[:length])
            length -= len(message.text)
        messages.append(message)
    return dataclasses.replace(parsed, messages=tuple(messages))


def _ends_with_call(parsed: harmony.Parsed) -> bool:
    return bool(parsed.messages) and parsed.messages[-1].tool_call is not None
