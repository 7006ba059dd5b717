"""What an engine does and has done, in numbers: counted by its thread as it goes, read by any thread as it stood after one round. No jax.

A request costs some microseconds here, a piece one or two, a token nothing. Who reads takes no lock, and nobody waits for who reads.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import math
import numbers
import time
from types import MappingProxyType
from typing import get_args

from gptoss_jax.engine.requests import FinishReason, Piece, Stats
from gptoss_jax.engine.scheduling.live import Live
from gptoss_jax.engine.scheduling.pages import Pages
from gptoss_jax.quoting import quoted

# Bounds of ranges, those that vLLM has, so that its dashboards show ours beside its own.
FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
BETWEEN_TOKENS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
WHOLE = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
QUICKER = (0.0005, 0.001, 0.0025, 0.005)  # and those of a small model
QUICKER_WHOLE = (0.001, 0.003, 0.01, 0.03, 0.1)
TOKENS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))


@dataclasses.dataclass(frozen=True)
class Histogram:
    """How many values fell into which range.

    Attributes:
      bounds: the largest value of each range but the last, which has none; ascending.
      counts: [len(bounds) + 1] values in each range.
      sum: of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    def __repr__(self) -> str:
        return f"Histogram(count={self.count}, mean={self.mean:.4g})"

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """NaN where there is no value."""
        return self.sum / self.count if self.count else math.nan

    def quantile(self, q: float) -> float:
        """The value that the share `q` of all does not exceed, as if values lay evenly in each range; NaN where there is none.

        Where it lies in the last range, that one's lower bound: it is at least that.
        """
        if isinstance(q, bool) or not isinstance(q, numbers.Real) or not 0 <= q <= 1:
            raise ValueError(f"q must be a number from 0 to 1; got {quoted(q)}; pass 0.5 for the median.")
        if not self.count:
            return math.nan
        wanted = q * self.count
        upto = list(itertools.accumulate(self.counts))
        i = next(i for i, so_far in enumerate(upto) if so_far >= wanted and self.counts[i])
        if i == len(self.bounds):
            return self.bounds[-1]
        low = self.bounds[i - 1] if i else 0.0
        return low + (self.bounds[i] - low) * (wanted - (upto[i] - self.counts[i])) / self.counts[i]


@dataclasses.dataclass(frozen=True)
class Metrics:
    """An engine as it stood after one of its rounds, the last one; what is counted, is counted since it was made.

    Seconds are those of a monotonic clock, from when a request was asked for. One that gave way and was read again is one request.

    Attributes:
      running: requests that have a slot.
      waiting: all others that are open, in the queue or with their prompts being read; those that gave way too.
      slots: as many requests as may run.
      full_pages, full_pages_used: of the cache, for full layers; and those of them that requests have. Kept prefixes that nobody uses
        are not counted: they give way.
      ring_pages, ring_pages_used: likewise for sliding layers.
      prompt_tokens: of requests whose first token has come.
      generation_tokens: that came; not those that are drawn again.
      prefix_queries: tokens of those prompts that kept prefixes were looked through for; 0 where none are kept.
      prefix_hits: those of them that were found there, and were not computed again.
      preemptions: times that a request lost its pages.
      asleep: whether it sleeps, or is about to, see `LLM.sleep`: its cache is not there then.
      failures: times that a dispatch failed and the engine began anew.
      finished: requests that ended, by reason: those of `Completion`. "cancelled" are those that were left, too; a stop string is a "stop".
      queue_seconds: until a request was taken up for the first time.
      prefill_seconds: from then to its first token.
      first_token_seconds: until its first token.
      between_tokens_seconds: from one token to the next; tokens that came together have equal parts of the time since those before.
      decode_seconds: from a request's first token to its last; as what follows, of requests that were not cancelled and did not fail.
      request_seconds: until its end.
      prompt_lengths: tokens of its prompt.
      generation_lengths: tokens of its answer.
    """

    running: int
    waiting: int
    slots: int
    full_pages: int
    full_pages_used: int
    ring_pages: int
    ring_pages_used: int
    prompt_tokens: int
    generation_tokens: int
    prefix_queries: int
    prefix_hits: int
    preemptions: int
    asleep: bool
    failures: int
    finished: Mapping[FinishReason, int]
    queue_seconds: Histogram
    prefill_seconds: Histogram
    first_token_seconds: Histogram
    between_tokens_seconds: Histogram
    decode_seconds: Histogram
    request_seconds: Histogram
    prompt_lengths: Histogram
    generation_lengths: Histogram

    @property
    def cache_usage(self) -> float:
        """Share of the cache's pages that requests have, 0 to 1: of the kind that is scarcer."""
        return max(self.full_pages_used / self.full_pages, self.ring_pages_used / self.ring_pages)

    @property
    def requests(self) -> int:
        """All that have ended."""
        return sum(self.finished.values())


class Tally:
    """Counts what becomes of requests; the engine's thread alone calls it.

    Args:
      slots: of the engine.
      reuse: whether prefixes are kept.
    """

    def __init__(self, *, slots: int, reuse: bool):
        self._slots, self._reuse = slots, reuse
        self._prompt_tokens = self._generation_tokens = self._prefix_hits = self._failures = 0
        self._finished = dict.fromkeys(get_args(FinishReason), 0)
        self._queue, self._prefill, self._decode, self._whole = (_Counts(QUICKER_WHOLE + WHOLE) for _ in range(4))
        self._first, self._between = _Counts(FIRST_TOKEN), _Counts(QUICKER + BETWEEN_TOKENS)
        self._prompts, self._answers = _Counts(TOKENS), _Counts(TOKENS)

    def taken(self, live: Live) -> None:
        """A request was taken up for the first time."""
        live.times.taken = now = time.monotonic()
        self._queue.add(now - live.times.came)

    def told(self, live: Live, piece: Piece) -> None:
        """The next tokens of a request came, and perhaps its end."""
        times, n = live.times, len(piece.tokens)
        if n:
            now = time.monotonic()
            self._generation_tokens += n
            if math.isnan(times.first):
                times.first = now
                self._first.add(now - times.came)
                self._prefill.add(now - times.taken)
                self._prompt_tokens += len(live.prompt)
                self._prefix_hits += live.request.cached_tokens
            else:
                self._between.add((now - times.last) / n, n)
            times.last = now
        if piece.finish_reason:
            self.ended(live, piece.finish_reason)

    def ended(self, live: Live, reason: FinishReason) -> None:
        """A request ended."""
        if reason == "cancelled":
            reason = live.request.cancelled_for
        self._finished[reason] += 1
        if reason in ("cancelled", "error"):
            return
        times = live.times
        self._whole.add(time.monotonic() - times.came)
        self._prompts.add(len(live.prompt))
        self._answers.add(len(live.tokens))
        if live.tokens:
            self._decode.add(times.last - times.first)

    def failed(self) -> None:
        """The engine begins anew."""
        self._failures += 1

    def metrics(self, stats: Stats, *, asleep: bool, running: int, waiting: int, pages: Sequence[Pages]) -> Metrics:
        """All of it as it stands."""
        full, ring = [one.full for one in pages], [one.ring for one in pages]
        return Metrics(
            running=running,
            waiting=waiting,
            slots=self._slots,
            full_pages=sum(pool.count for pool in full),
            full_pages_used=sum(pool.used for pool in full),
            ring_pages=sum(pool.count for pool in ring),
            ring_pages_used=sum(pool.used for pool in ring),
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            prefix_queries=self._prompt_tokens if self._reuse else 0,
            prefix_hits=self._prefix_hits,
            preemptions=stats.preemptions,
            asleep=asleep,
            failures=self._failures,
            finished=MappingProxyType(dict(self._finished)),
            queue_seconds=self._queue.frozen,
            prefill_seconds=self._prefill.frozen,
            first_token_seconds=self._first.frozen,
            between_tokens_seconds=self._between.frozen,
            decode_seconds=self._decode.frozen,
            request_seconds=self._whole.frozen,
            prompt_lengths=self._prompts.frozen,
            generation_lengths=self._answers.frozen,
        )


class _Counts:
    """A `Histogram` that grows."""

    def __init__(self, bounds: Sequence[float]):
        self._bounds, self._counts, self._sum = tuple(bounds), [0] * (len(bounds) + 1), 0.0
        self._frozen: Histogram | None = None

    def add(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times
        self._frozen = None

    @property
    def frozen(self) -> Histogram:
        if self._frozen is None:
            self._frozen = Histogram(self._bounds, tuple(self._counts), self._sum)
        return self._frozen
