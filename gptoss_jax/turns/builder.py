"""What adds up the pieces of one request, whatever it makes of them; a fault in that is the request's own."""

import numpy as np

from gptoss_jax.engine.requests import FinishReason, Piece, Request
from gptoss_jax.quoting import said
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.turns.captured import Captured

SAID = ("logprobs", "top_logprobs", "given_logprobs", "processed_logprobs", "top_processed_logprobs")
"""What may be said of each token, by the names that it has in a piece and in what is made of pieces."""


def asked_for(sampling: Sampling) -> list[str]:
    """Which of `SAID` a request asks for."""
    raw, processed = sampling.logprobs, sampling.processed_logprobs
    wanted = (raw is not None, raw, sampling.logprob_token_ids, processed is not None, processed)
    return [name for name, asked in zip(SAID, wanted, strict=True) if asked]


class Builder:
    """Adds up pieces; `_add` and `_result` say what of them.

    Args:
      request: whose pieces they are; it is cancelled where nothing more is wanted of it.
    """

    def __init__(self, request: Request):
        self._request = request
        self._begin()

    def _begin(self) -> None:
        """As if nothing had come."""
        self._tokens: list[int] = []
        self._said: dict[str, list] = {name: [] for name in asked_for(self._request.sampling)}  # of each token
        self._routes: list[np.ndarray] = []
        hook = self._request.hook
        self._captured = Captured(hook) if hook is not None and hook.captures else None
        self._version = None  # of the weights that drew the tokens
        self._reason, self._error = "cancelled", None  # it is, where no last piece ever comes

    def add(self, piece: Piece) -> list:
        """Takes the next tokens; returns what they complete. What goes wrong with that ends this request with finish reason "error"."""
        if self._error is not None:
            return []
        if piece.anew and not self._request.cancelled:  # what was enough stays
            self._begin()
        self._reason = piece.finish_reason or self._reason
        self._routes += [] if piece.routes is None else [piece.routes]
        try:
            out = self._add(piece)
        except Exception as error:
            out = []
            self._fail(error)
        if self._captured is not None:
            self._keep_captured(piece)
        if piece.error is not None:
            self._error = piece.error
        return out

    def result(self):
        """What has come so far; may be asked at any time."""
        if self._error is None:
            try:
                return self._result()
            except Exception as error:
                self._fail(error)
        return self._result_of_failure()

    def _add(self, piece: Piece) -> list:
        raise NotImplementedError

    def _result(self):
        raise NotImplementedError

    def _result_of_failure(self):
        """The result with finish reason "error"; must not raise."""
        raise NotImplementedError

    def _keep(self, piece: Piece, i: int) -> int:
        """Takes token i of a piece, with what is said of it."""
        self._tokens.append(piece.tokens[i])
        self._version = piece.weights_version
        for name, values in self._said.items():
            values.append(getattr(piece, name)[i])
        return piece.tokens[i]

    def _keep_captured(self, piece: Piece) -> None:
        """Takes what the hook keeps of the tokens that are kept; what takes it may fail, which is this request's own fault."""
        try:
            self._captured.add(piece.captured or {}, len(self._request.prompt) + len(self._tokens) - 1)
            if piece.finish_reason or self._request.cancelled:
                self._captured.close()
        except Exception as error:
            self._cancel("error")
            self._error = f"what its hook keeps could not be written: {said(error)}."

    def _numbers(self) -> dict:
        """Fields that every kind of result has."""
        routes, request = self._routes, self._request
        known = len(request.prompt) - request.routed_experts_from + len(self._tokens) - 1
        return self._said_of(0, len(self._tokens)) | {
            "weights_version": request.weights_version if self._version is None else self._version,
            "routed_experts": np.concatenate(routes)[:known] if routes else None,
            "captured": None if self._captured is None else self._captured.result(),
        }

    def _said_of(self, begin: int, end: int) -> dict:
        """Some of the tokens, with what is said of them where that was asked for."""
        said = {name: tuple(values[begin:end]) for name, values in self._said.items()}
        return {"tokens": tuple(self._tokens[begin:end]), "logprobs": None, "top_logprobs": None} | said

    def _satisfy(self) -> None:
        """Enough has come."""
        self._cancel("stop")

    def _cancel(self, reason: FinishReason) -> None:
        self._reason = self._request.cancelled_for = reason
        self._request.cancelled = True  # the last: who sees it sees why

    def _fail(self, error: Exception) -> None:
        self._cancel("error")
        self._error = f"its text could not be made after {len(self._tokens):,} tokens: {said(error)}."
