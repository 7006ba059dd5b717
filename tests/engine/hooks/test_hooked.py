"""Requests with hooks: what is kept is what a forward pass shows, what is changed what a patched one computes; bits are as ever."""

import asyncio
import functools
import itertools
import threading

import jax
import jax.numpy as jnp
from mixed_requests import CONTEXT, SHARED, everything, make, nothing_is_held, prompt, sampling
import numpy as np
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.engine.device.of_hooks import OfHook
from gptoss_jax.engine.requests import Request
from gptoss_jax.model.hooks import add, scale
from gptoss_jax.sampling.options import Sampling

D = small_model().config.hidden_size
POST = "layers.0.residual_post"
SITES = ["layers.*.residual_post", "layers.*.moe.experts", "layers.*.attention.sink_mass", "layers.1.attention.pattern", "norm", "logits"]
LOOK = functools.partial(gj.capturing, *SITES)
VECTOR = np.random.default_rng(5).normal(size=D).astype(np.float32)


def steer(size=1.0, **options):
    return gj.steering({POST: VECTOR}, scale=size, **options)


def halved(heads):
    """A function of one token's heads [1, 1, N, H]."""
    return heads.at[:, :, 1].multiply(0.5)


@pytest.fixture(scope="module")
def engine():
    """One whose cache is too small for the company that it gets below."""
    return make(cache_tokens=2 * CONTEXT)


def run(engine, requests):
    """Of each request what `everything` has, what its hook kept by name, and what it ended with."""
    seen = {id(r): ([], [], {}, []) for r in requests}
    for piece in engine.run(requests):
        tokens, logprobs, kept, ends = seen[id(piece.request)]
        tokens += piece.tokens
        logprobs += piece.logprobs
        for name, (start, array) in (piece.captured or {}).items():
            kept.setdefault(name, []).append((start, array))
        ends += [piece.finish_reason, piece.error] if piece.finish_reason else []
    return [
        (tokens, logprobs, {name: joined(parts) for name, parts in kept.items()}, ends) for tokens, logprobs, kept, ends in seen.values()
    ]


def joined(parts):
    """Arrays that follow one another; and from which position on."""
    at = parts[0][0]
    for start, array in parts:
        assert start == at
        at += len(array)
    return parts[0][0], np.concatenate([array for _, array in parts])


def same(one, other):
    assert one[:2] == other[:2] and one[3] == other[3] and one[2].keys() == other[2].keys()
    for name, (start, array) in one[2].items():
        assert start == other[2][name][0]
        np.testing.assert_array_equal(array, other[2][name][1], err_msg=name)


def forwarded(ids, changes=None):
    """Logits of a sequence and every site in SITES, [tokens, ...], with changes made."""
    model = small_model()
    fn = _passed() if changes is None else jax.jit(gj.capture(gj.patch(gj.forward, changes), SITES), static_argnums=1)
    padded = np.zeros((1, CONTEXT), np.int32)
    padded[0, : len(ids)] = ids
    return {name: np.asarray(value[0, : len(ids)]) for name, value in fn(model.params, model.config, jnp.asarray(padded))[1].items()}


@functools.cache
def _passed():
    return jax.jit(gj.capture(gj.forward, SITES), static_argnums=1)


GREEDY = Sampling(temperature=0, max_tokens=9, ignore_eos=True, logprobs=0)


@pytest.mark.thorough
def test_what_is_kept_is_what_a_forward_pass_shows_and_changes_nothing(engine):
    for length in (1, 17, 40):
        [plain], [got] = run(engine, [Request(prompt(length), GREEDY)]), run(engine, [Request(prompt(length), GREEDY, hook=LOOK())])
        assert got[:2] == plain[:2] and plain[2] == {}
        ids = [*prompt(length), *got[0]][:-1]
        shown = forwarded(ids)
        assert got[2].keys() == shown.keys()
        for name, (start, array) in got[2].items():
            assert start == 0 and len(array) == len(ids) and array.dtype == shown[name].dtype
            wanted = shown[name] if array.shape == shown[name].shape else shown[name][..., : array.shape[-1]]
            np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=1e-4, err_msg=name)
    nothing_is_held(engine)


@pytest.mark.thorough
def test_steered_and_patched_is_what_a_patched_forward_pass_computes(engine):
    changes = {POST: add(VECTOR), "layers.*.attention.heads": scale(0.0, np.s_[:, :, 2]), "layers.1.attention.heads": halved}
    hook = gj.patching(changes) | gj.capturing("logits", tokens="generated")
    [got], [plain] = run(engine, [Request(prompt(30), GREEDY, hook=hook)]), run(engine, [Request(prompt(30), GREEDY)])
    shown = forwarded([*prompt(30), *got[0]][:-1], changes)["logits"]
    assert got[0] == shown[29:].argmax(-1).tolist() != plain[0]
    assert got[2]["logits"][0] == 30
    np.testing.assert_allclose(got[2]["logits"][1], shown[30:], rtol=1e-4, atol=1e-4)


def requests():
    """Of several kinds, some with other values of one kind, some guided by a seed, one whose numbers break."""
    hooks = [
        None,
        LOOK(),
        steer(),
        LOOK(tokens="generated"),
        steer(-3.0),
        steer(2.0, tokens="generated"),
        LOOK(tokens=7),
        gj.Hook(),
        steer(2.0, tokens=20),
    ]
    asked = [(prompt(n, n), sampling(n, ignore_eos=True)) for n in (33, 20, 60)] + [
        (SHARED + prompt(n, n), sampling(n)) for n in (1, 15, 30)
    ]
    return [Request(*one, hook=hook) for hook, one in zip(hooks * 2, itertools.islice(itertools.cycle(asked), 2 * len(hooks)), strict=True)]


@pytest.mark.thorough
def test_alone_and_in_any_company_to_the_bit(engine):
    alone = [run(engine, [request])[0] for request in requests()]
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(len(alone))
        these, before = requests(), engine.stats.preemptions
        for i, got in zip(order, run(engine, [these[i] for i in order]), strict=True):
            same(got, alone[i])
        assert engine.stats.preemptions > before
        nothing_is_held(engine)


@pytest.mark.thorough
def test_numbers_that_break_are_one_request_s_own(engine):
    beside = lambda: [Request(prompt(20), GREEDY, hook=steer()), Request(prompt(21), GREEDY), Request(prompt(22), GREEDY, hook=LOOK())]
    alone = [run(engine, [one])[0] for one in beside()]
    vector = np.where(np.arange(D) == 3, np.nan, VECTOR)
    broken = Request(prompt(20), GREEDY, hook=gj.steering({POST: vector}, tokens=23))
    got = run(engine, [*beside(), broken])
    assert got[3][3][0] == "error" and "finite" in got[3][3][1] and len(got[3][0]) == 4
    for one, wanted in zip(got, alone, strict=False):
        same(one, wanted)
    nothing_is_held(engine)


@pytest.mark.thorough
def test_nothing_is_compiled_for_other_values_and_an_empty_hook_is_no_hook(engine, monkeypatch):
    run(engine, [Request(prompt(5), GREEDY, hook=steer())])
    count, compiled = len(engine.programs.hooks), []
    monkeypatch.setattr(OfHook, "_compiled", lambda *_: compiled.append(1))
    run(engine, [Request(prompt(5), GREEDY, hook=gj.steering({POST: i * VECTOR}, tokens=i)) for i in range(5)])
    [plain], [empty] = everything(engine, [Request(prompt(5), GREEDY)]), everything(engine, [Request(prompt(5), GREEDY, hook=gj.Hook())])
    assert plain == empty and not compiled and len(engine.programs.hooks) == count


@pytest.mark.thorough
def test_what_is_refused_is_refused_at_the_door(engine):
    before, beside = len(engine.programs.hooks), [run(engine, [Request(prompt(9), GREEDY)])[0]]
    for hook in (gj.patching({POST: lambda value: value[0]}), gj.capturing("layers.9.norm"), lambda name, value: value):
        with pytest.raises(ValueError):
            engine.run([Request(prompt(9), GREEDY), Request(prompt(5), GREEDY, hook=hook)])
    assert len(engine.programs.hooks) == before and run(engine, [Request(prompt(9), GREEDY)]) == beside
    nothing_is_held(engine)


@pytest.mark.thorough
def test_others_go_on_while_a_kind_is_compiled_and_threads_ask_for_the_same(engine, monkeypatch):
    """Four threads ask for one new kind: it is compiled once, while a plain request runs from its beginning to its end."""
    compiling, go_on, compiled, compile_ = threading.Event(), threading.Event(), [], OfHook._compiled

    def slow(self, *args):
        compiled.append(args[0])
        compiling.set()
        assert go_on.wait(300)
        return compile_(self, *args)

    monkeypatch.setattr(OfHook, "_compiled", slow)
    hook, got = gj.capturing("embedding", tokens="generated"), []
    threads = [threading.Thread(target=lambda: got.append(run(engine, [Request(prompt(9), GREEDY, hook=hook)])[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert compiling.wait(300)
    [plain] = run(engine, [Request(prompt(9), GREEDY)])
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(compiled) == 1 and all(one[:2] == plain[:2] and one[2]["embedding"][1].shape == (8, D) for one in got)


@pytest.mark.thorough
def test_many_new_kinds_on_an_event_loop_leave_its_threads_to_others(engine, monkeypatch):
    """While all of them wait for a compilation threads of asyncio's are free, and a request whose kind is there comes to its end."""
    compiling, go_on = threading.Event(), threading.Event()
    [steered] = run(engine, [Request(prompt(9), GREEDY, hook=steer())])

    def slow(*_):
        compiling.set()
        assert go_on.wait(300)
        raise ValueError("enough")

    async def one(hook):
        reader, tokens = await engine.aread([Request(prompt(9), GREEDY, hook=hook)]), []
        while reader.open:
            tokens += [token for piece in await reader.take() for token in piece.tokens]
        reader.close()
        return tokens

    async def all_of_them():
        new = [asyncio.create_task(one(gj.patching({POST: lambda value: value * 2}))) for _ in range(40)]
        while not await asyncio.to_thread(compiling.wait, 0.01):
            pass
        found = await asyncio.wait_for(one(steer()), 300)
        assert not any(task.done() for task in new)
        go_on.set()
        return found, await asyncio.gather(*new, return_exceptions=True)

    monkeypatch.setattr(OfHook, "_compiled", slow)
    found, refused = asyncio.run(all_of_them())
    assert found == steered[0] and {str(error) for error in refused} == {"enough"}
    nothing_is_held(engine)


@pytest.mark.thorough
def test_on_an_event_loop_and_where_it_is_left_in_the_middle(engine):
    async def one(cancel):
        request = Request(prompt(12), Sampling(temperature=0, max_tokens=60, ignore_eos=True), hook=steer(), seconds_per_piece=0.0)
        reader, tokens = await engine.aread([request]), []
        try:
            while reader.open and not (cancel and tokens):
                for piece in await reader.take():
                    tokens += piece.tokens
        finally:
            reader.close()
        return tokens

    async def all_of_them():
        return await asyncio.gather(*(one(cancel=i % 2) for i in range(6)))

    found = asyncio.run(all_of_them())
    assert all(len(tokens) == 60 for tokens in found[::2]) and found[0] == found[2] and all(found[0][: len(t)] == t for t in found)
    nothing_is_held(engine)


@pytest.mark.thorough
def test_kept_prefixes_are_those_of_one_hook_and_its_values(engine):
    asked, seen = lambda hook: Request(SHARED + [1], GREEDY, hook=hook), {}
    for name, hook, shares in (
        ("plain", None, None),
        ("steered", steer(7.0), False),
        ("steered", steer(7.0), True),
        ("otherwise", steer(8.0), False),
        ("looked at", LOOK(), False),
        ("plain", None, None),  # the cache is small
        ("steered later", steer(9.0, tokens="generated"), True),
    ):
        before, [got] = engine.stats.reused, run(engine, [asked(hook)])
        assert shares is None or (engine.stats.reused > before) == shares, name
        same(got, seen.setdefault(name, got))
    assert seen["looked at"][:2] == seen["plain"][:2] and seen["steered"][0] != seen["plain"][0]
