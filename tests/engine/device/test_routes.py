"""Routed experts: those that a plain `forward` shows, for prompt and answer, whatever happens on the way."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from small_model import DIRECTORY, small_model

import gptoss_jax as gj
from gptoss_jax.engine.device.routes import Recorder, routes_dtype
from gptoss_jax.engine.requests import Request
from gptoss_jax.model.hooks import force_experts
from gptoss_jax.research.lenses import token_logprobs

CONTEXT = 192
OPTIONS = {"slots": 4, "context": CONTEXT, "chunk": 128, "routed_experts": True}


def draw(length, seed=0):
    return np.random.default_rng((length, seed)).integers(0, 319, length).tolist()


PROMPTS = [draw(n) for n in (1, 2, 5, 64, 65, 66, 130, 150)]
SAMPLINGS = [
    gj.Sampling(temperature=i % 3 / 2, seed=i, max_tokens=n, ignore_eos=True, logprobs=2)
    for i, n in enumerate((1, 30, 40, 33, 5, 2, 62, 20))
]


@functools.cache
def small(**options):
    return gj.LLM(small_model("float32", "packed"), **OPTIONS | options)


@functools.cache
def nano():
    return gj.LLM(gj.load("nano", dtype="float32", progress=False), slots=2, context=512, routed_experts=True)


@functools.cache
def answers():
    return small().generate(PROMPTS, SAMPLINGS)


def forwarded(model, ids):
    """Experts [len(ids), L, A] of a sequence, without a cache."""

    @functools.partial(jax.jit, static_argnums=1)
    def run(params, config, tokens):
        seen = {}
        gj.forward(params, config, tokens, hook=lambda name, value: seen.setdefault(name, value))
        return [seen[f"layers.{i}.moe.experts"][0] for i in range(config.num_hidden_layers)]

    padded = np.zeros((1, 512), np.int32)
    padded[0, : len(ids)] = ids
    return np.stack(run(model.params, model.config, padded), 1)[: len(ids)]


def check(model, prompt, one):
    assert one.routed_experts.dtype == np.uint8
    np.testing.assert_array_equal(one.routed_experts, forwarded(model, [*prompt, *one.tokens][:-1]))


@pytest.mark.thorough
def test_experts_are_those_of_a_plain_forward():
    for prompt, one in zip(PROMPTS, answers(), strict=True):
        check(small().model, prompt, one)
    assert len({one.routed_experts.tobytes() for one in answers()}) == len(PROMPTS)


@pytest.mark.thorough
def test_they_survive_preemption():
    crowded = small(cache_tokens=CONTEXT)
    done = crowded.generate(PROMPTS, SAMPLINGS)
    assert crowded.engine.stats.preemptions > 0 and done == answers()
    for one, other in zip(done, answers(), strict=True):
        np.testing.assert_array_equal(one.routed_experts, other.routed_experts)


@pytest.mark.thorough
def test_they_survive_preemption_in_the_middle_of_an_answer(monkeypatch):
    """Two answers grow until the second has to give way, when some of its tokens have been told."""
    crowded, prompts = small(cache_tokens=CONTEXT), [draw(10), draw(12)]
    sampling = gj.Sampling(temperature=1, seed=1, max_tokens=100, ignore_eos=True)
    requests = [Request(p, sampling, seconds_per_piece=0.0) for p in prompts]
    tokens, routes, told = {r: [] for r in requests}, {r: [] for r in requests}, []
    steps = crowded.engine._rounds._steps
    preempt = steps._preempt
    monkeypatch.setattr(steps, "_preempt", lambda live: (told.append((requests.index(live.request), len(live.tokens))), preempt(live)))
    for piece in crowded.engine.run(requests):
        tokens[piece.request] += piece.tokens
        routes[piece.request].append(piece.routes)
    assert any(index == 1 and 0 < count < 100 for index, count in told)
    for request in requests:
        whole = [*request.prompt, *tokens[request]]
        np.testing.assert_array_equal(np.concatenate(routes[request]), forwarded(crowded.model, whole[:-1]))


@pytest.mark.thorough
def test_conversations_that_share_beginnings_have_the_experts_of_an_llm_that_keeps_nothing():
    """In a cache so small that pages are lost and found again; asked for from somewhere in each prompt, and replayed in a plain pass."""
    rng, beginnings = np.random.default_rng(5), [draw(140, seed) for seed in range(3)]
    prompts = [beginnings[i % 3][: rng.integers(60, 140)] + draw(int(rng.integers(1, 9)), i) for i in range(24)]
    sampling = gj.Sampling(temperature=1, seed=3, max_tokens=30, ignore_eos=True, logprobs=0)
    kept, plain = small(cache_tokens=CONTEXT), small(prefix_reuse=False)
    wanted = plain.generate(prompts, sampling)
    assert kept.generate(prompts, sampling) == wanted and kept.engine.stats.reused > 0 == plain.engine.stats.reused
    starts = [int(rng.integers(0, len(p) + 1)) for p in prompts]
    each = zip(prompts, starts, strict=True)
    for outcome in kept.run(gj.Task(key=i, prompt=p, sampling=sampling, routed_experts_from=n) for i, (p, n) in enumerate(each)):
        [one], whole = outcome.answers, wanted[outcome.task.key].routed_experts
        np.testing.assert_array_equal(one.routed_experts, whole[outcome.task.routed_experts_from :])
    check(kept.model, prompts[23], wanted[23])


@pytest.mark.thorough
def test_tokens_and_log_probabilities_are_those_without():
    """On a CPU, with experts as `load` leaves them there."""
    for dtype in ("float32", "bfloat16"):
        plain, routed = (
            gj.LLM(small_model(dtype, "packed"), **OPTIONS | {"routed_experts": on}).generate(PROMPTS, SAMPLINGS) for on in (False, True)
        )
        assert plain == routed
        assert all(one.routed_experts is None for one in plain)


@pytest.mark.thorough
def test_in_replays_and_samples_and_streams_of_tasks():
    llm, [*done] = small(), answers()
    for one, other in zip(llm.replay(PROMPTS, [one.tokens for one in done]), done, strict=True):
        np.testing.assert_array_equal(one.routed_experts, other.routed_experts)
    sampling = gj.Sampling(seed=1, max_tokens=9, ignore_eos=True)
    for one in llm.generate(PROMPTS[7], sampling, n=3):
        check(llm.model, PROMPTS[7], one)
    tasks = [gj.Task(key=i, prompt=p, sampling=s) for i, (p, s) in enumerate(zip(PROMPTS, SAMPLINGS, strict=True))]
    for outcome in llm.run(tasks):
        np.testing.assert_array_equal(outcome.answers[0].routed_experts, done[outcome.task.key].routed_experts)
    assert llm.engine.stats.reused > 0, "the experts of a kept prefix are kept with it"


def test_pieces_that_come_one_by_one():
    llm = small()
    parts = [piece.routes for piece in llm.engine.run([Request(PROMPTS[6], SAMPLINGS[6], seconds_per_piece=0.0)])]
    assert len(parts) > 8 and [len(part) for part in parts[-3:]] == [1] * 3
    np.testing.assert_array_equal(np.concatenate(parts), answers()[6].routed_experts)


@pytest.mark.thorough
def test_on_a_mesh():
    model = gj.load(DIRECTORY, dtype="float32", experts="packed", mesh=gj.mesh(2, 2), progress=False)
    config = dataclasses.replace(model.config, num_hidden_layers=2, layer_types=model.config.layer_types[:2])
    llm = gj.LLM(gj.Model(config, model.params.replace(layers=model.params.layers[:2]), None), **OPTIONS)
    for one, other in zip(llm.generate(PROMPTS, SAMPLINGS), answers(), strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_array_equal(one.routed_experts, other.routed_experts)


@pytest.mark.thorough
def test_a_turn_and_one_that_a_stop_string_or_a_clock_ends():
    llm, asked, options = nano(), "What is 27 + 58?", {"reasoning_effort": "low", "current_date": "2025-06-28"}
    greedy = gj.Sampling(temperature=0, max_tokens=200)
    prompt = llm.render(asked, **options)
    reply = llm.chat(asked, greedy, **options)
    check(llm.model, prompt, reply)
    for sampling in (dataclasses.replace(greedy, stop=reply.text[3:5]), greedy):
        stopped = llm.chat(asked, sampling, **options)
        n = len(prompt) + len(stopped.tokens) - 1
        np.testing.assert_array_equal(stopped.routed_experts, reply.routed_experts[:n])
    stream = llm.stream(asked, greedy, **options)
    list(stream)
    np.testing.assert_array_equal(stream.reply.routed_experts, reply.routed_experts)
    formed = llm.chat(asked, greedy, response_format={"type": "regex", "regex": "[0-9]{3}-[a-z]{2,5}"}, **options)
    check(llm.model, prompt, formed)
    late = llm.chat(asked, greedy, time_limit=0.0, **options)
    assert (late.tokens, late.routed_experts, late.finish_reason) == ((), None, "timeout")


@pytest.mark.parametrize("experts, dtype", [(32, "uint8"), (255, "uint8"), (256, "uint16")])
def test_the_dtype_holds_every_expert_and_none(experts, dtype):
    assert routes_dtype(dataclasses.replace(gj.TINY, num_local_experts=experts)) == dtype


def test_what_is_no_expert_is_one_number():
    recorder = Recorder(gj.TINY, on=True)
    chosen = np.array([-(2**31), -1, 0, gj.TINY.num_local_experts - 1, gj.TINY.num_local_experts, 256, 2**31 - 1], np.int32)
    for i in range(gj.TINY.num_hidden_layers):
        recorder.hook(f"layers.{i}.moe.experts", chosen.reshape(1, -1, 1))
    none = gj.TINY.num_local_experts
    assert np.asarray(recorder.routes)[0, :, 1, 0].tolist() == [none, none, 0, none - 1, none, none, none]



@pytest.mark.thorough
def test_a_turn_whose_prompt_s_beginning_is_known_tells_the_rest():
    llm, asked, options = nano(), "What is 27 + 58?", {"reasoning_effort": "low", "instructions": "Answer with a number. " * 9}
    greedy = gj.Sampling(temperature=0, max_tokens=200, logprobs=0)
    prompt, reply = llm.render(asked, **options), llm.chat(asked, greedy, **options)
    further = [{"role": "user", "content": asked}, *reply.messages, {"role": "user", "content": "And 3 + 4?"}]
    known = next(i for i, (a, b) in enumerate(zip(prompt + list(reply.tokens), llm.render(further, **options), strict=False)) if a != b)
    whole = llm.chat(further, greedy, **options)
    for start in (0, known, len(llm.render(further, **options))):
        later = llm.chat(further, greedy, routed_experts_from=start, **options)
        assert later == whole and llm.engine.stats.reused > 0
        np.testing.assert_array_equal(later.routed_experts, whole.routed_experts[start:])
    np.testing.assert_array_equal(whole.routed_experts[:known], reply.routed_experts[:known])
    ids = np.array([[*llm.render(further, **options), *whole.tokens[:-1]]], np.int32)
    forward = gj.patch(gj.forward, force_experts(whole.routed_experts))
    logprobs = token_logprobs(jax.jit(forward, static_argnums=1)(llm.model.params, llm.model.config, ids), ids)
    np.testing.assert_allclose(logprobs[0, 1 - len(whole.tokens) :], whole.logprobs[:-1], atol=1e-4)
    stream = llm.stream(further, greedy, routed_experts_from=known, **options)
    list(stream)
    np.testing.assert_array_equal(stream.reply.routed_experts, whole.routed_experts[known:])
    [outcome] = llm.run([gj.Task(messages=asked, routed_experts_from=9999)])
    assert outcome.error.startswith("routed_experts_from must be a whole number from 0 to the prompt's") and not outcome.failed
    with pytest.raises(ValueError, match="^routed_experts_from needs an LLM that reports experts; got 1; make it with routed_experts=True"):
        gj.LLM(llm.model, slots=2, context=512).generate("a b", routed_experts_from=1)
