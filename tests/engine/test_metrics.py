"""What an engine counts: every request once, under the reason that its caller saw, and all numbers of one moment."""

import math
import threading

from hypothesis import given
from hypothesis import strategies as st
from mixed_requests import MIXED, SHARED, fresh, make, nothing_is_held, prompt
import pytest

from gptoss_jax.engine import metrics as counted
from gptoss_jax.engine.requests import Request
from gptoss_jax.sampling.options import Sampling

compiles = pytest.mark.thorough
ENDLESS = Sampling(temperature=0, ignore_eos=True, max_tokens=90)


@pytest.fixture(scope="module")
def engine():
    return make()


def change(engine, before):
    """What was counted since then."""
    nothing_is_held(engine)
    after = engine.metrics
    whole = [name for name in counted.Metrics.__dataclass_fields__ if isinstance(getattr(after, name), int)]
    numbers = {name: getattr(after, name) - getattr(before, name) for name in whole}
    ended = {reason: n for reason in after.finished if (n := after.finished[reason] - before.finished[reason])}
    seconds = [name for name in counted.Metrics.__dataclass_fields__ if "seconds" in name]
    times = {name: getattr(after, name).count - getattr(before, name).count for name in seconds}
    return numbers, ended, times


@compiles
@pytest.mark.parametrize("cache_tokens", [None, 112], ids=["roomy", "with preemptions"])
def test_what_is_counted_is_what_came(cache_tokens):
    engine = make(cache_tokens=cache_tokens)
    before, requests, tokens, pieces, firsts = engine.metrics, fresh(), 0, 0, set()
    for piece in engine.run(requests):
        tokens += len(piece.tokens)
        pieces += len(piece.tokens) if piece.request in firsts else 0
        firsts |= {piece.request} if piece.tokens else set()
    numbers, ended, times = change(engine, before)
    assert numbers["generation_tokens"] == tokens == engine.metrics.generation_lengths.sum
    assert numbers["prompt_tokens"] == numbers["prefix_queries"] == sum(len(p) for p, _ in MIXED) == engine.metrics.prompt_lengths.sum
    assert numbers["prefix_hits"] == sum(request.cached_tokens for request in requests)
    assert sum(ended.values()) == len(MIXED) == engine.metrics.requests and ended.keys() <= {"stop", "length"}
    assert times.pop("between_tokens_seconds") == pieces
    assert set(times.values()) == {len(MIXED)}  # one that gave way is one request
    assert (engine.metrics.preemptions > 0) == (cache_tokens is not None)
    assert engine.metrics.running == engine.metrics.waiting == engine.metrics.full_pages_used == engine.metrics.ring_pages_used == 0


@compiles
def test_cached_tokens_are_those_of_the_prompt_that_were_kept(engine):
    ask = lambda text: Request(text, Sampling(temperature=0, max_tokens=2, ignore_eos=True))
    first, second, other = ask(SHARED + prompt(5, 5)), ask(SHARED + prompt(6, 6)), ask(prompt(50, 1234))
    list(engine.run([first]))
    before = engine.metrics
    list(engine.run([second, other]))
    assert (second.cached_tokens, other.cached_tokens) == (48, 0)  # whole pages of 16
    assert engine.metrics.prefix_hits - before.prefix_hits == 48
    list(engine.run([second]))  # the same object again: what it says is of the last time
    assert second.cached_tokens == 48


@compiles
def test_without_kept_prefixes_none_are_looked_for():
    engine = make(prefix_reuse=False)
    list(engine.run(fresh()[:3]))
    assert engine.metrics.prefix_queries == engine.metrics.prefix_hits == 0 < engine.metrics.prompt_tokens


@compiles
def test_every_end_has_its_reason(engine):
    class Broken:
        pauses, problem = (), ""

        def mask(self, out):
            raise RuntimeError("no")

        def advance(self, token): ...

    before = engine.metrics
    late = Request(prompt(3), ENDLESS, time_limit=0.0)
    list(engine.run([late, Request(prompt(3), ENDLESS, constraint=Broken()), Request(prompt(3), Sampling(max_tokens=1, ignore_eos=True))]))
    left = engine.run([Request(prompt(4), ENDLESS, seconds_per_piece=0.0)])
    next(left)
    left.close()
    for reason in ("cancelled", "stop"):
        request = Request(prompt(5), ENDLESS, seconds_per_piece=0.0, cancelled_for=reason)
        for _ in engine.run([request]):
            request.cancelled = True
    numbers, ended, times = change(engine, before)
    assert ended == {"timeout": 1, "error": 1, "length": 1, "cancelled": 2, "stop": 1}
    assert times["request_seconds"] == 3 and numbers["failures"] == 0  # neither cancelled nor failed


@compiles
def test_a_dispatch_that_fails_ends_all_with_an_error():
    engine, broken = make(), threading.Event()
    list(engine.run(fresh()[:1]))
    draw = engine.programs.draw

    def fail(*arguments, **options):
        if broken.is_set():
            broken.clear()
            raise RuntimeError("the device is lost")
        return draw(*arguments, **options)

    engine.programs.draw = fail
    broken.set()
    assert {piece.finish_reason for piece in engine.run(fresh()[:3])} == {"error"}
    assert (engine.metrics.failures, engine.metrics.finished["error"]) == (1, 3)
    list(engine.run(fresh()[:2]))
    assert engine.metrics.requests == 6


@compiles
def test_what_runs_and_what_waits_is_seen_while_it_does(engine):
    pieces = engine.run([Request(prompt(3, i), ENDLESS, seconds_per_piece=0.0, paced=True) for i in range(6)])
    next(pieces)
    now = engine.metrics
    assert 1 <= now.running <= now.slots == 4 and now.running + now.waiting <= 6 and now.full_pages_used > 0 < now.cache_usage <= 1
    pieces.close()
    nothing_is_held(engine)
    assert engine.metrics.cache_usage == 0


@compiles
def test_any_thread_reads_numbers_of_one_moment(engine):
    over, seen, wrong = threading.Event(), [0], []

    def look():
        while not over.is_set():
            now = engine.metrics
            firsts, others = now.first_token_seconds.count, now.between_tokens_seconds.count
            ended, lengths = now.requests, now.generation_lengths
            fits = firsts + others <= now.generation_tokens >= lengths.sum and ended >= lengths.count == now.prompt_lengths.count
            wrong.extend([] if fits and firsts <= now.queue_seconds.count else [now])
            seen[0] += 1

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(3):
        list(engine.run(fresh()[:4]))
    over.set()
    reader.join()
    assert seen[0] and not wrong


def histogram(values, bounds=(1.0, 2.0, 4.0)):
    counts = counted._Counts(bounds)
    for value in values:
        counts.add(value)
    return counts.frozen


@given(st.lists(st.floats(0, 4), min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_lies_in_the_range_where_it_is(values, q):
    found, bounds = histogram(values).quantile(q), (0.0, 1.0, 2.0, 4.0)
    true = sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
    low = max([b for b in bounds if b < true], default=0.0)
    high = min(b for b in bounds if b >= true)
    assert low <= found <= max(high, 1.0)


def test_a_histogram():
    some = histogram([0.5, 1.0, 1.5, 9.0])
    assert (some.counts, some.count, some.mean) == ((2, 1, 0, 1), 4, 3.0)
    assert some.quantile(0.25) == 0.5 and some.quantile(0.5) == 1.0 and some.quantile(1) == 4.0
    nothing = histogram([])
    assert math.isnan(nothing.mean) and math.isnan(nothing.quantile(0.5)) and nothing.count == 0
    for q in (-0.1, 1.1, True, "0.5", None, math.nan):
        with pytest.raises(ValueError, match="q must be a number from 0 to 1"):
            some.quantile(q)


@compiles
def test_each_engine_has_its_own_and_a_new_one_has_none():
    one, other = make(), make()
    assert one.metrics.requests == 0 and one.metrics.slots == 4 and one.metrics.full_pages > 0
    list(one.run(fresh()[:2]))
    assert (one.metrics.requests, other.metrics.requests) == (2, 0)
