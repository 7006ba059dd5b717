"""The engine: each request with its own tokens whatever runs beside it; how requests end; what is refused."""

import dataclasses

import numpy as np
import oracle
import pytest
from small_model import DIRECTORY, small_model

from gptoss_jax.engine.engine import Engine
from gptoss_jax.engine.requests import Request
from gptoss_jax.research import scoring
from gptoss_jax.sampling.options import Sampling

CONTEXT, PAGE, CHUNK = 64, 16, 32  # two blocks of prompts a dispatch
EOS = 319
GREEDY = Sampling(temperature=0, max_tokens=12)


def make(slots=4, eos=(EOS,), context=CONTEXT, **options):
    model = small_model()
    options = {"chunk": CHUNK, "page": PAGE} | options
    return Engine(model.params, model.config, eos_token_ids=eos, slots=slots, context=context, **options)


@pytest.fixture(scope="module")
def engine():
    return make()


def prompt(length, seed=0):
    return np.random.default_rng((length, seed)).integers(0, 320, length).tolist()


def collect(engine, requests):
    """Tokens and finish reason of each request, in the requests' order; checks that pieces come in order and end once."""
    tokens, reasons = {id(r): [] for r in requests}, {}
    for piece in engine.run(requests):
        assert id(piece.request) not in reasons, "a piece after the last one"
        assert len(piece.tokens) == len(piece.logprobs) == len(piece.top_logprobs)
        assert piece.tokens or piece.finish_reason
        tokens[id(piece.request)] += piece.tokens
        if piece.finish_reason:
            reasons[id(piece.request)] = piece.finish_reason
    return [(tokens[id(r)], reasons.get(id(r))) for r in requests]


def alone(prompt, sampling, **options):
    return collect(make(**options), [Request(prompt, sampling)])[0]


MIXED = [
    (1, GREEDY),
    (40, Sampling(temperature=1, seed=3, max_tokens=9)),
    (16, Sampling(temperature=0.7, top_p=0.9, top_k=50, seed=4, max_tokens=12)),
    (17, GREEDY),
    (60, GREEDY),  # the context ends after 4 tokens
    (5, Sampling(temperature=1, seed=3, max_tokens=1)),
    (33, Sampling(temperature=2, seed=2**62, presence_penalty=1, repetition_penalty=1.3, logit_bias={5: 3.0}, max_tokens=12)),
]


def test_a_request_s_tokens_do_not_depend_on_its_neighbours(engine):
    """Seven requests in four slots, greedy and drawn, of all lengths: each as if it were alone."""
    together = collect(engine, [Request(prompt(n), sampling) for n, sampling in MIXED])
    for (n, sampling), got in zip(MIXED, together, strict=True):
        assert got == alone(prompt(n), sampling)
        assert (len(got[0]), got[1]) == (min(sampling.max_tokens, CONTEXT - n), "length")


def test_greedy_tokens_are_the_oracle_s(engine):
    [(tokens, _)] = collect(make(slots=1), [Request(prompt(16), GREEDY)])
    logits = oracle.forward(oracle.tensors(DIRECTORY), engine.config, np.array(prompt(16) + tokens))
    assert tokens == logits[15:-1].argmax(-1).tolist()


def test_other_seeds_draw_other_tokens(engine):
    drawn = [Request(prompt(16), Sampling(temperature=1, seed=seed, max_tokens=12)) for seed in (1, 2, 1)]
    first, second, again = (tokens for tokens, _ in collect(engine, drawn))
    assert first == again != second


# How a request ends


def first_new(tokens):
    """A place some way into the tokens whose token did not come before."""
    return next(i for i in range(3, len(tokens)) if tokens[i] not in tokens[:i])


def test_a_stop_token_ends_its_request_and_no_other(engine):
    """One row's end leaves its neighbours, and the next request in its slot, as they were."""
    requests = [(prompt(n), GREEDY) for n in (5, 9, 12, 16, 3, 6)]
    plain = [alone(*request)[0] for request in requests]
    at = first_new(plain[0])
    eos = plain[0][at]
    ended = collect(make(eos=(eos,)), [Request(*request) for request in requests])
    for tokens, got in zip(plain, ended, strict=True):
        wanted = tokens[: tokens.index(eos) + 1] if eos in tokens else tokens
        assert got == (wanted, "stop" if eos in tokens else "length")
    assert ended[0] == (plain[0][: at + 1], "stop")


def test_one_slot_serves_one_request_after_another():
    one = make(slots=1)
    prompts = [prompt(4), prompt(20), prompt(7)]
    plain = [alone(p, GREEDY)[0] for p in prompts]
    at = [first_new(tokens) for tokens in plain]
    samplings = [dataclasses.replace(GREEDY, stop_token_ids=[tokens[i]]) for tokens, i in zip(plain, at, strict=True)]
    got = collect(one, [Request(*request) for request in zip(prompts, samplings, strict=True)])
    assert got == [(tokens[: i + 1], "stop") for tokens, i in zip(plain, at, strict=True)]


def test_a_stop_on_the_first_token_and_on_the_last():
    tokens, _ = alone(prompt(5), GREEDY)
    assert alone(prompt(5), GREEDY, eos=(tokens[0],)) == (tokens[:1], "stop")
    at = first_new(tokens)
    just = dataclasses.replace(GREEDY, max_tokens=at + 1)
    assert alone(prompt(5), just, eos=(tokens[at],)) == (tokens[: at + 1], "stop")


def test_ignore_eos_goes_on_through_the_model_s_own_stop_but_not_through_the_caller_s():
    tokens, _ = alone(prompt(5), GREEDY)
    at = first_new(tokens)
    ignoring = dataclasses.replace(GREEDY, ignore_eos=True)
    assert alone(prompt(5), ignoring, eos=(tokens[at],)) == (tokens, "length")
    stopping = dataclasses.replace(ignoring, stop_token_ids=(tokens[at],))
    assert alone(prompt(5), stopping, eos=(tokens[0],)) == (tokens[: at + 1], "stop")


def test_without_max_tokens_a_request_runs_to_the_end_of_the_context():
    tokens, reason = alone(prompt(4), Sampling(temperature=0), eos=())
    assert (len(tokens), reason) == (CONTEXT - 4, "length")
    assert tokens[:12] == alone(prompt(4), GREEDY, eos=())[0]


def test_small_pieces_hold_the_same_tokens(engine):
    requests = [(prompt(n), dataclasses.replace(s, max_tokens=20)) for n, s in MIXED[:3]]
    whole = collect(engine, [Request(*request) for request in requests])
    for seconds in (0.0, 1e9):
        assert collect(engine, [Request(*request, seconds_per_piece=seconds) for request in requests]) == whole
    pieces = list(make(slots=1).run([Request(*requests[0], seconds_per_piece=0.0)]))
    assert len(pieces) > 8 and [len(piece.tokens) for piece in pieces[-5:]] == [1] * 5


def test_a_cancelled_request_ends_and_its_neighbours_go_on(engine):
    requests = [Request(prompt(n), dataclasses.replace(GREEDY, max_tokens=30), seconds_per_piece=0.0) for n in (5, 9, 12, 16)]
    wanted = collect(engine, [Request(r.prompt, r.sampling) for r in requests])
    tokens = {id(r): [] for r in requests}
    for piece in engine.run(requests):
        tokens[id(piece.request)] += piece.tokens
        if piece.request is requests[1] and len(tokens[id(requests[1])]) >= 6:
            requests[1].cancelled = True
    came = tokens[id(requests[1])]
    assert 6 <= len(came) < 20 and came == wanted[1][0][: len(came)]
    assert [tokens[id(requests[i])] for i in (0, 2, 3)] == [wanted[i][0] for i in (0, 2, 3)]


def test_what_is_cancelled_while_it_waits_never_runs_and_gets_a_last_piece():
    long = dataclasses.replace(GREEDY, max_tokens=30, ignore_eos=True)
    requests = [Request(prompt(n), long, seconds_per_piece=0.0) for n in (5, 12, 7, 8, 9)]
    engine, ran = make(slots=1, cache_tokens=8 * CONTEXT), {id(r): [] for r in requests}
    for piece in engine.run(requests):
        requests[4].cancelled = True
        ran[id(piece.request)].append(piece)
    [last] = ran[id(requests[4])]
    assert (last.tokens, last.finish_reason, last.error) == ([], "cancelled", None)
    assert all(sum(len(piece.tokens) for piece in ran[id(request)]) == 30 for request in requests[:4])
    assert engine.stats.computed == 4 + 11 + 6 + 7


# Probabilities


def test_reported_probabilities_are_the_model_s_own(engine):
    """Of drawn tokens too, whatever temperature and filters; the most probable ones beside them, most probable first."""
    sampling = Sampling(temperature=0.5, top_k=5, seed=1, max_tokens=8, logprobs=3)
    [first, *rest] = list(make(slots=1).run([Request(prompt(20), sampling)]))
    tokens, logprobs, top = first.tokens, first.logprobs, first.top_logprobs
    for piece in rest:
        tokens, logprobs, top = tokens + piece.tokens, logprobs + piece.logprobs, top + piece.top_logprobs
    logits = oracle.forward(oracle.tensors(DIRECTORY), engine.config, np.array(prompt(20) + tokens))[19:-1]
    exact = logits - np.log(np.sum(np.exp(logits - logits.max(-1, keepdims=True)), -1, keepdims=True)) - logits.max(-1, keepdims=True)
    np.testing.assert_allclose(logprobs, exact[np.arange(8), tokens], atol=1e-3)
    best = np.argsort(-exact, -1)[:, :3]
    assert [list(one) for one in top] == best.tolist()
    np.testing.assert_allclose([list(one.values()) for one in top], np.take_along_axis(exact, best, -1), atol=1e-3)
    [scored] = scoring.score(engine.params, engine.config, [prompt(20) + tokens], sizes=engine.sizes)
    np.testing.assert_allclose(scored.logprobs[19:], logprobs, atol=1e-4)


# What is refused


@pytest.mark.parametrize(
    "ids, message",
    [
        ([], "a prompt needs at least one token; got none; pass some text or token ids"),
        ([5, 320], r"token ids must lie in 0 \.\.\. 319; got 320; encode the prompt with the model's tokenizer"),
        ([-1], r"token ids must lie in 0 \.\.\. 319; got -1"),
        ([1.5], r"a prompt of token ids must be a flat sequence of integers; got \[1.5\]; pass a list of ints"),
        ([True], "flat sequence of integers"),
        ([[1, 2]], "flat sequence of integers"),
        ([[1], [1, 2]], "flat sequence of integers"),
        (["a"], "flat sequence of integers"),
        ([1] * 64, r"prompt has 64 tokens but context is 64; pass context=128 or shorten the prompt\."),
    ],
    ids=str,
)
def test_bad_prompts_are_refused_before_any_work(engine, ids, message):
    with pytest.raises(ValueError, match=message):
        engine.run([Request([1, 2], GREEDY), Request(ids, GREEDY)])  # not even iterated


def test_a_prompt_that_no_context_could_hold_is_told_to_be_shorter():
    full = make(context=1024)
    with pytest.raises(ValueError, match=r"^prompt has 1,024 tokens but context is 1,024; shorten the prompt\.$"):
        full.check([1] * 1024)
    full.check([1] * 1024, room=0)


def test_sampling_that_names_an_id_outside_the_vocabulary_is_refused(engine):
    with pytest.raises(ValueError, match="stop_token_ids must name tokens of the vocabulary, 0 to 319; got 320"):
        engine.run([Request([1], Sampling(stop_token_ids=[320]))])


@pytest.mark.parametrize(
    "options",
    [{"slots": 0}, {"slots": True}, {"slots": None}, {"slots": {}}, {"context": object()}, {"cache_tokens": 2.0}, {"chunk": -(10**5000)}],
)
def test_sizes_must_be_positive_integers(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be a positive integer; got"):
        make(**options)


def test_sizes_may_be_numpy_s_and_switches_are_bools():
    assert make(slots=np.int64(4), context=np.int32(CONTEXT)).sizes == make().sizes
    with pytest.raises(ValueError, match="slots must be below 2\\*\\*63; got a whole number of some 6,001 digits"):
        make(slots=10**6000)
    for switch in ("prefix_reuse", "routed_experts"):
        for value in ("no", 1, None):
            with pytest.raises(ValueError, match=f"{switch} must be True or False; got {value!r}; pass one of them."):
                make(**{switch: value})


def test_a_context_past_the_model_s_own_is_refused():
    with pytest.raises(ValueError, match="context must be at most the model's 1,024 positions; got 1025; pass a smaller one"):
        make(context=1025)
