"""The plain continuation of a prompt as it comes out of the engine: tokens to text, up to a stop string."""

import dataclasses

from gptoss_jax.requests import FinishReason, Piece, Request
from gptoss_jax.text import TextStop
from gptoss_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Completion:
    """The continuation of a prompt.

    Attributes:
      text: without the stop token and without what follows a stop string.
      tokens: ids, the stop token included.
      logprobs: natural log of each token's probability under the model's own distribution; None unless asked for.
      top_logprobs: of each token, the most probable ids and their log-probabilities; None unless asked for.
      finish_reason: "stop" at a stop token or a stop string, "length" at max_tokens or at the end of the context, "timeout" at
        the time limit.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    top_logprobs: tuple[dict[int, float], ...] | None
    finish_reason: FinishReason


class CompletionBuilder:
    """Adds up the pieces of a plain continuation and ends it at a stop string."""

    def __init__(self, request: Request, tokenizer: Tokenizer | None):
        if request.sampling.stop and tokenizer is None:
            raise ValueError("stop strings need a tokenizer, and this checkpoint has none; use stop_token_ids.")
        self._request, self._tokenizer = request, tokenizer
        self._tokens, self._logprobs, self._top, self._reason = [], [], [], "length"
        self._stop = TextStop(request.sampling.stop)

    def add(self, piece: Piece) -> None:
        """Takes the next tokens."""
        self._reason = piece.finish_reason or self._reason
        for i, token in enumerate(piece.tokens):
            if self._stop.found:
                break
            self._tokens.append(token)
            self._logprobs.append(piece.logprobs[i])
            self._top.append(piece.top_logprobs[i])
            last = piece.finish_reason == "stop" and i == len(piece.tokens) - 1
            if self._tokenizer and not last:
                self._stop.push(self._tokenizer.decode_bytes([token]))
        if self._stop.found:
            self._request.cancelled, self._reason = True, "stop"

    def result(self) -> Completion:
        """What has come so far."""
        asked = self._request.sampling.logprobs
        return Completion(
            text=self._stop.finish(),
            tokens=tuple(self._tokens),
            logprobs=None if asked is None else tuple(self._logprobs),
            top_logprobs=tuple(self._top) if asked else None,
            finish_reason="stop" if self._stop.found else self._reason,
        )
