"""What is reported beside tokens, against float64 NumPy: log-probabilities of given ids, and of the distribution that is drawn from."""

import dataclasses
import functools
import math

from hypothesis import assume, given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from sampling_oracles import adjusted, drawn_from, kept, log_softmax, ranked, softmax

from gptoss_jax.sampling import draw
from gptoss_jax.sampling import state as sampling_state
from gptoss_jax.sampling.options import MAX_GIVEN, Sampling

V, B, TOP = 37, 4, 5
IDS = st.integers(0, V - 1)
PENALTIES = {"presence_penalty": st.floats(-2, 2), "frequency_penalty": st.floats(-2, 2), "repetition_penalty": st.floats(0.5, 2)}
FILTERS = {"top_k": st.integers(0, V), "top_p": st.floats(0, 1), "min_p": st.floats(0, 1)}
SETTINGS = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.0, 0.01, 0.7, 1.0, 3.0])},
    optional=PENALTIES | FILTERS | {"logit_bias": st.dictionaries(IDS, st.floats(-100, 100), max_size=5)},
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of a batch, and what its settings look at."""

    options: Sampling
    seed: int  # of its logits
    scale: float
    prompt: tuple[int, ...]
    generated: tuple[int, ...]
    allowed: frozenset[int] | None
    forced: int | None

    @property
    def logits(self) -> np.ndarray:
        return np.random.default_rng(self.seed).normal(0, self.scale, V).astype(np.float32)


@st.composite
def cases(draws) -> Case:
    ids = st.lists(IDS, max_size=6).map(tuple)
    options = draws(SETTINGS) | {"processed_logprobs": TOP, "seed": draws(st.integers(0, 2**63 - 1))}
    given_ids = draws(st.lists(IDS, max_size=V, unique=True))
    some = st.none() | st.frozensets(IDS, min_size=1)
    allowed, forced = draws(some), draws(st.none() | IDS)
    scale, seed = draws(st.sampled_from([0.1, 2.0, 30.0])), draws(st.integers(0, 2**32))
    return Case(Sampling(**options, logprob_token_ids=given_ids, logprobs=3), seed, scale, draws(ids), draws(ids), allowed, forced)


@jax.jit
def run(logits, state, positions, allowed, masked, forced):
    return draw.sample(logits, state, positions, allowed=allowed, masked=masked, forced=forced, top_logprobs=TOP)


def sampled(rows: list[Case], **changes) -> draw.Sampled:
    """One step, as NumPy arrays; `changes` are made to each sampling."""
    options = [dataclasses.replace(row.options, **changes) for row in rows]
    prompts = [row.prompt for row in rows]
    state = sampling_state.columns(options, [one.seed for one in options], vocab_size=V, prompts=prompts)
    counts = np.zeros((len(rows), V), np.int32)
    words = np.zeros((len(rows), -(-V // 32)), np.uint32)
    for i, row in enumerate(rows):
        np.add.at(counts[i], list(row.generated), 1)
        for token in row.allowed or ():
            words[i, token // 32] |= np.uint32(1 << token % 32)
    masked = np.array([row.allowed is not None for row in rows])
    forced = np.array([-1 if row.forced is None else row.forced for row in rows], np.int32)
    positions = np.array([len(row.prompt) + len(row.generated) for row in rows], np.int32)
    logits = np.stack([row.logits for row in rows])
    return jax.device_get(run(logits, state.replace(counts=counts), positions, words, masked, forced))


def told(got: draw.Sampled, i: int, row: Case) -> tuple:
    """All that is said of a row and was asked for."""
    own = got.processed
    best = [(a, b) for a, b in zip(own.top_tokens[i].tolist(), own.top_logprobs[i].tolist(), strict=True) if b > -np.inf]
    others = got.given_logprobs[i, : len(row.options.logprob_token_ids)].tolist()
    return *(x[i].tolist() for x in (got.tokens, got.logprobs, got.top_tokens, got.top_logprobs, own.logprobs)), others, best


def left(row: Case) -> np.ndarray:
    """The log-probabilities of what a row is drawn from. Rejects rows in which rounding decides what a filter keeps."""
    masked = row.logits.astype(np.float64)
    if row.allowed is not None:
        masked[[token for token in range(V) if token not in row.allowed]] = -np.inf
    logits, options = adjusted(masked, row.options, row.prompt, row.generated), row.options
    best = np.sort(logits)[::-1]
    if options.greedy:
        assume(best[0] - best[1] > 1e-3)
        return drawn_from(logits, options)
    probs = softmax(logits / options.temperature)
    near = lambda x, edge: np.abs(x - edge) < 1e-4 * np.maximum(x, edge)
    assume(not options.min_p or not near(probs / probs.max(), options.min_p).any() or options.min_p == 1)
    assume(np.diff(np.sort(logits[logits > -np.inf])).min(initial=1) > 1e-5)
    whole = kept(logits, dataclasses.replace(options, top_p=1))
    if options.top_p < 1:
        mass = np.cumsum(probs[whole]) / probs[whole].sum()
        assume(not (np.abs(mass - options.top_p) < 1e-5).any())
    return drawn_from(logits, options)


@settings(max_examples=40, deadline=None)
@given(st.lists(cases(), min_size=B, max_size=B))
def test_processed_ones_are_of_the_distribution_that_is_drawn_from(rows):
    wanted, got = [left(row) for row in rows], sampled(rows)
    for i, exact in enumerate(wanted):
        token, own = got.tokens[i], got.processed
        assert rows[i].forced in (None, token)
        assert rows[i].forced is not None or exact[token] > -np.inf, "what was drawn could be drawn"
        near = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5 * max(1, 2 * np.abs(exact[exact > -np.inf]).max()))
        near(own.logprobs[i], exact[token])
        best = ranked(exact)[:TOP]
        near(own.top_logprobs[i], exact[best])
        drawable = exact[best] > -np.inf
        np.testing.assert_array_equal(own.top_tokens[i][drawable], best[drawable])
        assert math.fsum(np.exp(own.top_logprobs[i].astype(np.float64))) < 1 + 1e-5
        if np.isfinite(exact).sum() == 1:
            assert own.logprobs[i] in (0, -np.inf) and own.top_logprobs[i][0] == 0, "what is certain is so to the bit"


@settings(max_examples=15, deadline=None)
@given(st.lists(cases(), min_size=B, max_size=B))
def test_given_ids_have_the_model_s_own(rows):
    got = sampled(rows)
    for i, row in enumerate(rows):
        ids, exact = list(row.options.logprob_token_ids), log_softmax(row.logits)
        np.testing.assert_allclose(got.given_logprobs[i, : len(ids)], exact[ids], rtol=1e-5, atol=2e-5)
        if got.tokens[i] in ids:
            assert got.given_logprobs[i, ids.index(got.tokens[i])] == got.logprobs[i], "to the bit where it is drawn too"


@settings(max_examples=15, deadline=None)
@given(st.lists(cases(), min_size=B, max_size=B), st.permutations(range(B)))
def test_no_bit_depends_on_who_asks_or_on_the_other_rows(rows, order):
    got, bare = sampled(rows), sampled(rows, processed_logprobs=None, logprob_token_ids=())
    for name in ("tokens", "logprobs", "top_tokens", "top_logprobs"):
        np.testing.assert_array_equal(getattr(got, name), getattr(bare, name))
    shuffled = sampled([rows[i] for i in order])
    assert [told(got, i, rows[i]) for i in order] == [told(shuffled, at, rows[i]) for at, i in enumerate(order)]
    nobody = Case(Sampling(temperature=0, seed=0), 1, 1.0, (), (), None, None)
    for i, row in enumerate(rows):
        assert told(sampled([nobody] * i + [row] + [nobody] * (B - 1 - i)), i, row) == told(got, i, row)


def test_settings_have_room_for_all_that_may_be_given():
    many = Sampling(logprob_token_ids=range(MAX_GIVEN), processed_logprobs=0)
    state = sampling_state.columns([many, Sampling()], [0, 0], vocab_size=MAX_GIVEN)
    assert state.given_ids.tolist() == [list(range(MAX_GIVEN)), [-1] * MAX_GIVEN] and state.processed.tolist() == [True, False]
    assert jnp.asarray(state.given_ids).dtype == jnp.int32
