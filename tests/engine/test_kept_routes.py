"""Experts of prefixes that are kept: those of a request are the same wherever its beginning comes from, and are told from where asked."""

import dataclasses
import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from remembering import VOCABULARY, Remembering, experts_of, following

import gptoss_jax as gj
from gptoss_jax.engine.readers import Change, Outlet
from gptoss_jax.engine.requests import Request, check_offset
from gptoss_jax.engine.scheduling.live import Live
from gptoss_jax.engine.scheduling.pages import Pages
from gptoss_jax.engine.sizes import sizes
from gptoss_jax.engine.stepping.rounds import Rounds

PAGE, CONTEXT, WINDOW = 4, 40, 6
CONFIG = dataclasses.replace(gj.TINY, sliding_window=WINDOW)


def rounds(*, slots=3, tokens=CONTEXT, reuse=True):
    size = sizes(CONFIG, slots=slots, context=CONTEXT, chunk=12, cache_tokens=tokens, page=PAGE)
    return Rounds(Remembering(size), size, window=WINDOW, reuse=reuse)


def ask(engine, order, request, outlet):
    budget = min(request.sampling.max_tokens, CONTEXT - len(request.prompt))
    live = Live(request, order, np.array(request.prompt, np.int32), budget, 0, outlet, page=PAGE, window=WINDOW)
    engine.add([live])
    outlet.asked += 1
    return live


def run(engine, arrivals, *, cancelled=(), change=lambda: None):
    """Tokens and experts of requests that come one after another, each so many rounds after the one before, as (tokens, routes, reason)."""
    outlet, told, routes, reasons, todo = Outlet(None), {}, {}, {}, list(arrivals)
    wait = 0
    for _ in range(10_000):
        while todo and wait <= 0:
            wait, request = todo.pop(0)
            told[request], routes[request] = [], []
            ask(engine, len(told), request, outlet)
        wait -= 1
        for request in list(told):
            if request in cancelled and len(told[request]) >= 2:
                request.cancelled = True
        change()
        engine.step()
        for piece in engine.take_out().get(outlet, ()):
            if piece.anew:
                told[piece.request], routes[piece.request] = [], []
            told[piece.request] += piece.tokens
            routes[piece.request] += [] if piece.routes is None else [piece.routes]
            reasons[piece.request] = piece.finish_reason
        if not todo and engine.idle:
            break
    return [(told[one], np.concatenate(routes[one]) if routes[one] else None, reasons[one]) for one in told]


def check(request, tokens, routes, reason):
    whole, version = list(request.prompt), request.weights_version
    for token in tokens:
        assert token == following(whole, version)
        whole.append(token)
    if reason == "length":
        assert len(tokens) == min(request.sampling.max_tokens, CONTEXT - len(request.prompt))
    if tokens:
        np.testing.assert_array_equal(routes, experts_of(whole[:-1], version)[request.routed_experts_from :])


def request(prompt, most=9, start=0, priority=0):
    return Request(prompt, gj.Sampling(max_tokens=most), routed_experts_from=start, priority=priority)


BEGINNINGS = [np.random.default_rng(i).integers(0, VOCABULARY, 33).tolist() for i in range(3)]


@st.composite
def arrivals(draw):
    out = []
    for _ in range(draw(st.integers(1, 12))):
        begins = BEGINNINGS[draw(st.integers(0, 2))][: draw(st.integers(0, 33))]
        prompt = begins + draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=not begins, max_size=5))
        start = draw(st.one_of(st.just(0), st.integers(0, len(prompt))))
        wait, priority = draw(st.integers(0, 4)), draw(st.integers(0, 1))
        out.append((wait, request(prompt, draw(st.integers(1, 20)), start, priority)))
    return out


@settings(max_examples=40, deadline=None)
@given(arrivals(), st.sampled_from([CONTEXT, 48, 64, 200]), st.booleans(), st.data())
def test_experts_are_the_same_wherever_a_prompt_s_beginning_comes_from(arrivals, tokens, reuse, data):
    engine = rounds(tokens=tokens, reuse=reuse)
    cancelled = data.draw(st.lists(st.sampled_from([one for _, one in arrivals]), max_size=2))
    for (_, one), (drawn, routes, reason) in zip(arrivals, run(engine, arrivals, cancelled=cancelled), strict=True):
        check(one, drawn, routes, reason)
        assert reason == "length" or (one in cancelled and reason == "cancelled")
    assert engine.stats.reused == 0 or reuse


def test_what_is_lost_and_found_again_did_happen():
    """The loop above in numbers: prefixes are found, given away, and requests give way, with the same experts."""
    engine, rng = rounds(tokens=48), np.random.default_rng(0)
    prompts = [BEGINNINGS[i % 2][: rng.integers(4, 30)] + [i % VOCABULARY] for i in range(60)]
    asked = [(int(rng.integers(0, 3)), request(prompt, 12, int(rng.integers(0, len(prompt) + 1)))) for prompt in prompts]
    for (_, one), (tokens, routes, reason) in zip(asked, run(engine, asked), strict=True):
        check(one, tokens, routes, reason)
    assert engine.stats.reused > 200 and engine.stats.preemptions > 0 and reason == "length"
    blocks = engine.scheduler.pages[0]._blocks.values()
    assert any(block.full is None for block in blocks), "what is left of some is their page of sliding layers"
    assert all((block.full is None) == (block.routes is None) for block in blocks)


@pytest.mark.parametrize("restart", [True, False])
def test_weights_that_change_on_the_way_leave_no_experts_behind(restart):
    engine, rng, versions = rounds(tokens=100), np.random.default_rng(restart), set()

    def change():
        if not rng.integers(0, 8):
            versions.add(len(versions) + 1)
            swap = functools.partial(Rounds.swap, weights={}, version=len(versions))
            engine.add_change(Change(swap, restart=restart))

    prompts = [BEGINNINGS[i % 2][: rng.integers(4, 30)] + [i % VOCABULARY] for i in range(60)]
    asked = [(int(rng.integers(0, 3)), request(prompt, 12, int(rng.integers(0, len(prompt) + 1)))) for prompt in prompts]
    for (_, one), answer in zip(asked, run(engine, asked, change=change), strict=True):
        check(one, *answer)
    assert engine.stats.reused > 50 and len({one.weights_version for _, one in asked}) > 3


def test_a_prefix_that_is_still_on_its_way_is_shared():
    """Several of one dispatch go on from blocks that this dispatch computes."""
    engine = rounds(slots=6, tokens=400)
    same = [(0, request(BEGINNINGS[0][:29] + [i % VOCABULARY], 5)) for i in range(6)]
    for (_, one), (tokens, routes, reason) in zip(same, run(engine, same), strict=True):
        check(one, tokens, routes, reason)
    assert engine.stats.reused >= 5 * 24 and engine.stats.computed < 2 * 30


def test_the_experts_go_with_the_page_of_full_layers():
    pages = Pages((0, 2), (0, 4), window_blocks=1, reuse=True)
    one, routes = pages.keep(b"a", pages.take_full(), pages.take_ring()), np.zeros((4, 2, 3), np.uint8)
    one.routes = routes
    pages.full.release(one.full), pages.ring.release(one.ring)
    for _ in range(4):
        pages.take_ring()
    assert one.ring is None and one.routes is routes
    pages.keep(b"a", one.full, 3)
    assert pages.longest([b"a"]) == 1 and one.routes is routes
    pages.take_full(), pages.take_full()
    assert one.full is None and one.routes is None
    assert Pages((0, 2), (0, 4), window_blocks=1, reuse=False).keep(b"a", 0, 0) is None


@pytest.mark.parametrize("start", [-1, 4, True, 1.0, "1", None, float("nan"), 10**400])
def test_where_experts_begin_is_a_place_in_the_prompt(start):
    with pytest.raises(ValueError, match=r"^routed_experts_from must be a whole number from 0 to the prompt's 3 tokens; got .{1,60}; pass"):
        check_offset(request([1, 2, 3], start=start), routed=True)


def test_an_engine_that_reports_none_is_not_asked_from_where():
    check_offset(request([1, 2, 3]), routed=False)
    check_offset(request([1, 2, 3], start=np.int64(3)), routed=True)
    with pytest.raises(
        ValueError, match=r"^routed_experts_from needs an LLM that reports experts; got 2; make it with routed_experts=True"
    ):
        check_offset(request([1, 2, 3], start=2), routed=False)


@pytest.mark.parametrize("seed", range(4))
def test_readers_that_share_all_they_hold_do_not_hold_each_other_up_for_ever(seed):
    """Taking the pages of one that shares them frees none; where nothing else can go on, those before it give way too."""
    engine, rng = rounds(tokens=CONTEXT), np.random.default_rng(seed)
    asked = [(0, request(BEGINNINGS[i % 2][: rng.integers(4, 33)] + [i % VOCABULARY], 3)) for i in range(40)]
    assert {reason for _, _, reason in run(engine, asked)} == {"length"}
