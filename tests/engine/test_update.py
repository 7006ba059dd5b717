"""Other weights in an engine that lives: who is answered with which, and that nothing is mixed, compiled or kept."""

import asyncio
import functools
import itertools
import threading

from fake_programs import SLOTS, make_fake, mark, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from mixed_requests import MIXED, everything, fresh, make, nothing_is_held, prompt
import numpy as np
import pytest
from small_model import DIRECTORY, small_model
from updating import arrived, check, compilations, in_the_middle, requests, run, sampling, wanted

import gptoss_jax as gj
from gptoss_jax.engine.engine import Engine
from gptoss_jax.engine.readers import Change
from gptoss_jax.engine.requests import Piece, Request
from gptoss_jax.engine.scheduling.pages import Pages, digests
from gptoss_jax.model.params import init_params
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.turns.completion import CompletionBuilder


@pytest.fixture
def engine(monkeypatch):
    return make_fake(monkeypatch)


@pytest.mark.parametrize("tokens", [None, 144], ids=["roomy", "where requests give way"])
@pytest.mark.parametrize("running", ["finish", "restart"])
def test_each_answer_is_of_one_version_of_weights_alone(monkeypatch, running, tokens):
    engine = make_fake(monkeypatch, cache_tokens=tokens)
    asked, found = requests(12), []
    with in_the_middle(engine, lambda: found.append(run(engine, asked))):
        update = threading.Thread(target=lambda: engine.changes.update(weights_of(1), version=1, running=running))
        update.start()
        arrived(engine)
    update.join(60)
    versions = check(asked, *found)
    assert {*versions} == ({0, 1} if running == "finish" else {1}) and versions == [request.weights_version for request in asked]
    assert (engine.stats.preemptions > 0) == (tokens is not None)
    assert engine.programs.compiled == 1
    nothing_is_held(engine)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_whatever_runs_and_whenever_weights_come(data):
    with pytest.MonkeyPatch.context() as patch:
        engine = make_fake(patch, cache_tokens=data.draw(st.sampled_from([96, 144, None])))
        count = data.draw(st.integers(1, 8))
        asked = requests(count)
        for request in asked:
            request.priority = data.draw(st.integers(0, 2))
            request.seconds_per_piece = data.draw(st.sampled_from([None, 0.0]))
        at = sorted(data.draw(st.sets(st.integers(0, 3 * count), max_size=4)))
        numbers, threads = itertools.count(1), []

        def update():
            number, how = next(numbers), data.draw(st.sampled_from(["finish", "restart"]))
            call = functools.partial(engine.changes.update, weights_of(number), version=number, running=how)
            threads.append(threading.Thread(target=call))
            threads[-1].start()
            if data.draw(st.booleans()):
                threads[-1].join(60)

        check(asked, run(engine, asked, at, [update] * len(at)))
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert mark(engine.params) == max(engine.programs.version, 0)
        nothing_is_held(engine)


def test_what_has_been_taken_up_ends_on_the_old_weights_and_what_waits_gets_the_new(engine):
    asked, found = requests(3 * SLOTS), []
    with in_the_middle(engine, lambda: found.append(run(engine, asked))):
        update = threading.Thread(target=lambda: engine.changes.update(weights_of(1), version=1))
        update.start()
        arrived(engine)
    update.join(60)
    versions = check(asked, *found)
    taken = versions.count(0)
    assert SLOTS <= taken < len(asked) and versions == [0] * taken + [1] * (len(asked) - taken)


def test_a_restart_begins_anew_whom_nobody_has_seen_and_lets_streams_end(engine):
    asked = [Request(prompt(5, i), sampling(i, max_tokens=60), paced=i == 1, seconds_per_piece=0.0) for i in range(SLOTS)]
    pieces, builders = engine.run(asked), {request: CompletionBuilder(request, None) for request in asked}
    engine.programs.stand_after = 9
    while not all(builders[request].result().tokens for request in asked):
        piece = next(pieces)
        builders[piece.request].add(piece)
    assert engine.programs.stands.wait(60)
    before = engine._thread._inbox.qsize()
    update = threading.Thread(target=lambda: engine.changes.update(weights_of(1), version="new", running="restart"))
    update.start()
    arrived(engine, before + 1)
    engine.programs.going.set()
    update.join(60)
    anew = set()
    for piece in pieces:
        anew |= {piece.request} if piece.anew else set()
        builders[piece.request].add(piece)
    assert anew == {asked[0], asked[2]}
    for request, of in zip(asked, (1, 0, 1), strict=True):
        found = builders[request].result()
        assert list(found.tokens) == wanted(request, of) and found.weights_version == ("new" if of else 0)


@pytest.mark.parametrize("enough", [False, True])
def test_a_piece_that_says_so_begins_anew_but_where_what_came_was_enough(enough):
    builder = CompletionBuilder(Request([1], Sampling(logprobs=0)), None)
    builder.add(Piece(builder._request, [5, 6], [-1.0, -2.0], [{}, {}], None, weights_version=0))
    if enough:
        builder._satisfy()
    builder._request.weights_version = 1
    builder.add(Piece(builder._request, [], [], [], None, anew=True))
    found = builder.result()
    assert (found.tokens, found.logprobs, found.weights_version) == (((5, 6), (-1.0, -2.0), 0) if enough else ((), (), 1))


@pytest.mark.parametrize("running", ["finish", "restart"])
def test_streams_that_nobody_reads_hold_no_update_up(engine, running):
    """Neither in their slots nor where they gave way: the same thread may update and read on."""
    asked = [Request(prompt(5, i), sampling(i, max_tokens=80), paced=True) for i in range(2 * SLOTS)]
    runs = [engine.run([request]) for request in asked]
    got = [[next(pieces)] for pieces in runs[:SLOTS]]
    engine.changes.update(weights_of(1), version=1, running=running)
    for request, pieces, had in itertools.zip_longest(asked, runs, got):
        tokens = [token for piece in [*(had or []), *pieces] for token in piece.tokens]
        assert tokens == wanted(request, 0 if had else 1)
    nothing_is_held(engine)


def test_updates_of_parts_from_many_threads_go_one_after_another(engine):
    own = gj.select(engine.params, "layers.*.attention.sinks") | gj.select(engine.params, "layers.*.moe.router_bias")
    new = {name: np.full(array.shape, i, np.float32) for i, (name, array) in enumerate(own.items(), 1)}
    versions, asked = [], requests(8)
    threads = [threading.Thread(target=lambda n=n: versions.append(engine.changes.update({n: new[n]}))) for n in new]
    run(engine, asked, at=(2,), calls=(lambda: [thread.start() for thread in threads],))
    for thread in threads:
        thread.join(60)
    assert sorted(versions) == [*range(1, len(new) + 1)] and engine.programs.version == len(new)
    for name, array in gj.select(engine.params, [*new]).items():
        np.testing.assert_array_equal(array, new[name])


def test_weights_that_lie_elsewhere_are_moved_while_something_else_is_traced(engine):
    elsewhere = jax.device_put(weights_of(1).norm, jax.devices()[1])
    jax.make_jaxpr(lambda x: (engine.changes.update({"norm": elsewhere}), x)[1])(0.0)
    asked = requests(2)
    assert engine.programs.version == 1 and check(asked, run(engine, asked)) == [1] * 2


def test_a_dispatch_that_fails_while_an_update_waits_does_not_keep_it_from_being_made(engine, monkeypatch):
    lost = engine.programs.draw

    def fails(*_, **__):
        monkeypatch.setattr(engine.programs, "draw", lost)
        raise RuntimeError("device lost")

    asked, found = requests(3 * SLOTS), []
    with in_the_middle(engine, lambda: found.append(run(engine, asked))):
        update = threading.Thread(target=engine.changes.update, args=(weights_of(1),), kwargs={"version": 1})
        update.start()
        arrived(engine)
        monkeypatch.setattr(engine.programs, "draw", fails)
    update.join(60)
    assert engine.programs.version == 1 and "error" in {found[0][request].result().finish_reason for request in asked}
    more = requests(4)
    assert check(more, run(engine, more)) == [1] * 4


def test_one_that_is_interrupted_while_it_waits_is_not_made(engine):
    asked, left = requests(8), Change(lambda rounds: rounds.swap({"norm": weights_of(1).norm}, None))

    def ask():
        engine._thread.change(left)
        left.left = True  # as `result` says where it is interrupted

    assert {*check(asked, run(engine, asked, at=(1,), calls=(ask,)))} == {0}
    assert engine.wait_idle() and not left.over


OF_ITSELF = {
    "update": lambda engine: engine.changes.update(weights_of(1)),
    "sleep": lambda engine: engine.changes.sleep(),
    "run": lambda engine: list(engine.run([Request(prompt(4), sampling(1))])),
    "read": lambda engine: asyncio.run(engine.aread([Request(prompt(4), sampling(1))])),
    "work": lambda engine: engine.work(iter(())),
    "detach": lambda engine: engine.detach("a"),
}


@pytest.mark.parametrize("call", OF_ITSELF)
def test_the_engine_s_own_thread_cannot_wait_for_itself(engine, call):
    class Form:
        pauses, problem = (), ""

        def advance(self, token):
            pass

        def mask(self, out):
            OF_ITSELF[call](engine)

    [piece] = engine.run([Request(prompt(4), sampling(1), constraint=Form())])
    assert piece.finish_reason == "error" and "an LLM is asked and changed from a thread of its caller's" in piece.error
    assert engine.programs.version == 0 and not engine.asleep
    engine._thread.end()
    with pytest.raises(RuntimeError, match="or the program ends; do it elsewhere, or before."):
        OF_ITSELF[call](engine)


def test_an_event_loop_goes_on_meanwhile(engine):
    async def both():
        asked = requests(5)
        builders = {request: CompletionBuilder(request, None) for request in asked}
        reader = await engine.aread(asked)
        update = asyncio.create_task(asyncio.to_thread(engine.changes.update, weights_of(1), version=1))
        while reader.open:
            for piece in await reader.take():
                builders[piece.request].add(piece)
        assert await update == 1
        check(asked, builders)

    asyncio.run(both())


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.booleans()), max_size=12))
def test_prefixes_that_are_forgotten_are_found_no_more_and_all_pages_are_free(steps):
    pages = Pages((0, 12), (12, 12), window_blocks=2, reuse=True)
    for seed, blocks, forget in steps:
        known = list(digests(np.full(4 * blocks, seed, np.int32), 4))
        found = pages.longest(known)
        shared, ring = pages.share(known, 0, found)
        own = [(pages.take_full(), pages.take_ring()) for _ in known[found:]]
        for digest, (one, other) in zip(known[found:], own, strict=True):
            pages.keep(digest, one, other)
        for page in [*(block.full for block in shared), *(one for one, _ in own)]:
            pages.full.release(page)
        for page in [*ring.values(), *(other for _, other in own)]:
            pages.ring.release(page)
        assert pages.longest(known) == blocks
        if forget:
            pages.forget()
            assert not any(pages.longest(list(digests(np.full(16, seed, np.int32), 4))) for seed in range(4))
        assert pages.full.available == pages.ring.available == 12 and pages.full.used == pages.ring.used == 0


# The programs themselves


@pytest.fixture(scope="module")
def others():
    """Other weights of the small model."""
    return init_params(jax.random.key(5), small_model().config, "float32", "stacked")


@pytest.mark.thorough
def test_the_next_request_has_the_bits_of_a_fresh_engine_and_nothing_is_compiled(others):
    engine, model = make(), small_model()
    fresh_one = Engine(others, model.config, eos_token_ids=(319,), slots=4, context=96, chunk=32, page=16)
    first, wanted = everything(engine, fresh()), everything(fresh_one, fresh())
    assert first != wanted
    with compilations() as compiled:
        engine.changes.update(others)
        assert everything(engine, fresh()) == wanted  # prefixes of the others were kept
        engine.changes.update({name: np.asarray(array) for name, array in gj.select(model.params, "*").items()})
        assert everything(engine, fresh(MIXED[::-1])) == first[::-1]
        for _ in range(100):
            engine.changes.update(others)
            engine.changes.update(model.params)
        assert everything(engine, fresh()) == first
    assert not compiled
    nothing_is_held(engine)


@pytest.mark.thorough
def test_an_llm_answers_scores_and_replays_with_the_weights_that_it_shows():
    llm = gj.LLM("nano", slots=2, context=256)
    before, ask = llm.model, lambda llm: llm.generate(["What is 4", "Once"], gj.Sampling(temperature=0, max_tokens=12, logprobs=2))
    first = ask(llm)
    numbers = lambda llm: (llm.score("What is", " it").tolist(), llm.prompt_logprobs("What is it", 3).top_logprobs)
    numbers(llm)
    new = {name: 1.1 * array for name, array in gj.select(before.params, ["layers.*.attention.out", "norm"]).items()}
    with compilations() as compiled:
        assert llm.update(new, version="warmer") == llm.weights_version == "warmer"
        found, said = ask(llm), numbers(llm)
        again = llm.replay("What is 4", found[0].tokens)
    assert not compiled and llm.model is not before and {one.weights_version for one in found} == {"warmer"}
    assert again.logprobs == found[0].logprobs and again.weights_version == "warmer"
    fresh_one = gj.LLM(gj.Model(before.config, gj.substitute(before.params, new), before.tokenizer), slots=2, context=256)
    assert ask(fresh_one) == found != first and numbers(fresh_one) == said
    for name, array in gj.select(llm.model.params, "*").items():
        np.testing.assert_array_equal(array, gj.select(fresh_one.model.params, name)[name])
    reply = llm.chat("What is 40 + 45?", gj.Sampling(temperature=0))
    assert reply.weights_version == "warmer"
    assert asyncio.run(llm.aupdate(before.params)) == 2 and ask(llm) == first
    gone = jnp.array(before.params.norm)
    llm.update({"norm": gone})
    gone.delete()
    words = "its weight norm was given to a program to write over; update it with one that stays"
    assert words in llm.generate("What is 4").error
    for score in (lambda: llm.score("What is", " it"), lambda: llm.prompt_logprobs("What is it", token_ids=[5])):
        with pytest.raises(RuntimeError, match=f"^a score failed: {words}, and ask again.$"):
            score()
    llm.update({"norm": before.params.norm})
    assert ask(llm) == first


@pytest.mark.slow
def test_weights_from_one_device_go_to_a_mesh():
    model = gj.load(DIRECTORY, dtype="float32", experts="stacked", mesh=gj.mesh(2, 2), progress=False)
    engine = gj.LLM(model, slots=4, context=96, chunk=32).engine
    first = everything(engine, fresh()[:6])
    new = {name: jnp.asarray(1.5 * np.asarray(array)) for name, array in gj.select(model.params, "layers.*.attention.*").items()}
    with compilations() as compiled:
        engine.changes.update(new)
        changed = everything(engine, fresh()[:6])
        engine.changes.update(model.params)
        assert everything(engine, fresh()[:6]) == first != changed
    assert not compiled
    assert all(x.sharding == y.sharding for x, y in zip(jax.tree.leaves(engine.params), jax.tree.leaves(model.params), strict=True))
