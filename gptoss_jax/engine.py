"""The host side of generation: requests in, pieces of their tokens out. Token ids only; knows no text.

Requests run in groups of at most `slots` rows. Every dispatch has one of a few shapes: rows and prompt chunks are rounded
up to powers of two.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import time
from typing import Literal

import jax
import numpy as np

from gptoss_jax import decode, processes, sharding
from gptoss_jax import sampling as sampling_lib
from gptoss_jax.config import Config
from gptoss_jax.model.cache import Cache, init_cache
from gptoss_jax.model.params import Params
from gptoss_jax.sampling import Sampling

FinishReason = Literal["stop", "length"]
STEPS = 64  # most decode steps a dispatch
SMALLEST_CHUNK = 16  # prompt tokens
TOP_LOGPROBS = (0, 5, 20)  # numbers of reported tokens that are compiled for; the next larger one serves


@dataclasses.dataclass(eq=False)
class Request:
    """One prompt to be continued. Setting `cancelled` ends it at the next piece."""

    prompt: Sequence[int]
    sampling: Sampling
    cancelled: bool = False


@dataclasses.dataclass(frozen=True)
class Piece:
    """The next tokens of a request, in order; the last piece of a request has a `finish_reason`."""

    request: Request
    tokens: list[int]
    logprobs: list[float]  # natural log, one per token, under the model's own distribution
    top_logprobs: list[dict[int, float]]  # one per token; the most probable ids, empty if not asked for
    finish_reason: FinishReason | None


class Engine:
    """Continues token sequences with one model.

    Args:
      params, config: the model.
      eos_token_ids: tokens that end every request without `ignore_eos`.
      slots: most requests that run side by side.
      context: most tokens of a prompt and its continuation.
      chunk: most prompt tokens a dispatch.
    """

    def __init__(self, params: Params, config: Config, *, eos_token_ids: Sequence[int], slots: int, context: int, chunk: int = 512):
        for name, value in (("slots", slots), ("context", context), ("chunk", chunk)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer; got {value!r}.")
        if context > config.max_position_embeddings:
            raise ValueError(
                f"context must be at most the model's {config.max_position_embeddings:,} positions; got {context:,}; pass a smaller one."
            )
        self._replicas = 1 if params.partition is None else params.partition.parts("batch")
        if slots % self._replicas:
            raise ValueError(
                f"slots must be a multiple of the mesh's data axis ({self._replicas}); got {slots}; "
                f"pass slots={-(-slots // self._replicas) * self._replicas}."
            )
        self.params, self.config, self.eos_token_ids = params, config, tuple(eos_token_ids)
        self.slots, self.context, self.chunk = slots, context, min(chunk, context)

    def check(self, prompt: Sequence[int], *, room: int = 1) -> None:
        """Raises ValueError where a prompt is empty, holds an id outside the vocabulary, or leaves no room in the context."""
        if len(prompt) == 0:
            raise ValueError("a prompt needs at least one token; got none; pass some text or token ids.")
        try:
            ids = np.asarray(prompt)
        except ValueError:
            ids = np.asarray([None])
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"a prompt of token ids must be a flat sequence of integers; got {str(prompt)[:60]}; pass a list of ints.")
        outside = ids[(ids < 0) | (ids >= self.config.vocab_size)]
        if len(outside):
            raise ValueError(
                f"token ids must lie in 0 ... {self.config.vocab_size - 1:,}; got {int(outside[0]):,}; "
                "encode the prompt with the model's tokenizer."
            )
        if len(prompt) + room > self.context:
            larger = _power_of_two(len(prompt) + room)
            remedy = f"pass context={larger} or " if larger <= self.config.max_position_embeddings else ""
            raise ValueError(f"prompt has {len(prompt):,} tokens but context is {self.context:,}; {remedy}shorten the prompt.")

    def run(self, requests: Sequence[Request], *, seconds_per_piece: float | None = None) -> Iterator[Piece]:
        """Pieces of all requests as they come; those of one request come in order.

        A request ends with "stop" at a stop token, which is its last token, and with "length" at max_tokens or at the
        end of the context.

        Args:
          requests: all are checked before any work is done.
          seconds_per_piece: how long a piece may take to come; None for as many tokens a dispatch as is quickest.

        Raises:
          ValueError: a prompt that `check` refuses, or a sampling that names an id outside the vocabulary.
        """
        for request in requests:
            self.check(request.prompt)
            request.sampling.validate_for(self.config.vocab_size)
        return self._run(sorted(requests, key=lambda r: len(r.prompt)), seconds_per_piece)

    def _run(self, requests, seconds_per_piece):
        while requests := [request for request in requests if not request.cancelled]:
            group, requests = requests[: self.slots], requests[self.slots :]
            yield from self._run_group(group, seconds_per_piece)

    def _run_group(self, requests: Sequence[Request], seconds_per_piece: float | None) -> Iterator[Piece]:
        rows, partition = self._rows(len(requests)), self.params.partition
        budgets = [min(r.sampling.max_tokens or self.context, self.context - len(r.prompt)) for r in requests]
        asked = max((r.sampling.logprobs or 0) for r in requests)
        top = next((n for n in TOP_LOGPROBS if n >= asked), asked)
        filler = rows - len(requests)
        sampling = sampling_lib.stack(
            [r.sampling for r in requests] + [Sampling(temperature=0)] * filler,
            vocab_size=self.config.vocab_size,
            eos_token_ids=self.eos_token_ids,
            prompts=[r.prompt for r in requests] + [()] * filler,
            partition=partition,
        )
        state = decode.init_state(self._cache(rows), sampling, budgets + [0] * filler, partition=partition)
        open_requests = dict(enumerate(requests))

        for tokens, counts, ends in self._chunks([r.prompt for r in requests], rows):
            state, chunk = decode.prefill_chunk(self.params, self.config, state, tokens, counts, ends, top_logprobs=top)
            if ends.any():
                yield from _pieces(chunk, open_requests)
        limit = 4
        while open_requests:
            cancelled = [row for row, request in open_requests.items() if request.cancelled]
            for row in cancelled:
                del open_requests[row]
            if cancelled:
                ended = sharding.put(np.isin(np.arange(rows), cancelled), partition, ("batch",))
                state = state.replace(done=state.done | ended)
                continue
            if seconds_per_piece is None:
                limit = STEPS
            began = time.perf_counter()
            state, chunk = decode.decode_chunk(self.params, self.config, state, np.int32(limit), steps=STEPS, top_logprobs=top)
            pieces = _pieces(chunk, open_requests)
            if seconds_per_piece is not None:
                slower = time.perf_counter() - began > seconds_per_piece
                if partition is not None and partition.processes > 1:
                    slower = bool(processes.broadcast(np.array(slower)))  # all must ask for as many steps
                limit = max(1, limit // 2) if slower else min(STEPS, limit + 1)
            yield from pieces

    def score(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Natural-log probability of every token after the first of each sequence, under the model's own distribution.

        Returns:
          One float32 array [len(sequence) - 1] per sequence.
        """
        for sequence in sequences:
            self.check(sequence, room=0)
        scores: list[list[np.ndarray]] = [[] for _ in sequences]
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        for first in range(0, len(order), self.slots):
            group = order[first : first + self.slots]
            rows = self._rows(len(group))
            cache = self._cache(rows)
            inputs = self._chunks([sequences[i][:-1] for i in group], rows)
            targets = self._chunks([sequences[i][1:] for i in group], rows)
            for (tokens, counts, _), (target, _, _) in zip(inputs, targets, strict=True):
                logprobs, cache = decode.score_chunk(self.params, self.config, cache, tokens, counts, target)
                for row, i in enumerate(group):
                    scores[i].append(np.asarray(logprobs)[row, : counts[row]])
        return [np.concatenate(parts) if parts else np.zeros(0, np.float32) for parts in scores]

    def _rows(self, requests: int) -> int:
        """Rows of a batch for so many requests: a power of two that the mesh's replicas can share, or all slots."""
        return min(self.slots, -(-_power_of_two(requests) // self._replicas) * self._replicas)

    def _cache(self, rows: int) -> Cache:
        dtype = self.params.embedding.dtype
        return init_cache(self.config, rows, self.context, chunk=self.chunk, dtype=dtype, partition=self.params.partition)

    def _chunks(self, sequences: Sequence[Sequence[int]], rows: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Rounds of (tokens [rows, T], how many of them count [rows], rows that end here [rows]) until all are fed."""
        done, longest = 0, max(map(len, sequences), default=0)
        while done < longest:
            T = min(self.chunk, max(SMALLEST_CHUNK, _power_of_two(longest - done)))
            tokens, counts, ends = np.zeros((rows, T), np.int32), np.zeros(rows, np.int32), np.zeros(rows, bool)
            for row, sequence in enumerate(sequences):
                part = np.asarray(sequence[done : done + T], np.int32)
                tokens[row, : len(part)], counts[row] = part, len(part)
                ends[row] = done < len(sequence) <= done + T
            yield tokens, counts, ends
            done += T


def _pieces(chunk: decode.Chunk, open_requests: dict[int, Request]) -> list[Piece]:
    """What a chunk holds for each open request; those that ended are no longer open."""
    chunk = jax.device_get(chunk)
    pieces = []
    for row, request in list(open_requests.items()):
        n = int(chunk.count[row])
        tokens = chunk.sampled.tokens[row, :n].tolist()
        asked = request.sampling.logprobs or 0
        top = [
            dict(zip(ids[:asked].tolist(), values[:asked].tolist(), strict=True))
            for ids, values in zip(chunk.sampled.top_tokens[row, :n], chunk.sampled.top_logprobs[row, :n], strict=True)
        ]
        reason = None
        if chunk.done[row] and n:
            reason = "stop" if chunk.stopped[row] else "length"
            del open_requests[row]
        if n:
            pieces.append(Piece(request, tokens, chunk.sampled.logprobs[row, :n].tolist(), top, reason))
    return pieces


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
