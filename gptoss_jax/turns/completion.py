"""The plain continuation of a prompt as it comes out of the engine: tokens to text, up to a stop string."""

import dataclasses

import numpy as np

from gptoss_jax.engine.requests import FinishReason, Piece, Request
from gptoss_jax.tokenizer import Tokenizer
from gptoss_jax.turns.builder import Builder
from gptoss_jax.turns.stop import TextStop, Waiting


@dataclasses.dataclass(frozen=True)
class Completion:
    """The continuation of a prompt.

    Attributes:
      text: without the stop token and without what follows a stop string.
      tokens: ids, the stop token included.
      logprobs: natural log of each token's probability under the model's own distribution, that is before bias, penalties, temperature,
        filters and masks; None unless asked for.
      top_logprobs: of each token, the most probable ids and their log-probabilities; None unless asked for.
      finish_reason: "stop" at a stop token or a stop string, "length" at max_tokens or at the end of the context, "timeout" at
        the time limit, "error" where something failed, "cancelled" where it was left: then this is what came before.
      routed_experts: [len(prompt) + len(tokens) - 1, L, A] uint8, uint16 from 256 experts on: those that each token of the prompt
        and of the answer was routed to in each layer, the largest gate's first; the answer's last token never goes through the model.
        Where `routed_experts_from` was given, so many fewer: those of the prompt's first tokens are left out. None unless
        `LLM(routed_experts=True)`, and where no token came. Comparing completions leaves it out.
      captured: of each site that the request's hook keeps, its values [tokens, ...] from the first position on that was asked for; those of
        the answer's last token are none, for it never goes through the model. None without such a hook. Comparing leaves it out.
      error: what failed: the request's form, its numbers, or the engine; None where nothing did.
      weights_version: of the weights that it comes from, see `LLM.update`; None where it was never taken up. Comparing leaves it out.
      given_logprobs: of each token's step, the ids of `Sampling.logprob_token_ids` and their log-probabilities under the model's own
        distribution; None unless there are some.
      processed_logprobs: as `logprobs`, under the distribution that tokens were drawn from: 0 where a token was certain, -inf where it
        could not be drawn, as one that was given to `LLM.replay`; to the bit the model's own where the sampling changes nothing. None
        unless asked for.
      top_processed_logprobs: of each token's step, the most probable ids in that distribution and their log-probabilities: fewer than were
        asked for where fewer could be drawn; None unless asked for.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    top_logprobs: tuple[dict[int, float], ...] | None
    finish_reason: FinishReason
    routed_experts: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    error: str | None = None
    weights_version: int | str | None = dataclasses.field(default=None, compare=False, repr=False)
    given_logprobs: tuple[dict[int, float], ...] | None = dataclasses.field(default=None, repr=False)
    processed_logprobs: tuple[float, ...] | None = dataclasses.field(default=None, repr=False)
    top_processed_logprobs: tuple[dict[int, float], ...] | None = dataclasses.field(default=None, repr=False)
    captured: dict[str, np.ndarray] | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class CompletionPiece:
    """The next text of a continuation.

    Attributes:
      text: to be appended to what came before; "" where a stop token ends it, and where there is no tokenizer.
      tokens: those whose text is complete with this piece; all pieces together have all of them, those of a stop string or token too.
      logprobs, top_logprobs, given_logprobs, processed_logprobs, top_processed_logprobs: of these tokens, as in `Completion`.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[dict[int, float], ...] | None = None
    given_logprobs: tuple[dict[int, float], ...] | None = None
    processed_logprobs: tuple[float, ...] | None = None
    top_processed_logprobs: tuple[dict[int, float], ...] | None = None


class CompletionBuilder(Builder):
    """Adds up the pieces of a plain continuation and ends it at a stop string."""

    def __init__(self, request: Request, tokenizer: Tokenizer | None):
        if request.sampling.stop and tokenizer is None:
            raise ValueError("stop strings need a tokenizer, and this checkpoint has none; use stop_token_ids.")
        self._tokenizer = tokenizer
        super().__init__(request)

    def _begin(self) -> None:
        super()._begin()
        stop = self._request.sampling.stop
        self._stop, self._waiting = TextStop(stop), Waiting() if stop else None
        self._whole = self._told = 0  # tokens whose text is whole; those that pieces had

    def _add(self, piece: Piece) -> list[CompletionPiece]:
        """The text that the tokens complete, and those of them that it completes."""
        texts = []
        for i in range(len(piece.tokens)):
            if self._stop.found:
                break
            token = self._keep(piece, i)
            if self._tokenizer and not (piece.finish_reason == "stop" and i == len(piece.tokens) - 1):
                texts.append(self._write(self._tokenizer.decode_bytes([token])))
        if piece.finish_reason:
            texts.append(self._stop.end())
        if self._stop.found:
            self._satisfy()
        if piece.finish_reason or self._stop.found or self._tokenizer is None:
            return self._piece("".join(texts), len(self._tokens))
        return self._piece("".join(texts), self._whole if self._waiting is None else self._waiting.told)

    def _write(self, data: bytes) -> str:
        """Takes the bytes of the newest token; returns the text that is certain with it."""
        text, unfinished = self._stop.push(data), self._stop.unfinished
        if len(unfinished) <= len(data):  # an unfinished character, if there is one, begins in this token
            self._whole = len(self._tokens) - bool(unfinished)
        if self._waiting is not None:
            self._waiting.write(self._stop.taken, self._whole)
            self._waiting.show(len(text))
        return text

    def _piece(self, text: str, end: int) -> list[CompletionPiece]:
        told, self._told = self._told, end
        return [CompletionPiece(text, **self._said_of(told, end))] if text or told < end else []

    def _result(self) -> Completion:
        return Completion(text=self._stop.text, finish_reason=self._reason, **self._numbers())

    def _result_of_failure(self) -> Completion:
        return Completion(text=self._stop.text, finish_reason="error", error=self._error, **self._numbers())
