"""Scores of given tokens: the model's own, the same to the bit in any company, and what sequences begin with in common computed once."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from small_model import DIRECTORY, small_model

import gptoss_jax as gj
from gptoss_jax.engine.device import scored
from gptoss_jax.engine.sizes import sizes
from gptoss_jax.research import scoring

CONTEXT, PAGE, CHUNK = 96, 16, 64  # four blocks a dispatch, six a sequence
EXACT = 1e-5  # of logits, relative, as in test_goldens


def draw(length, seed=0):
    return np.random.default_rng((length, seed)).integers(0, 320, length).tolist()


SHARED = draw(70, 5)
SEQUENCES = [
    *(draw(n) for n in (1, 2, 5, 16, 17, 18, 32, 33, 47, 96, 95)),
    *(SHARED[:n] + draw(7, n) for n in (15, 16, 17, 32, 33, 48, 60, 69)),
    SHARED,
    SHARED,
    SHARED[:33],
    SHARED[:16],
    SHARED + [1],
    SHARED + [2],
    SHARED + draw(26),
]


def score(sequences, dtype="float32", top=0, shape=None, model=None, **options):
    model = model or small_model(dtype, "packed")
    replicas = shape[0] if shape else 1
    size = sizes(model.config, slots=2 * replicas, context=CONTEXT, chunk=CHUNK, page=PAGE, replicas=replicas)
    return scoring.score(model.params, model.config, sequences, sizes=size, top=top, **options)


def bits(one):
    return one.tokens, one.logprobs.tobytes(), one.top_logprobs


def distinct_blocks(sequences):
    """Blocks that differ in themselves, in what is before them or in the one token behind them."""
    ends = lambda ids: [*range(PAGE, len(ids) - 1, PAGE), len(ids) - 1] if len(ids) > 1 else []
    return {tuple(ids[: end + 1]) + (end,) for ids in sequences for end in ends(ids)}


@pytest.fixture
def dispatches(monkeypatch):
    """What `scored.score` was asked for: the number of blocks of each dispatch, and of the pages that there are."""
    seen, run = [], scored.score

    def watched(params, config, cache, blocks, targets, **options):
        seen.append((int((np.asarray(blocks.count) > 0).sum()), cache.k[0].shape[0], cache.k[1].shape[0]))
        return run(params, config, cache, blocks, targets, **options)

    monkeypatch.setattr(scored, "score", watched)
    return seen


# The numbers


@pytest.mark.quick("float32-None")
@pytest.mark.parametrize("dtype, cache_dtype", [("float32", None), ("bfloat16", None), ("float32", "float8_e4m3fn")])
def test_bits_are_the_same_alone_and_in_any_company(dtype, cache_dtype):
    alone = [bits(score([ids], dtype, top=4, cache_dtype=cache_dtype)[0]) for ids in SEQUENCES]
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(SEQUENCES))
        together = score([SEQUENCES[i] for i in order], dtype, top=4, cache_dtype=cache_dtype)
        assert [bits(one) for one in together] == [alone[i] for i in order]
    without_top = [one.logprobs.tobytes() for one in score(SEQUENCES, dtype, cache_dtype=cache_dtype)]
    assert without_top == [logprobs for _, logprobs, _ in alone]


@pytest.mark.quick("float32")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_they_are_the_model_s_own(dtype):
    """A log-probability is a logit less a mean of logits' kind: it is off by at most twice what a logit is, and rounded twice."""
    model = small_model(dtype, "packed")
    relative = EXACT if dtype == "float32" else 0.0336  # of bfloat16 itself, as in test_mesh
    forward = jax.jit(gj.forward, static_argnums=1)
    for one in score(SEQUENCES, dtype, top=3):
        ids = np.zeros((1, CONTEXT), np.int32)
        ids[0, : len(one.tokens)] = one.tokens
        logits = np.asarray(forward(model.params, model.config, ids), np.float64)[0, : len(one.tokens) - 1]
        exact = logits - np.log(np.exp(logits - 20).sum(-1, keepdims=True)) - 20
        off = 2 * relative * np.abs(logits).max(initial=0) + 2.0**-22 * np.abs(exact).max(initial=0)
        np.testing.assert_allclose(one.logprobs, exact[np.arange(len(exact)), one.tokens[1:]], atol=off, rtol=0)
        assert one.logprobs.shape == (len(one.tokens) - 1,) and one.logprobs.dtype == np.float32
        assert len(one.top_logprobs) == len(exact)
        for place, best in enumerate(one.top_logprobs):
            values = list(best.values())
            assert len(best) == 3 and values == sorted(values, reverse=True)
            np.testing.assert_allclose(values, -np.sort(-exact[place])[:3], atol=off, rtol=0)
            assert one.tokens[place + 1] not in best or best[one.tokens[place + 1]] == one.logprobs[place]


@pytest.mark.thorough
@pytest.mark.parametrize("part", [1 << 10, 1 << 13])
def test_logits_made_in_parts_are_the_same(monkeypatch, part):
    whole = score(SEQUENCES, top=2)
    monkeypatch.setattr(scored, "SCORED_LOGITS", part)
    scored.score.clear_cache()
    try:
        parts = score(SEQUENCES, top=2)
    finally:
        scored.score.clear_cache()
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
        assert [list(best) for best in one.top_logprobs] == [list(best) for best in other.top_logprobs]


@functools.cache
def on_mesh(shape):
    model = gj.load(DIRECTORY, dtype="float32", experts="packed", mesh=shape and gj.mesh(*shape), progress=False)
    config = dataclasses.replace(model.config, num_hidden_layers=2, layer_types=model.config.layer_types[:2])
    return gj.Model(config, model.params.replace(layers=model.params.layers[:2]), None)


@pytest.mark.thorough
@pytest.mark.parametrize("shape", [(2, 2), (1, 2)], ids=str)
def test_on_a_mesh_they_are_those_of_one_device(shape, dispatches):
    wanted = score(SEQUENCES, top=2)
    blocks = sum(count for count, *_ in dispatches)
    dispatches.clear()
    got = score(SEQUENCES, top=2, shape=shape, model=on_mesh(shape))
    for one, other in zip(wanted, got, strict=True):
        np.testing.assert_allclose(other.logprobs, one.logprobs, atol=1e-4)
        assert [list(best) for best in one.top_logprobs] == [list(best) for best in other.top_logprobs]
    # Where the sequences are parted between replicas, a prefix may be computed once more.
    assert blocks <= sum(count for count, *_ in dispatches) <= blocks + (shape[0] - 1) * CONTEXT // PAGE
    assert len(dispatches) <= -(-blocks // (shape[0] * CHUNK // PAGE)) + 2, "replicas have about as much to do"
    for i in (0, 9, -1):
        assert bits(score([SEQUENCES[i]], top=2, shape=shape, model=on_mesh(shape))[0]) == bits(got[i])


# What is computed


def test_every_block_is_computed_once(dispatches):
    score(SEQUENCES)
    wanted = len(distinct_blocks(SEQUENCES))
    assert wanted < sum(len(distinct_blocks([ids])) for ids in SEQUENCES)
    assert sum(count for count, *_ in dispatches) == wanted
    assert len(dispatches) == -(-wanted // (CHUNK // PAGE)), "ragged lengths cost no room"


def test_many_more_blocks_than_pages(dispatches):
    """Three levels of branches, in a cache for one context and one dispatch; nothing is computed twice for want of room."""
    stems = [draw(20, seed) for seed in range(4)]
    many = [a + draw(30, 10 + i) + draw(1 + 5 * j, 20 + j) for a in stems for i in range(4) for j in range(9)]
    order = np.random.default_rng(0).permutation(len(many))
    got = score([many[i] for i in order])
    counts, full, ring = zip(*dispatches, strict=True)
    assert set(full) == set(ring) == {CONTEXT // PAGE + CHUNK // PAGE}
    assert sum(counts) == len(distinct_blocks(many)) > 10 * full[0]
    for place in (0, 50, 143):
        assert bits(score([many[order[place]]])[0]) == bits(got[place])


def test_one_token_has_no_score_and_costs_nothing(dispatches):
    [one, two] = score([[5], [7]], top=2)
    assert (one.tokens, one.logprobs.shape, one.top_logprobs) == ((5,), (0,), ()) and two.tokens == (7,)
    assert not dispatches


# LLM


@pytest.fixture(scope="module")
def llm():
    return gj.LLM(small_model("float32", "packed"), slots=2, context=192, chunk=128)


@pytest.mark.parametrize("length", [2, 64, 65, 128, 129, 192])
def test_whole_pages_and_the_whole_context(llm, length):
    ids = draw(length)
    one = llm.prompt_logprobs(ids, top=5)
    assert one.tokens == tuple(ids) and len(one.logprobs) == len(one.top_logprobs) == length - 1
    assert bits(llm.prompt_logprobs([draw(100), ids], top=5)[1]) == bits(one)
    np.testing.assert_array_equal(llm.score(ids[:1], ids[1:]), one.logprobs)
    np.testing.assert_array_equal(llm.score(ids[:-1], ids[-1:]), one.logprobs[-1:])


def test_a_prompt_is_computed_once_for_all_its_continuations(llm, dispatches):
    prompt, rest = draw(150), [draw(n, 3) for n in range(1, 40)]
    scores = llm.score(prompt, rest)
    assert [len(one) for one in scores] == [len(one) for one in rest]
    assert sum(count for count, *_ in dispatches) == 2 + len(rest)
    np.testing.assert_array_equal(llm.score(prompt, rest[7]), scores[7])


def test_one_prompt_or_a_list(llm):
    assert isinstance(llm.prompt_logprobs([1, 2]), gj.PromptLogprobs)
    [one] = llm.prompt_logprobs([[1, 2]])
    assert one.top_logprobs is None and one.tokens == (1, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.tokens = ()


@pytest.mark.parametrize(
    "prompts, top, message",
    [
        ([], 0, "there must be a prompt; got an empty list"),
        ([[1], []], 0, "a prompt needs at least one token"),
        ([[1, 320]], 0, r"token ids must lie in 0 \.\.\. 319; got 320"),
        ([1] * 193, 0, "prompt has 193 tokens but context is 192; pass context=256 or shorten the prompt"),
        ("text", 0, "no tokenizer"),
        ([1], 21, "top must be a whole number, 0 to 20; got 21; pass 0 for none"),
        ([1], True, "top must be a whole number"),
        ([1], -1, "top must be a whole number"),
    ],
)
def test_bad_prompts_are_refused(llm, prompts, top, message):
    with pytest.raises(ValueError, match=message):
        llm.prompt_logprobs(prompts, top)
