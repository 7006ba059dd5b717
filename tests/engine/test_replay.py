"""Replay: given tokens have the log-probabilities, to the bit, of when they were drawn; and these are the model's own."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.engine.requests import Request

CONTEXT = 192
OPTIONS = {"slots": 4, "context": CONTEXT, "chunk": 128}
EXACT = 1e-5  # of logits, relative, as in test_goldens


def draw(length, seed=0):
    return np.random.default_rng((length, seed)).integers(0, 319, length).tolist()


KINDS = {
    "greedy": gj.Sampling(temperature=0, max_tokens=30, logprobs=2),
    "cold": gj.Sampling(temperature=0.3, seed=1, max_tokens=30, logprobs=2),
    "hot": gj.Sampling(temperature=2.0, seed=2, max_tokens=40, logprobs=2),
    "penalties": gj.Sampling(
        temperature=1.0, seed=3, max_tokens=30, presence_penalty=1.5, frequency_penalty=1, repetition_penalty=1.7, logprobs=2
    ),
    "bias": gj.Sampling(temperature=1.0, seed=4, max_tokens=30, logit_bias={7: 100.0, 8: 99.0, 300: -100}, logprobs=2),
    "top_k": gj.Sampling(temperature=1.3, seed=5, max_tokens=30, top_k=2, logprobs=2),
    "filters": gj.Sampling(temperature=1.3, seed=6, max_tokens=30, top_p=0.5, min_p=0.1, logprobs=2),
}
PROMPTS = dict(zip(KINDS, [draw(n) for n in (1, 5, 64, 65, 66, 130, 150)], strict=True))


@functools.cache
def small(dtype="float32", **options):
    return gj.LLM(small_model(dtype, "packed"), **OPTIONS | options)


@functools.cache
def answers(dtype="float32"):
    return small(dtype).generate(list(PROMPTS.values()), list(KINDS.values()))


def told(one):
    return one.tokens, one.logprobs, one.top_logprobs


@pytest.mark.quick("float32")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replayed_log_probabilities_are_those_of_the_generation(dtype):
    llm, done = small(dtype), answers(dtype)
    again = llm.replay(list(PROMPTS.values()), [one.tokens for one in done], top_logprobs=2)
    assert [told(one) for one in again] == [told(one) for one in done]
    for prompt, one in zip(PROMPTS.values(), done, strict=True):
        assert told(llm.replay(prompt, one.tokens, top_logprobs=2)) == told(one)
    bare = llm.replay(PROMPTS["hot"], np.array(done[2].tokens))
    assert (bare.tokens, bare.logprobs, bare.top_logprobs) == (done[2].tokens, done[2].logprobs, None)
    assert llm.replay(PROMPTS["hot"], list(done[2].tokens), top_logprobs=0) == bare


@pytest.mark.thorough
def test_beside_others_and_where_requests_give_way():
    """Generated in a cache that holds one context, replayed in it and in a roomy one beside requests that draw."""
    crowded, roomy = small(cache_tokens=CONTEXT), small()
    done = crowded.generate(list(PROMPTS.values()), list(KINDS.values()))
    assert crowded.engine.stats.preemptions > 0 and done == answers()
    before = crowded.engine.stats.preemptions
    again = crowded.replay(list(PROMPTS.values()), [one.tokens for one in done], top_logprobs=2)
    assert crowded.engine.stats.preemptions > before
    assert [told(one) for one in again] == [told(one) for one in done]
    requests = [Request(PROMPTS["hot"], KINDS["hot"]) for _ in range(3)]
    engine, seen = roomy.engine, []
    forced = Request(PROMPTS["top_k"], dataclasses.replace(KINDS["greedy"], ignore_eos=True, max_tokens=3), forced=done[5].tokens)
    for piece in engine.run([*requests, forced]):
        seen += piece.logprobs if piece.request is forced else []
    assert tuple(seen) == done[5].logprobs


def test_all_tokens_are_taken_whatever_they_are():
    model = small_model("float32", "packed")
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, eos_token_ids=(319, 7)))
    llm = gj.LLM(model, **OPTIONS)
    tokens = [5, 319, 7, 319, *draw(40), 6]
    whole = llm.replay([1, 2, 3], tokens)
    assert whole.tokens == tuple(tokens) and len(whole.logprobs) == len(tokens) and whole.finish_reason == "length"
    ended = llm.replay([1, 2, 3], [*tokens, 319])
    assert ended.finish_reason == "stop" and ended.logprobs[:-1] == whole.logprobs
    filled = llm.replay([1] * 100, draw(CONTEXT - 100))
    assert len(filled.tokens) == CONTEXT - 100
    last = llm.generate([1] * 100, gj.Sampling(temperature=0, logprobs=0, logit_bias={7: 100}))
    assert last.finish_reason == "stop"
    assert llm.replay([1] * 100, last.tokens) == last


@functools.cache
def log_softmax(model, ids):
    logits = np.asarray(jax.jit(gj.forward, static_argnums=1)(model.params, model.config, np.array([ids], np.int32)), np.float64)[0]
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True)), np.abs(logits).max()


def check_own(model, prompt, one):
    """Log-probabilities are those of the raw logits: off by twice what a logit may be, and rounded twice."""
    exact, largest = log_softmax(model, (*prompt, *one.tokens))
    exact = exact[len(prompt) - 1 : -1]
    off = 2 * EXACT * largest + 2.0**-22 * np.abs(exact).max()
    np.testing.assert_allclose(one.logprobs, exact[np.arange(len(exact)), list(one.tokens)], atol=off, rtol=0)
    return exact


@pytest.mark.quick("greedy", "penalties")
@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_the_model_s_own(kind):
    """Before bias, penalties, temperature and filters: the sampling shows in which tokens are drawn, not in their numbers."""
    one = answers()[list(KINDS).index(kind)]
    exact = check_own(small().model, PROMPTS[kind], one)
    assert [list(best) for best in one.top_logprobs] == np.argsort(-exact, -1)[:, :2].tolist()
    if kind == "bias":
        assert {7, 8} & set(one.tokens) and 300 not in one.tokens
    if kind in ("greedy", "top_k"):
        assert all(token in best for token, best in zip(one.tokens, one.top_logprobs, strict=True))


# Turns, of nano


@pytest.fixture(scope="module")
def nano():
    return gj.LLM(gj.load("nano", dtype="float32", progress=False), slots=2, context=512)


FORM = {"type": "regex", "regex": "[0-9]{3}-[a-z]{2,5}"}


@pytest.mark.thorough
@pytest.mark.parametrize("form", [None, FORM], ids=["free", "formed"])
def test_a_turn_is_replayed_with_the_token_that_ended_it(nano, form):
    asked, options = "What is 27 + 58?", {"reasoning_effort": "low", "current_date": "2025-06-28"}
    reply = nano.chat(asked, gj.Sampling(temperature=1, seed=1, max_tokens=200, logprobs=3), response_format=form, **options)
    assert reply.finish_reason == "stop"
    prompt = nano.render(asked, **options)
    again = nano.replay(prompt, reply.tokens, top_logprobs=3)
    assert told(again) == told(reply) and again.finish_reason == "stop"
    check_own(nano.model, prompt, reply)


@pytest.mark.thorough
def test_masked_tokens_have_the_model_s_own_probability(nano):
    """A mask leaves few tokens, which the model holds to be improbable."""
    one = nano.generate("abc", gj.Sampling(temperature=0.5, seed=1, logprobs=0), response_format=FORM)
    assert sum(one.logprobs) < -20
    prompt = nano.tokenizer.encode("abc")
    check_own(nano.model, prompt, one)
    assert nano.replay("abc", one.tokens).logprobs == one.logprobs


# What is refused


@pytest.mark.parametrize(
    "prompt, tokens, top, message",
    [
        ([1], [], None, "a replay needs at least one token; got none"),
        ([1], [320], None, r"token ids must lie in 0 \.\.\. 319; got 320"),
        ([1], [-1], None, r"token ids must lie in 0 \.\.\. 319; got -1"),
        ([1], [1.5], None, r"a replay of token ids must be a flat sequence of integers; got \[1.5\]"),
        ([1], [[1]], None, "a replay of token ids must be a flat sequence of integers"),
        ([1], "text", None, "tokens must be token ids; got the text 'text'"),
        ([1], 5, None, "a list of token ids; got int"),
        ([1] * 100, [1] * 93, None, r"prompt and tokens have 100 \+ 93 tokens but context is 192; pass context=256 or shorten them\."),
        ([], [1], None, "there must be a prompt"),
        ([[1], [2]], [[1]], None, "there must be one list of tokens for each prompt; got 1 for 2; pass as many"),
        ([[1], [2]], [[1], []], None, "a replay needs at least one token"),
        ([1], [1], 21, "top_logprobs must be a whole number, 0 to 20; got 21"),
    ],
    ids=str,
)
def test_bad_replays_are_refused(prompt, tokens, top, message):
    with pytest.raises(ValueError, match=message):
        small().replay(prompt, tokens, top_logprobs=top)


def test_a_request_that_could_not_take_its_tokens_is_refused():
    for sampling in (KINDS["greedy"], gj.Sampling(ignore_eos=True, stop_token_ids=[5])):
        with pytest.raises(ValueError, match="forced tokens are all taken"):
            small().engine.run([Request([1], sampling, forced=[1, 2])])
