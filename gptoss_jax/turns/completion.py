"""The plain continuation of a prompt as it comes out of the engine: tokens to text, up to a stop string."""

import dataclasses

import numpy as np

from gptoss_jax.engine.requests import FinishReason, Piece, Request
from gptoss_jax.tokenizer import Tokenizer
from gptoss_jax.turns.stop import TextStop


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
        the time limit.
      routed_experts: [len(prompt) + len(tokens) - 1, L, A] uint8, uint16 for more than 256 experts: those that each token of the prompt
        and of the answer was routed to in each layer, the largest gate's first; the answer's last token never goes through the model.
        None unless `LLM(routed_experts=True)`, and where no token came. Comparing completions leaves it out.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    top_logprobs: tuple[dict[int, float], ...] | None
    finish_reason: FinishReason
    routed_experts: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)


class CompletionBuilder:
    """Adds up the pieces of a plain continuation and ends it at a stop string."""

    def __init__(self, request: Request, tokenizer: Tokenizer | None):
        if request.sampling.stop and tokenizer is None:
            raise ValueError("stop strings need a tokenizer, and this checkpoint has none; use stop_token_ids.")
        self._request, self._tokenizer = request, tokenizer
        self._tokens, self._logprobs, self._top, self._reason = [], [], [], "length"
        self._routes: list[np.ndarray] = []
        self._stop = TextStop(request.sampling.stop)

    def add(self, piece: Piece) -> None:
        """Takes the next tokens."""
        self._reason = piece.finish_reason or self._reason
        self._routes += [] if piece.routes is None else [piece.routes]
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
            routed_experts=routed_experts(self._routes, self._request, len(self._tokens)),
        )


def routed_experts(routes: list[np.ndarray], request: Request, tokens: int) -> np.ndarray | None:
    """Experts of a prompt and of the first tokens after it, [len(prompt) + tokens - 1, L, A], of the pieces' own; None without any."""
    return np.concatenate(routes)[: len(request.prompt) + tokens - 1] if routes else None
