"""An engine that sleeps: what is asked for before is done, what is asked for then is refused, and its memory is given back meanwhile."""

import asyncio
import gc
import itertools
import threading
import time

from fake_programs import SLOTS, FakePrograms, continuation, make_fake, weights_of
import jax
from mixed_requests import everything, fresh, make, nothing_is_held, prompt
import numpy as np
import pytest

import gptoss_jax as gj
from gptoss_jax.engine import engine as engines
from gptoss_jax.engine.device import shared
from gptoss_jax.engine.readers import Change
from gptoss_jax.engine.requests import Request
from gptoss_jax.engine.stepping.rounds import ASLEEP, Rounds
from gptoss_jax.sampling.options import Sampling

SLEEPS = r"an LLM must be awake to be asked anything; this one sleeps, or is about to; call its wake\(\)\."


@pytest.fixture
def engine(monkeypatch):
    return make_fake(monkeypatch)


def requests(count, **options):
    how = {"max_tokens": 40, "ignore_eos": True}
    return [Request(prompt(20 + i, i), Sampling(seed=i, **how), **options) for i in range(count)]


def tokens(pieces):
    return [token for piece in pieces for token in piece.tokens]


def right(request, got, weights=0):
    return got == continuation(weights, request.prompt, request.sampling.seed, 40)


def test_what_was_asked_for_is_done_before_and_nothing_behind(engine):
    asked, runs = requests(3 * SLOTS), []
    engine.prepare()
    engine.programs.going.clear()
    pieces = engine.run(asked)
    first = threading.Thread(target=lambda: runs.extend(pieces))
    first.start()
    assert engine.programs.stands.wait(60)
    sleeper = threading.Thread(target=engine.changes.sleep)
    sleeper.start()
    while engine._thread._inbox.empty():
        time.sleep(0.001)
    late = engine.run(requests(1))  # checked while it is awake, and asked for behind the order to sleep
    behind = threading.Thread(target=lambda: runs.extend(late))
    behind.start()
    while engine._thread._inbox.qsize() < 2:
        time.sleep(0.001)
    engine.programs.going.set()
    for thread in (sleeper, first, behind):
        thread.join(60)
        assert not thread.is_alive()
    for request in asked:
        assert right(request, tokens(piece for piece in runs if piece.request is request))
    [refused] = [piece for piece in runs if piece.error]
    assert refused.request not in asked and refused.error.startswith("an LLM must be awake") and not refused.tokens
    assert engine.asleep and not engine.programs.ready
    engine.changes.wake()
    [again] = requests(1)
    assert right(again, tokens(engine.run([again])))
    nothing_is_held(engine)


ASKED = {
    "run": lambda engine: engine.run(requests(1)),
    "an iterable": lambda engine: engine.run(iter(requests(1))),
    "aread": lambda engine: asyncio.run(engine.aread(requests(1))),
    "work": lambda engine: engine.work(iter(())),
    "prepare": lambda engine: engine.prepare(),
}


@pytest.mark.parametrize("case", ASKED)
def test_one_that_sleeps_says_what_to_do(engine, case):
    engine.changes.sleep()
    with pytest.raises(RuntimeError, match=SLEEPS):
        ASKED[case](engine)
    assert not engine.programs.ready
    engine.changes.wake()
    [request] = requests(1)
    assert right(request, tokens(engine.run([request])))


def test_streams_that_nobody_reads_do_not_keep_it_awake(engine):
    asked = requests(2 * SLOTS, paced=True)
    runs = [engine.run([request]) for request in asked]
    got = [[next(pieces)] for pieces in runs[:SLOTS]]
    engine.changes.sleep()
    for request, pieces, had in itertools.zip_longest(asked[:SLOTS], runs[:SLOTS], got):
        assert right(request, tokens([*had, *pieces]))


def test_what_an_iterable_has_left_is_refused(engine):
    asked = requests(40)
    ended = {}
    for i, piece in enumerate(engine.run(iter(asked))):
        ended |= {piece.request: piece} if piece.finish_reason else {}
        if i == 0:
            engine.changes.sleep()
    done = [ended[request].finish_reason == "length" for request in asked]
    assert 0 < sum(done) < len(asked) and done == sorted(done, reverse=True)
    assert {piece.error for piece in ended.values() if piece.finish_reason == "error"} == {ASLEEP}


def test_it_may_be_told_twice_and_from_many_threads(engine):
    engine.changes.wake()
    assert not engine.asleep
    threads = [threading.Thread(target=call) for call in 4 * (engine.changes.sleep, engine.changes.wake)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    engine.changes.sleep()
    engine.changes.sleep()
    assert engine.asleep
    engine.changes.wake()
    request = requests(1)[0]
    assert right(request, tokens(engine.run([request])))


def test_weights_may_change_meanwhile_and_prefixes_are_gone(engine):
    [first] = requests(1)
    list(engine.run([first]))
    engine.changes.sleep()
    assert engine.changes.update(weights_of(1), version="b") == "b" and engine.asleep
    engine.changes.wake()
    [again] = requests(1)
    assert right(again, tokens(engine.run([again])), weights=1)
    assert again.weights_version == "b" and again.cached_tokens == 0


def test_one_that_cannot_wake_sleeps_on(engine, monkeypatch):
    def fails(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    engine.changes.sleep()
    with monkeypatch.context() as patch:
        patch.setattr(engine.programs, "renew", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.changes.wake()
    assert engine.asleep and not engine.programs.ready
    engine.changes.wake()
    request = requests(1)[0]
    assert right(request, tokens(engine.run([request])))


def test_who_is_interrupted_while_it_falls_asleep_has_it_awake(engine):
    engine.prepare()
    engine.programs.going.clear()
    asked, got = requests(2), []
    reader = threading.Thread(target=lambda: got.extend(engine.run(asked)))
    reader.start()
    assert engine.programs.stands.wait(60)
    change = Change(Rounds.sleep, last=True)
    engine._thread.change(change)
    change.left = True  # as `result` says where it is interrupted
    engine.programs.going.set()
    reader.join(60)
    assert engine.wait_idle() and not engine.asleep and engine.programs.ready
    assert all(right(request, tokens(piece for piece in got if piece.request is request)) for request in asked)


@pytest.mark.parametrize("how", ["where another was interrupted", "where it slept", "where waking was interrupted"])
def test_it_sleeps_where_it_is_told_to_whatever_became_of_others_who_told_it(engine, how):
    engine.prepare()
    if how == "where another was interrupted":
        engine.programs.going.clear()
        reader = threading.Thread(target=lambda: list(engine.run(requests(1))))
        reader.start()
        assert engine.programs.stands.wait(60)
        other = Change(Rounds.sleep, last=True)
        other.left = True
        engine._thread.change(other)
    else:
        engine.changes.sleep()
        if how == "where it slept":
            other = Change(Rounds.sleep, last=True)
            other.left = True
            engine._thread.change(other)
        else:
            engine.programs.prepare(again=True)
    sleeper = threading.Thread(target=engine.changes.sleep)
    sleeper.start()
    while not engine.programs.going.is_set() and engine._thread._inbox.qsize() < 2:
        time.sleep(0.001)
    engine.programs.going.set()
    sleeper.join(60)
    assert engine.wait_idle() and engine.asleep and not engine.programs.ready
    with pytest.raises(RuntimeError, match=SLEEPS):
        engine.check_awake()
    engine.changes.wake()
    [request] = requests(1)
    assert right(request, tokens(engine.run([request])))


def test_a_sleep_that_is_made_while_it_wakes_is_slept_out(engine, monkeypatch):
    engine.changes.sleep()
    prepare, drops = engine.programs.prepare, [engine.programs.drop]

    def between(**options):
        prepare(**options)
        if drops:  # that of one who was interrupted while he waited, too late to be dropped
            drops.pop()()

    monkeypatch.setattr(engine.programs, "prepare", between)
    engine.changes.wake()
    assert not engine.asleep and engine.programs.ready
    [request] = requests(1)
    assert right(request, tokens(engine.run([request])))


def test_an_llm_sleeps_in_a_block_and_refuses_meanwhile_whatever_it_is_asked(monkeypatch):
    monkeypatch.setattr(engines, "Programs", FakePrograms)
    llm = gj.LLM("nano", slots=2, context=256)
    ask = lambda: llm.generate("What is 4", Sampling(seed=1, max_tokens=12))
    wanted = ask()
    calls = (ask, lambda: llm.chat("Hi"), lambda: llm.score("a", "b"), lambda: llm.replay("a", [1]), llm.prepare)
    with llm.asleep():
        for call in (*calls, lambda: next(llm.stream("Hi")), lambda: next(llm.run([gj.Task(prompt="a")]))):
            with pytest.raises(RuntimeError, match=SLEEPS):
                call()
        assert llm.render("Hi") and llm.metrics().running == 0
        llm.update({"norm": np.asarray(llm.model.params.norm)})
    assert ask() == wanted
    with pytest.raises(ZeroDivisionError), llm.asleep():
        _ = 1 / 0
    assert ask() == wanted


# The programs themselves


def living():
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


@pytest.mark.thorough
def test_cache_and_programs_are_given_back_and_the_bits_are_the_same_afterwards():
    engine = make()
    bare = living()
    wanted = everything(engine, fresh())
    assert engine.wait_idle()
    awake, compiled = living(), len(shared._COMPILED)
    state = sum(array.nbytes for array in jax.tree.leaves(engine.programs._state))
    for _ in range(2):
        engine.changes.sleep()
        assert living() <= bare and awake - living() >= state
        assert len(shared._COMPILED) == compiled - 3
        engine.changes.wake()
        assert living() <= awake and len(shared._COMPILED) == compiled
        assert everything(engine, fresh()) == wanted
    nothing_is_held(engine)


@pytest.mark.thorough
def test_programs_that_another_engine_runs_stay():
    gc.collect()  # of engines of other tests
    one, other = make(), make()
    wanted = everything(one, fresh())
    assert everything(other, fresh()) == wanted
    compiled = dict(shared._COMPILED)
    one.changes.sleep()
    assert shared._COMPILED == compiled and everything(other, fresh()) == wanted
    other.changes.sleep()
    assert len(shared._COMPILED) == len(compiled) - 3
    other.changes.wake()
    assert everything(other, fresh()) == wanted
