"""What the engine is asked for and what it gives: requests, pieces of their tokens, and a tally of its work."""

from collections.abc import Sequence
import dataclasses
import numbers
from typing import Literal, Protocol

import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.engine.hooks.hook import Hook
from gptoss_jax.quoting import quoted
from gptoss_jax.sampling.options import Sampling

FinishReason = Literal["stop", "length", "timeout", "cancelled", "error"]


class Constraint(Protocol):
    """What tokens may come next in one request; `gptoss_jax.grammar` makes them.

    Attributes:
      pauses: tokens after which the device waits until `mask` has been asked again; at most `state.PAUSES`.
      problem: why it cannot be followed to its end, which ends the request with "error"; "" while it can.

    What either method raises ends the request in the same way, and touches no other.
    """

    pauses: tuple[int, ...]
    problem: str

    def advance(self, token: int) -> None:
        """Told of every token in its order."""

    def mask(self, out: np.ndarray) -> bool:
        """Writes which tokens may come, one bit each [ceil(V / 32)] uint32; whether that holds for one token only, or until a pause."""


@dataclasses.dataclass(eq=False)
class Request:
    """One prompt to be continued. Setting `cancelled` ends it soon; its last piece then says "cancelled".

    Attributes:
      prompt: token ids.
      sampling: how.
      priority: of those that wait, the lowest come first; the highest give way first where the cache is full.
      time_limit: seconds from when it is asked for, those of waiting too, until it is ended with what it has.
      seconds_per_piece: how long a piece may take to come, from the first on; None for as many tokens a dispatch as is quickest.
      constraint: what its tokens must be like; of this request alone.
      paced: is drawn no more than a few dispatches ahead of who reads its pieces, stands still then, and gives way to those that wait. What
        it draws does not change.
      forced: tokens that are taken, all of them, as if they had been drawn; None to draw. The request ends with the last one, "length".
      cancelled_for: what it is counted as, if it is cancelled: "stop" where all that was wanted of it had come. To be set before.
      weights_version: of the weights that it is answered with; None until it is taken up. The engine says so.
      routed_experts_from: tokens of the prompt, its first ones, whose experts are known already: those that are told begin behind them.
      adapter: name of the one that it is answered with, as it is when the request is taken up; None for none.
      hook: what is asked of the inside; a hook that asks for nothing is none.
      salt: what else its keys and values depend on beside its tokens; prefixes are shared among requests of one salt only.
      cached_tokens: of the prompt, those that were found in kept prefixes when it was read for the first time. The engine says so.
    """

    prompt: Sequence[int]
    sampling: Sampling
    cancelled: bool = False
    priority: int = 0
    time_limit: float | None = None
    seconds_per_piece: float | None = None
    paced: bool = False
    constraint: Constraint | None = None
    forced: Sequence[int] | None = None
    cancelled_for: FinishReason = "cancelled"
    routed_experts_from: int = 0
    adapter: str | None = None
    salt: bytes = b""
    weights_version: int | str | None = None
    hook: Hook | None = None
    cached_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Piece:
    """The next tokens of a request, in order; the last piece of a request has a `finish_reason`, and may have no tokens; nor has
    one of a request whose hook keeps something of its prompt.

    It ends with "stop" at a stop token, which is its last token, with "length" at max_tokens or at the end of the context, with "timeout"
    at its time limit, with "cancelled" where that was asked for, and with "error" where it, or the engine, failed: then `error` says why.
    One that is `anew` has no tokens: those before it count no more, and the request begins again from its prompt.
    Log-probabilities are under the model's own distribution: before bias, penalties, temperature, filters and masks; those that are
    processed under the one that tokens were drawn from, after all that.
    """

    request: Request
    tokens: list[int]
    logprobs: list[float]  # natural log, one per token
    top_logprobs: list[dict[int, float]]  # one per token; the most probable ids, empty if not asked for
    finish_reason: FinishReason | None
    routes: np.ndarray | None = None  # [n, L, A] experts of the next n tokens that went through the model, from `routed_experts_from` on
    error: str | None = None
    anew: bool = False
    weights_version: int | str | None = None  # of the weights that drew the tokens
    given_logprobs: list[dict[int, float]] | None = None  # one per token; of the ids that were given
    processed_logprobs: list[float] | None = None  # one per token
    top_processed_logprobs: list[dict[int, float]] | None = None  # one per token; the most probable ids, of those that could be drawn
    captured: dict[str, tuple[int, np.ndarray]] | None = None  # what its hook keeps: from which position on, and the next values [n, ...]


@dataclasses.dataclass
class Stats:
    """What an engine has done so far.

    Attributes:
      requests: that have ended.
      generated: tokens drawn; those drawn again after a preemption are not counted.
      computed: prompt tokens that were read.
      reused: prompt tokens that were found in kept prefixes.
      preemptions: times that a request lost its pages.
      rows, busy_rows: steps of slots while requests waited, and those of them that drew a token.
    """

    requests: int = 0
    generated: int = 0
    computed: int = 0
    reused: int = 0
    preemptions: int = 0
    rows: int = 0
    busy_rows: int = 0

    @property
    def occupancy(self) -> float:
        """Share of the slots that drew a token, over all steps while requests waited."""
        return self.busy_rows / self.rows if self.rows else 1.0


def check_prompt(prompt: Sequence[int], config: Config, context: int, *, room: int = 1) -> None:
    """Raises ValueError where a prompt is empty, holds an id outside the vocabulary, or leaves less than `room` in the context."""
    _check_ids("a prompt", prompt, config)
    check_length("prompt", len(prompt), config, context, room=room)


def check_length(what: str, count: int, config: Config, context: int, *, room: int = 0, least: bool = False) -> None:
    """Raises ValueError where so many tokens leave less than `room` in the context. What is said of their number needs none of them.

    Args:
        least: there are so many at least; they are not counted yet.
    """
    if count + room > context:
        has = f"{what} has {'at least ' if least else ''}{count:,} tokens"
        raise ValueError(f"{has} but context is {context:,}; {_larger(count + room, config)}shorten the {what}.")


def check_forced(request: Request, config: Config, context: int) -> None:
    """Raises ValueError where the forced tokens of a request, whose prompt is checked, cannot all be taken."""
    forced, sampling = request.forced, request.sampling
    _check_ids("a replay", forced, config)
    total = len(request.prompt) + len(forced)
    if total > context:
        raise ValueError(
            f"prompt and tokens have {len(request.prompt):,} + {len(forced):,} tokens but context is {context:,}; "
            f"{_larger(total, config)}shorten them."
        )
    if not sampling.ignore_eos or sampling.stop_token_ids or request.constraint is not None:
        raise ValueError(
            "forced tokens are all taken, so that nothing may end or mask a request with them; got a sampling that stops, or a constraint; "
            "pass ignore_eos=True, no stop_token_ids and no constraint."
        )


def check_offset(request: Request, *, routed: bool) -> None:
    """Raises ValueError where the experts of a request's tokens cannot be told from where it says; `routed`: the engine reports them."""
    start, most = request.routed_experts_from, len(request.prompt)
    if isinstance(start, bool) or not isinstance(start, numbers.Integral) or not 0 <= start <= most:
        raise ValueError(
            f"routed_experts_from must be a whole number from 0 to the prompt's {most:,} tokens; got {quoted(start, 40)}; pass as many as "
            "have known experts, the length of the turn before's routed_experts."
        )
    if start and not routed:
        raise ValueError(
            f"routed_experts_from needs an LLM that reports experts; got {quoted(start, 40)}; make it with routed_experts=True, or leave "
            "routed_experts_from out."
        )


def check_room(request: Request, own: int, room: int) -> None:
    """Raises ValueError where a request has more biases or stop tokens, its own and the model's `own`, than there is room for."""
    most = max(len(request.sampling.logit_bias), len(request.sampling.stop_token_ids) + own)
    if most > room:
        raise ValueError(f"a request may have at most {room} biases and {room} stop tokens, the model's own included; got {most}.")


def _check_ids(what: str, tokens: Sequence[int], config: Config) -> None:
    if len(tokens) == 0:
        raise ValueError(f"{what} needs at least one token; got none; pass some text or token ids.")
    try:
        ids = np.asarray(tokens)
    except ValueError:
        ids = np.asarray([None])
    if ids.dtype.kind in "fO" and all(type(token) is int for token in tokens):  # too large for NumPy's integers
        ids = np.asarray(tokens, object)
    elif ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"{what} of token ids must be a flat sequence of integers; got {quoted(tokens, 60)}; pass a list of ints.")
    outside = ids[(ids < 0) | (ids >= config.vocab_size)]
    if len(outside):
        raise ValueError(
            f"token ids must lie in 0 ... {config.vocab_size - 1:,}; got {_number(int(outside[0]))}; "
            "encode the prompt with the model's tokenizer."
        )


def _number(value: int) -> str:
    return f"{value:,}" if abs(value) < 2**64 else quoted(value, 40)


def _larger(tokens: int, config: Config) -> str:
    """Which context would do, if the model has one."""
    larger = 1 << (tokens - 1).bit_length()
    return f"pass context={larger} or " if larger <= config.max_position_embeddings else ""
