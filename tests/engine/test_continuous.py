"""Continuous batching: a request's tokens and log-probabilities are the same to the bit, whatever runs, is kept or gives way beside it."""

import itertools

import jax
from mixed_requests import CONTEXT, MIXED, SLOTS, everything, fresh, make, nothing_is_held, prompt, sampling
import numpy as np
import pytest

from gptoss_jax.engine.requests import Request
from gptoss_jax.sampling.options import Sampling


@pytest.fixture(
    scope="module", params=[pytest.param(None, id="exact"), pytest.param("float8_e4m3fn", id="fp8", marks=pytest.mark.thorough)]
)
def cache_dtype(request):
    return request.param


@pytest.fixture(scope="module")
def alone(cache_dtype):
    """Each of MIXED by itself, in an engine of its own that keeps no prefixes."""
    return [everything(make(prefix_reuse=False, cache_dtype=cache_dtype), [Request(*one)])[0] for one in MIXED]


def test_alone_is_a_reasonable_reference(alone):
    for (p, s), (tokens, logprobs, top, reasons) in zip(MIXED, alone, strict=True):
        assert len(tokens) == len(logprobs) == len(top) == min(s.max_tokens, CONTEXT - len(p)) or tokens[-1] == 319
        assert all(len(one) == (s.logprobs or 0) for one in top) and reasons in (["length"], ["stop"])


@pytest.mark.parametrize("reuse", [True, False])
def test_in_any_order_with_prefixes_kept_or_not(alone, cache_dtype, reuse):
    engine = make(prefix_reuse=reuse, cache_dtype=cache_dtype)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(MIXED))
        got = everything(engine, fresh([MIXED[i] for i in order]))
        assert got == [alone[i] for i in order]
        nothing_is_held(engine)
    assert (engine.stats.reused > 0) == reuse


@pytest.mark.quick("exact-96")
@pytest.mark.parametrize("tokens", [96, 128])
def test_where_the_cache_runs_out(alone, cache_dtype, tokens):
    """Requests give way, are computed again, and nobody can tell."""
    engine = make(cache_tokens=tokens, cache_dtype=cache_dtype)
    assert everything(engine, fresh()) == alone
    assert engine.stats.preemptions > 0
    nothing_is_held(engine)


def test_in_small_pieces_and_beside_another_run(alone, cache_dtype):
    engine = make(cache_dtype=cache_dtype)
    first, second = fresh(seconds_per_piece=0.0), fresh(MIXED[::-1])
    runs = [engine.run(first), engine.run(second)]
    tokens = {id(r): [] for r in first + second}
    for piece in itertools.chain.from_iterable(itertools.zip_longest(*runs)):
        if piece is not None:
            tokens[id(piece.request)] += piece.tokens
    wanted = [one[0] for one in alone]
    assert [tokens[id(r)] for r in first] == wanted and [tokens[id(r)] for r in second] == wanted[::-1]
    nothing_is_held(engine)


@pytest.mark.thorough
def test_a_wide_chunk_of_prompts_reads_several_blocks_of_one_request_at_once():
    """Blocks of one prompt in one dispatch see each other's keys: the same next token as where they come one after another."""
    long = [(prompt(90, 7), sampling(2, max_tokens=6))]
    [(tokens, logprobs, *_)] = everything(make(chunk=96), fresh(long))
    [(again, logprobs_again, *_)] = everything(make(chunk=16), fresh(long))
    assert tokens == again
    np.testing.assert_allclose(logprobs, logprobs_again, atol=1e-5)


# Prefixes


def test_a_shared_prefix_is_computed_once():
    engine, shared = make(), prompt(64, 1)
    requests = [Request(shared + prompt(3, i), sampling(3, max_tokens=2)) for i in range(20)]
    everything(engine, requests)
    assert engine.stats.computed == 64 + 20 * 2  # the last token of each is its slot's first input
    assert engine.stats.reused == 19 * 64


def test_samples_of_one_prompt_share_its_pages():
    engine = make()
    requests = [Request(prompt(90, 1), Sampling(seed=seed, max_tokens=3)) for seed in range(4)]
    most = 0
    for _ in engine.run(requests):
        most = max(most, engine.scheduler.pages[0].full.used)
    assert engine.stats.computed == 80 + 4 * 9
    assert most <= 5 + 4


def test_the_window_of_sliding_layers_is_kept_with_the_prefix():
    """A prefix whose window's pages were given away is computed again from where one is left."""
    engine, shared = make(), prompt(64, 1)
    [wanted] = everything(make(prefix_reuse=False), [Request(shared + [5], sampling(3))])
    [first] = everything(engine, [Request(shared + [5], sampling(3))])
    pages = engine.scheduler.pages[0]
    for page in [pages.take_ring() for _ in range(pages.ring.available)]:
        pages.ring.release(page)
    before = engine.stats.computed
    [second] = everything(engine, [Request(shared + [5], sampling(3))])
    assert engine.stats.computed - before == 64
    assert first == second == wanted
    [third] = everything(engine, [Request(shared + [5], sampling(3))])
    assert engine.stats.computed - before == 64 and third == wanted
    nothing_is_held(engine)


@pytest.mark.thorough
def test_the_least_recently_used_prefix_goes_first():
    engine = make(cache_tokens=2 * CONTEXT)
    one = sampling(3, max_tokens=1)
    for seed in (1, 2, 1, 3):  # 3 needs room: 2 goes
        everything(engine, [Request(prompt(65, seed), one)])
    before = engine.stats.computed
    everything(engine, [Request(prompt(65, 1), one)])
    assert engine.stats.computed == before
    everything(engine, [Request(prompt(65, 2), one)])
    assert engine.stats.computed > before


# Who runs when


def test_slots_are_full_while_requests_wait():
    engine = make()
    requests = [Request(prompt(1 + 7 * i % 60, i), Sampling(temperature=0, max_tokens=8 + i % 20, ignore_eos=True)) for i in range(60)]
    everything(engine, requests)
    assert engine.stats.occupancy > 0.95


@pytest.mark.thorough
def test_priorities_of_those_that_wait():
    engine = make(slots=1)
    requests = [Request(prompt(20, i), sampling(3), priority=priority) for i, priority in enumerate((5, 3, 9, 1, 3))]
    ended = [piece.request.priority for piece in engine.run(requests) if piece.finish_reason]
    assert ended == sorted(ended)


def test_requests_are_taken_as_slots_fall_free():
    taken = []

    def endless():
        for i in itertools.count():
            taken.append(i)
            yield Request(prompt(5, i), sampling(3, max_tokens=4))

    engine = make()
    ended = 0
    pieces = engine.run(endless())
    for piece in pieces:
        ended += piece.finish_reason is not None
        assert len(taken) - ended <= 5 * SLOTS
        if ended == 30:
            break
    pieces.close()
    nothing_is_held(engine)


def test_a_time_limit_ends_a_request_with_what_it_has(monkeypatch):
    engine = make()
    clock = itertools.count()
    monkeypatch.setattr(engine.programs, "now", lambda: float(next(clock)))
    endless = Sampling(temperature=0, ignore_eos=True, max_tokens=80)
    requests = [Request(prompt(5), endless, time_limit=20.0, seconds_per_piece=0.0), Request(prompt(5), endless)]
    wanted = everything(make(), fresh([(prompt(5), endless)]))[0]
    limited, free = everything(engine, requests)
    assert limited[3] == ["timeout"] and 0 < len(limited[0]) < len(free[0])
    assert limited[0] == wanted[0][: len(limited[0])] and free == wanted
    nothing_is_held(engine)


def test_leaving_a_run_gives_back_what_it_had():
    engine = make()
    for stop in range(1, 12, 2):
        pieces = engine.run(fresh())
        for _, _piece in zip(range(stop), pieces, strict=False):
            pass
        pieces.close()
        nothing_is_held(engine)


def test_a_cache_too_small_for_one_context_is_refused():
    with pytest.raises(ValueError, match=r"cache_tokens must hold at least one full context \(96 tokens\) for each of 1 replicas; got 95"):
        make(cache_tokens=95)


# For long


def test_many_mixed_requests_leave_nothing_behind():
    """Cancellations, preemptions, refused ones, prefixes, time limits: no compilation after the first, no page lost."""
    engine = make(cache_tokens=220)
    everything(engine, fresh(MIXED[:2]))
    compiled = []
    listener = lambda name, *_, **__: compiled.append(name) if "compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    rng = np.random.default_rng(0)
    try:
        for _round in range(6):
            requests = fresh([MIXED[i] for i in rng.integers(0, len(MIXED), 30)])
            for i in range(0, 30, 7):
                requests[i].time_limit = 0.0
            with pytest.raises(ValueError):
                engine.run([Request([1000], sampling(1))])
            for piece in engine.run(requests):
                if rng.random() < 0.1:
                    piece.request.cancelled = True
            nothing_is_held(engine)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert not compiled
    assert engine.stats.preemptions > 0
