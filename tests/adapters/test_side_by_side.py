"""Several adapters in one LLM: each request has the bits that it has alone with its own; attaching disturbs nobody and compiles nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax import adapters
from gptoss_jax.engine.requests import Request
from gptoss_jax.model import beside

RANK = 4
SIZES = {"slots": 8, "context": 128, "chunk": 32}
NAMES = ["a", "b", None, "c", "d", "a", None, "b"]
SHARED = np.random.default_rng(7).integers(0, 319, 70).tolist()  # more than a page


def drawn(seed, rank=RANK, nan=False, config=None, **options):
    """An adapter whose terms change what is generated."""
    adapter = adapters.init(jax.random.key(seed), config or small_model().config, rank=rank, **options)
    keys = jax.random.split(jax.random.key(seed + 100), len(adapter))
    b = {name: 0.3 * jax.random.normal(k, f.b.shape, f.b.dtype) for k, (name, f) in zip(keys, adapter.items(), strict=True)}
    return {name: f.replace(b=b[name] * jnp.nan if nan else b[name]) for name, f in adapter.items()}


ADAPTERS = {name: drawn(i) for i, name in enumerate("abcd")}


def sampling(i, **options):
    return gj.Sampling(**{"temperature": [0, 0.9][i % 2], "seed": i, "max_tokens": 12 + i, "logprobs": 2, "ignore_eos": True} | options)


def prompt(i):
    """Of all, the same page to begin with: kept prefixes of one adapter are not another's."""
    return SHARED + np.random.default_rng(i).integers(0, 319, i * 3).tolist()


@functools.cache
def with_room():
    return gj.LLM(small_model(), adapters=5, adapter_rank=RANK, **SIZES)


@pytest.fixture
def llm():
    one = with_room()
    for name in list(one.adapters):
        one.detach(name)
    yield one
    assert one.engine.wait_idle()


def told(one):
    return one.tokens, one.logprobs, one.top_logprobs, one.finish_reason


def compiled(call):
    """How many programs a call has compiled."""
    seen = []
    listener = lambda name, *_, **__: seen.append(name) if "backend_compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        call()
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    return len(seen)


@pytest.mark.thorough
def test_eight_requests_with_four_adapters_have_the_bits_of_each_alone(llm):
    """Alone in such an LLM, wherever the adapter lies in it; and without one in an LLM without room."""
    for name, adapter in ADAPTERS.items():
        llm.attach(name, adapter)
    tasks = [gj.Task(key=i, prompt=prompt(i), sampling=sampling(i), adapter=name) for i, name in enumerate(NAMES)]
    together = {outcome.task.key: outcome.answers[0] for outcome in llm.run(tasks)}
    assert len({tuple(one.tokens[:8]) for one in (together[i] for i in (0, 2, 4))}) == 3  # the adapters do something
    plain, scored = gj.LLM(small_model(), **SIZES), {}
    for name in ADAPTERS:
        scored[name] = llm.score(prompt(5), together[5].tokens, adapter=name)
    assert np.allclose(scored["a"], together[5].logprobs, atol=1e-3) and not np.allclose(scored["b"], scored["a"], atol=1e-1)
    for name in ADAPTERS:
        llm.detach(name)
    for i, name in enumerate(NAMES):
        if name is not None:
            llm.attach("other", ADAPTERS["d"])
            llm.attach("its own", ADAPTERS[name])
        own = None if name is None else "its own"
        assert told(llm.generate(prompt(i), sampling(i), adapter=own)) == told(together[i]), i
        again = llm.replay(prompt(i), together[i].tokens, top_logprobs=2, adapter=own)
        assert (again.logprobs, again.top_logprobs) == (together[i].logprobs, together[i].top_logprobs)
        if name is None:
            assert told(plain.generate(prompt(i), sampling(i))) == told(together[i]), i
        else:
            assert np.array_equal(llm.score(prompt(5), together[5].tokens, adapter="its own"), scored[name])


@pytest.mark.slow
def test_the_bits_are_those_of_weights_with_the_adapter_beside_them(llm):
    model = small_model()
    llm.attach("other", ADAPTERS["a"])
    for name in ("b", "c"):
        beside_them = gj.LLM(gj.Model(model.config, adapters.attach(model.params, model.config, ADAPTERS[name]), None), **SIZES)
        llm.attach(name, ADAPTERS[name])
        for i in range(4):
            wanted = beside_them.generate(SHARED, sampling(i))
            assert told(llm.generate(SHARED, sampling(i), adapter=name)) == told(wanted)
            assert np.array_equal(llm.score(SHARED, wanted.tokens, adapter=name), beside_them.score(SHARED, wanted.tokens))


@pytest.mark.slow
def test_hooks_and_routes_beside_adapters():
    """What a hook keeps and the experts that are told are those of the adapter, in one batch with others, and after a prefix is kept."""
    model = small_model()
    llm = gj.LLM(model, adapters=2, adapter_rank=RANK, routed_experts=True, **SIZES)
    for name in "ab":
        llm.attach(name, ADAPTERS[name])
    site, look = "layers.1.residual_post", gj.capturing("layers.1.residual_post")
    kinds = [(name, hook) for name in ("a", "b", None) for hook in (None, look)]
    tasks = [gj.Task(key=i, prompt=prompt(3), sampling=sampling(1), adapter=name, hook=hook) for i, (name, hook) in enumerate(kinds)]
    for _ in range(2):
        found = {outcome.task.key: outcome.answers[0] for outcome in llm.run(tasks)}
        for i in (0, 2, 4):
            plain, seen = found[i], found[i + 1]
            assert told(plain) == told(seen) and np.array_equal(plain.routed_experts, seen.routed_experts)
            params = model.params if kinds[i][0] is None else adapters.attach(model.params, model.config, ADAPTERS[kinds[i][0]])
            tokens = np.array([[*prompt(3), *plain.tokens[:-1]]], np.int32)
            _, wanted = gj.capture(gj.forward, site)(params, model.config, tokens)
            np.testing.assert_allclose(seen.captured[site], wanted[site][0], atol=1e-3)
            assert np.array_equal(llm.replay(prompt(3), plain.tokens, adapter=kinds[i][0]).routed_experts, plain.routed_experts)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 2), (2, 4)], ids=str)
def test_on_a_mesh(tiny, shape):
    """Experts may be wider there than they are, and rows of one replica take other adapters than those of the next."""

    def run(mesh):
        model = gj.load(tiny, dtype="float32", experts="packed", progress=False, mesh=mesh)
        llm = gj.LLM(model, slots=4, context=128, chunk=64, adapters=2, adapter_rank=RANK)
        for seed, name in enumerate("aba"):
            llm.attach(name, drawn(seed, rank=3, config=model.config))
        tasks = [gj.Task(key=name, prompt=SHARED, sampling=sampling(0, ignore_eos=True), adapter=name) for name in ("a", "b", None)]
        found = {outcome.task.key: outcome.answers[0] for outcome in llm.run(tasks)}
        for task in tasks:
            assert told(llm.generate(SHARED, task.sampling, adapter=task.adapter)) == told(found[task.key])
        return [(one.tokens, one.logprobs, llm.score(SHARED, one.tokens, adapter=name)) for name, one in found.items()]

    for (tokens, logprobs, scores), wanted in zip(sorted(run(gj.mesh(*shape))), sorted(run(None)), strict=True):
        assert tokens == wanted[0]
        np.testing.assert_allclose(logprobs, wanted[1], atol=1e-4)
        np.testing.assert_allclose(scores, wanted[2], atol=1e-4)


@pytest.mark.thorough
def test_nothing_is_compiled_and_smaller_ones_fit(llm):
    """Other ranks, other matrices, NaN: another adapter is other data. One of NaN ends its own requests and touches no other."""
    llm.attach("a", ADAPTERS["a"])
    ask = lambda name: llm.generate([prompt(1), prompt(2)], sampling(2), adapter=name)
    wanted, none = ask("a"), ask(None)
    one = {name: f for name, f in drawn(9, rank=2, targets=["q_proj", "down_proj"]).items() if name.startswith("layers.1.")}
    broken = drawn(10, nan=True)

    def change():
        llm.attach("small", one)
        llm.attach("nan", broken)
        names = ["nan", "a", None, "small", "nan"]
        tasks = [gj.Task(key=i, prompt=prompt(1), sampling=sampling(2), adapter=name) for i, name in enumerate(names)]
        found = {outcome.task.key: outcome for outcome in llm.run(tasks)}
        assert [found[i].failed for i in range(5)] == [True, False, False, False, True]
        assert "logits must be finite" in found[0].error
        assert told(found[1].answers[0]) == told(wanted[0]) and told(found[2].answers[0]) == told(none[0])
        assert told(ask("small")[0]) == told(found[3].answers[0]) != told(none[0])
        llm.detach("nan")
        llm.attach("small", ADAPTERS["b"])
        llm.detach("small")

    assert compiled(change) == 0
    assert told(ask("a")[0]) == told(wanted[0]) and told(ask(None)[0]) == told(none[0])
    outcome = next(iter(llm.run([gj.Task(prompt=[1], adapter="b")])))
    assert "adapter must be the name of one that is attached; got 'b'" in outcome.error and not outcome.failed
    assert {name: (one.rank, one.targets) for name, one in llm.adapters.items()} == {"a": (RANK, adapters.TARGETS)}
    llm.attach("small", one)
    assert (llm.adapters["small"].rank, llm.adapters["small"].targets) == (2, ("q_proj", "down_proj"))


@pytest.mark.thorough
def test_a_request_goes_on_with_what_it_began_with(llm):
    """Changed and detached in the middle; kept prefixes of before are not met; what waits takes what there is when it begins."""
    llm.attach("a", ADAPTERS["a"])
    long = sampling(1, max_tokens=50)
    before = llm.generate(SHARED, long, adapter="a")
    request = Request(SHARED, long, adapter="a")
    pieces = llm.engine.run([request])
    tokens = list(next(pieces).tokens)
    llm.attach("a", ADAPTERS["b"])
    changed = llm.generate(SHARED, long, adapter="a")
    llm.detach("a")
    for piece in pieces:
        tokens += piece.tokens
    assert tokens == list(before.tokens) and changed.tokens != before.tokens
    llm.attach("x", ADAPTERS["b"])
    assert told(llm.generate(SHARED, long, adapter="x")) == told(changed)

    slots = SIZES["slots"]
    running = [Request(SHARED, sampling(1, max_tokens=58), adapter="x") for _ in range(slots)]
    late = Request(SHARED, long, adapter="x", priority=1)
    seen = {}
    for piece in llm.engine.run([*running, *(Request(SHARED, long, priority=0) for _ in range(slots)), late]):
        if not seen:
            llm.detach("x")
        seen.setdefault(id(piece.request), []).append(piece)
    assert all(seen[id(request)][-1].finish_reason == "length" for request in running)
    assert seen[id(late)][-1].finish_reason == "error"
    assert seen[id(late)][-1].error == "adapter 'x' was detached before this request was begun; attach it again, and ask again."
    for name in "abcde":  # all places are free again
        llm.attach(name, ADAPTERS["a"])
    with pytest.raises(ValueError, match="all 5 are taken: attached are 'a', 'b', 'c', 'd', 'e'; detach one"):
        llm.attach("f", ADAPTERS["a"])


@pytest.mark.thorough
def test_forward_takes_rows_of_several():
    """The view of the params that the programs of an engine take, in any function of the model."""
    model = small_model()
    tokens = jnp.asarray([SHARED[:24]] * 4)
    room = gj.LLM(model, adapters=3, adapter_rank=RANK, **SIZES).engine.programs.room
    for place, name in enumerate("ab"):
        fitted = adapters.fitted(model.params, model.config, ADAPTERS[name], rank=RANK, targets=adapters.TARGETS)
        room.write(place, fitted.terms)
    run = jax.jit(lambda params, which: gj.forward(beside.take(params, which), model.config, tokens))
    got = run(room.beside(model.params), jnp.array([1, -1, 0, 1], jnp.int32))
    alone = jax.jit(lambda params: gj.forward(params, model.config, tokens))
    for row, name in enumerate(["b", None, "a", "b"]):
        params = model.params if name is None else adapters.attach(model.params, model.config, ADAPTERS[name])
        assert np.array_equal(got[row], alone(params)[row]), name
