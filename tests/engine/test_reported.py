"""What a sample carries beside tokens: the numbers of given ids and of the distribution that was drawn from, alone and in any company."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from sampling_oracles import adjusted, drawn_from, log_softmax
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.engine.device.state import Chunk
from gptoss_jax.engine.requests import Request
from gptoss_jax.engine.scheduling.live import Live
from gptoss_jax.engine.stepping import exchange
from gptoss_jax.sampling.reported import Processed, Sampled

CONTEXT = 192
OPTIONS = {"slots": 4, "context": CONTEXT, "chunk": 128}  # programs are those of test_replay
GIVEN = (7, 300, 0, 319)
KINDS = {
    "plain": {"temperature": 1.0, "seed": 1},
    "greedy": {"temperature": 0, "presence_penalty": 0.5},
    "hot": {"temperature": 2.0, "seed": 2},
    "penalties": {"temperature": 0.8, "seed": 3, "presence_penalty": 1.5, "frequency_penalty": 1, "repetition_penalty": 1.7},
    "bias": {"temperature": 1.0, "seed": 4, "logit_bias": {7: 100.0, 8: 99.0, 300: -100}},
    "filters": {"temperature": 1.3, "seed": 6, "top_k": 9, "top_p": 0.7, "min_p": 0.05},
}
SAMPLINGS = {
    kind: gj.Sampling(**how, max_tokens=20, logprobs=2, processed_logprobs=3, logprob_token_ids=GIVEN) for kind, how in KINDS.items()
}
PROMPTS = {kind: np.random.default_rng(n).integers(0, 319, n).tolist() for kind, n in zip(KINDS, (1, 5, 64, 66, 130, 150), strict=True)}


@functools.cache
def small(**options):
    return gj.LLM(small_model("float32", "packed"), **OPTIONS | options)


@functools.cache
def answers():
    return small().generate(list(PROMPTS.values()), list(SAMPLINGS.values()))


# What comes from the device


def a_chunk(tokens: int) -> Chunk:
    column = lambda *shape: np.arange(tokens * max(1, *shape, 1), dtype=np.float32).reshape(1, tokens, *shape)
    ids = lambda: np.tile(np.arange(20, dtype=np.int32), (1, tokens, 1))
    own = Processed(column(), ids(), np.where(ids() < 2, -1.0, -np.inf))
    return Chunk(Sampled(column().astype(np.int32), -column(), ids(), -column(20), -column(128), own), *[np.array([tokens])] * 5)


def a_live(constraint=None, **options) -> Live:
    request = Request([1], gj.Sampling(**options), constraint=constraint)
    return Live(request, 0, np.array([1], np.int32), 9, 0, None, page=64, window=64)


@pytest.mark.parametrize(
    "asked, fetched",
    [
        ([{}], ""),
        ([{"logprobs": 0}], ""),
        ([{}, {"logprobs": 1}], "top_tokens top_logprobs"),
        ([{"logprob_token_ids": [3]}, {}], "given_logprobs"),
        ([{"processed_logprobs": 0, "temperature": 0}], "processed"),
        ([{"processed_logprobs": 2}, {"logprob_token_ids": [3]}], "top_tokens top_logprobs given_logprobs processed"),
    ],
    ids=str,
)
def test_what_nobody_asked_for_stays_on_the_device(asked, fetched):
    chunk = exchange.needed(a_chunk(2), [a_live(**options) for options in asked])
    left = {field.name for field in dataclasses.fields(Sampled) if getattr(chunk.sampled, field.name) is not None}
    assert left - {"tokens", "logprobs"} == {*fetched.split()}
    for options in asked:  # and it is enough
        exchange.piece(a_live(**options), chunk, 0, 0, 2, None, None)


def test_a_piece_has_what_was_asked_for_and_nothing_that_could_not_be_drawn():
    asked = {"processed_logprobs": 3, "temperature": 0.5, "logprob_token_ids": [9, 4]}
    piece = exchange.piece(a_live(**asked), a_chunk(3), 0, 1, 3, None, None)
    assert piece.given_logprobs == [{9: -128.0, 4: -129.0}, {9: -256.0, 4: -257.0}]
    assert piece.processed_logprobs == [1.0, 2.0] and piece.top_processed_logprobs == [{0: -1.0, 1: -1.0}] * 2
    plain = exchange.piece(a_live(processed_logprobs=2), a_chunk(3), 0, 1, 3, None, None)
    assert plain.processed_logprobs == plain.logprobs == [-1.0, -2.0] and plain.top_processed_logprobs == [
        {0: -20, 1: -21},
        {0: -40, 1: -41},
    ]
    masked = exchange.piece(a_live(constraint=object(), processed_logprobs=0), a_chunk(3), 0, 0, 1, None, None)
    assert (masked.processed_logprobs, masked.top_processed_logprobs) == ([0.0], None)


# Bits


@pytest.mark.thorough
def test_bits_are_those_of_a_request_alone_and_others_are_not_touched():
    done, llm = answers(), small()
    for prompt, sampling, one in zip(PROMPTS.values(), SAMPLINGS.values(), done, strict=True):
        assert llm.generate(prompt, sampling) == one
    bare = [dataclasses.replace(one, processed_logprobs=None, logprob_token_ids=()) for one in SAMPLINGS.values()]
    for few, one in zip(llm.generate(list(PROMPTS.values()), bare), done, strict=True):
        assert (few.tokens, few.logprobs, few.top_logprobs) == (one.tokens, one.logprobs, one.top_logprobs)
        assert few.given_logprobs is few.processed_logprobs is few.top_processed_logprobs is None
    lists = [one.processed_logprobs for one in done]
    assert lists[0] == done[0].logprobs and set(lists[1]) == {0.0} and all(a != b for a, b in zip(lists[2], done[2].logprobs, strict=True))


@pytest.mark.thorough
def test_bits_are_the_same_where_requests_give_way_and_in_a_replay():
    crowded, done = small(cache_tokens=CONTEXT), answers()
    assert crowded.generate(list(PROMPTS.values()), list(SAMPLINGS.values())) == done
    assert crowded.engine.stats.preemptions > 0
    for llm in (small(), crowded):
        again = llm.replay(list(PROMPTS.values()), [one.tokens for one in done], sampling=list(SAMPLINGS.values()))
        assert again == done
    hot = small().replay(
        PROMPTS["hot"], done[2].tokens, sampling=dataclasses.replace(SAMPLINGS["hot"], processed_logprobs=None), top_logprobs=0
    )
    assert (hot.logprobs, hot.given_logprobs) == (done[2].logprobs, done[2].given_logprobs)
    assert hot.processed_logprobs is hot.top_logprobs is None


@pytest.mark.thorough
def test_a_replay_under_another_sampling_says_what_it_would_have_been():
    llm, tokens, prompt = small(), answers()[2].tokens, PROMPTS["hot"]
    greedy = llm.replay(prompt, tokens, sampling=gj.Sampling(temperature=0, processed_logprobs=1))
    for token, value, best in zip(tokens, greedy.processed_logprobs, greedy.top_processed_logprobs, strict=True):
        assert value == (0 if token in best else -np.inf) and list(best.values()) == [0.0]
    assert -np.inf in greedy.processed_logprobs and greedy.tokens == tokens


# Numbers


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_the_model_s_logits_in_float64(kind):
    model, prompt, sampling, one = small().model, PROMPTS[kind], SAMPLINGS[kind], answers()[list(KINDS).index(kind)]
    ids = np.zeros((1, CONTEXT), np.int32)
    ids[0, : len(prompt) + len(one.tokens)] = [*prompt, *one.tokens]
    rows = np.asarray(_forward()(model.params, model.config, ids))[0, len(prompt) - 1 : len(prompt) + len(one.tokens) - 1]
    for i, logits in enumerate(rows):
        own = adjusted(logits, sampling, prompt, one.tokens[:i])
        exact, raw = drawn_from(own, sampling), log_softmax(logits)
        np.testing.assert_allclose(one.processed_logprobs[i], exact[one.tokens[i]], atol=1e-3)
        np.testing.assert_allclose(list(one.given_logprobs[i].values()), raw[list(GIVEN)], atol=1e-3)
        np.testing.assert_allclose(list(one.top_processed_logprobs[i].values()), np.sort(exact[exact > -np.inf])[::-1][:3], atol=1e-3)
        assert tuple(one.given_logprobs[i]) == GIVEN


@functools.cache
def _forward():
    return jax.jit(gj.forward, static_argnums=1)


class OneOf:
    """A constraint that lets nothing through but some tokens."""

    pauses, problem = (), ""

    def __init__(self, *tokens: int):
        self._tokens = tokens

    def advance(self, token: int) -> None: ...

    def mask(self, out: np.ndarray) -> bool:
        out[:] = 0
        for token in self._tokens:
            out[token // 32] |= np.uint32(1 << token % 32)
        return True


@pytest.mark.thorough
def test_a_mask_is_part_of_what_is_drawn_from():
    sampling = gj.Sampling(seed=1, max_tokens=4, logprobs=0, processed_logprobs=5)
    pieces = [piece for piece in small().engine.run([Request([1, 2], sampling, constraint=OneOf(5, 70))])]
    for best in (best for piece in pieces for best in piece.top_processed_logprobs or []):
        assert {*best} == {5, 70} and np.exp(list(best.values())).sum() == pytest.approx(1)
    one = [piece for piece in small().engine.run([Request([1, 2], sampling, constraint=OneOf(70))])]
    assert [value for piece in one for value in piece.processed_logprobs or []] == [0.0] * 4
    assert all(value < -0.1 for piece in one for value in piece.logprobs)


@pytest.mark.thorough
def test_prompts_are_scored_for_given_ids():
    llm, prompts = small(), list(PROMPTS.values())
    bare, found = llm.prompt_logprobs(prompts, 2), llm.prompt_logprobs(prompts, 2, token_ids=GIVEN)
    for ids, one, other in zip(prompts, bare, found, strict=True):
        assert (one.logprobs.tobytes(), one.top_logprobs) == (other.logprobs.tobytes(), other.top_logprobs)
        assert one.given_logprobs is None and len(other.given_logprobs) == len(ids) - 1
        for place, given in enumerate(other.given_logprobs):
            assert tuple(given) == GIVEN
            assert all(given[token] == value for token, value in other.top_logprobs[place].items() if token in given)
            assert ids[place + 1] not in given or given[ids[place + 1]] == other.logprobs[place]
    alone = llm.prompt_logprobs(prompts[-1], 1, token_ids=np.array(GIVEN))
    assert alone.given_logprobs == found[-1].given_logprobs
    for wrong, says in (
        ([5, 5], "name each token once"),
        ([320], "must name tokens of the vocabulary, 0 to 319; got 320"),
        ("ab", "a sequence"),
    ):
        with pytest.raises(ValueError, match=f"^token_ids .*{says}"):
            llm.prompt_logprobs([1, 2], token_ids=wrong)
