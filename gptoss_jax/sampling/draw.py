"""From logits to the next token of every row, on device: penalties, temperature, filters, draw, log-probabilities.

Rows of one batch may differ in every setting under one compiled program: settings are arrays [B] in `SamplingState`. What no
row asks for is skipped by `lax.cond`. Token ids in, token ids out: knows no tokenizer, no text and no model.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from gptoss_jax.parallel.sharding import Partition, constrain
from gptoss_jax.sampling import filters, reported
from gptoss_jax.sampling.reported import Processed, Sampled, given_logprobs, most_probable
from gptoss_jax.sampling.state import SamplingState

_MOST = float(jnp.finfo(jnp.float32).max)


def sample(
    logits: jax.Array,  # [B, V] f32
    state: SamplingState,
    positions: jax.Array,  # [B] int32
    *,
    allowed: jax.Array | None = None,  # [B, ceil(V / 32)] uint32
    masked: jax.Array | None = None,  # [B] bool
    forced: jax.Array | None = None,  # [B] int32
    top_logprobs: int = 0,
    partition: Partition | None = None,
) -> Sampled:
    """The next token of every row, drawn as its settings say, in this order (vLLM's):

    0. in `masked` rows only `allowed` tokens are left;
    1. logit_bias is added;
    2. repetition penalty (tokens of prompt and answer), then frequency and presence penalties (tokens of the answer);
    3. temperature 0: the token with the highest logit, the lowest id of equals. Else logits are divided by the temperature;
    4. min_p, then top_k, then top_p, whose mass is that of the tokens that the first two kept (ties: `filters`);
    5. a draw from what is left, by the Gumbel-max rule;
    6. where a token is forced, it is the one.

    A draw depends on the row's logits, settings, seed and position alone: not on the batch's size, order or other rows.
    Log-probabilities are those of the model: of the logits as given, before any of the above. Those that are processed are those of step
    5, a forced token's too; a row that draws from the logits as given has numbers there that are not those of the model to the bit.

    Args:
        logits: The model's. A row in which one is not finite (`finite`) gets some token of the vocabulary, which means nothing.
        state: Settings and counts; see `observe`.
        positions: Index that the drawn token will have in its row's sequence, prompt included.
        allowed: Token i is bit i % 32 of word i // 32. At least one token of every masked row must be.
        masked: Rows that `allowed` is for.
        forced: Tokens to take whatever would be drawn; -1 for none.
        top_logprobs: Static. How many of the most probable tokens to report; zeros where no row of the batch asks for them, as for given
            tokens. What is processed means nothing there.
        partition: How logits and state lie on a mesh. Each device looks at its part of the vocabulary; parts are never gathered.
    """
    import chex

    chex.assert_shape(logits, state.counts.shape)
    chex.assert_shape(positions, logits.shape[:1])
    adjusts = (
        jnp.any(state.bias_values != 0)
        | jnp.any(state.repetition_penalty != 1)
        | jnp.any(state.presence_penalty != 0)
        | jnp.any(state.frequency_penalty != 0)
    )
    left = logits
    if allowed is not None:
        left = _choose(partition, jnp.any(masked), lambda: jnp.where(_bits(allowed, masked, logits), logits, -jnp.inf), lambda: logits)
    adjusted = _choose(partition, adjusts, lambda: _adjust(left, state), lambda: left)
    likeliest = jnp.argmax(adjusted, axis=-1).astype(jnp.int32)
    tokens, processed = jax.lax.cond(
        jnp.any(state.temperature > 0),
        lambda: _drawn(adjusted, likeliest, forced, state, positions, top_logprobs, partition),
        lambda: _taken(likeliest, forced, min(top_logprobs, logits.shape[1])),
    )
    log_total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)  # [B, 1]
    wanted = functools.partial(reported.wanted, partition)
    best, best_tokens = wanted(jnp.any(state.ranked), lambda: most_probable(logits, log_total, top_logprobs, partition))
    given = wanted(jnp.any(state.given_ids >= 0), lambda: given_logprobs(logits, log_total, state.given_ids))
    return Sampled(
        tokens=tokens,
        logprobs=(jnp.take_along_axis(logits, tokens[:, None], axis=-1) - log_total)[:, 0],
        top_tokens=best_tokens,
        top_logprobs=best,
        given_logprobs=given,
        processed=processed,
    )


def _bits(allowed: jax.Array, masked: jax.Array, logits: jax.Array) -> jax.Array:
    """Which tokens each row may draw, [B, V] bool."""
    token = jnp.arange(logits.shape[1], dtype=jnp.int32)
    bit = allowed[:, token // 32] >> (token % 32).astype(jnp.uint32)[None, :]
    return (bit & 1 == 1) | ~masked[:, None]


def observe(
    state: SamplingState,
    tokens: jax.Array,  # [B] int32
    active: jax.Array,  # [B] bool
) -> SamplingState:
    """The state after the active rows have generated `tokens`: what the next step's penalties count."""
    rows = jnp.arange(tokens.shape[0])
    return state.replace(counts=state.counts.at[rows, tokens].add(active.astype(jnp.int32)))


def finite(logits: jax.Array) -> jax.Array:  # [B, V] f32 -> [B] bool
    """Whether all logits of a row are numbers; those that the model makes, before masks and bias."""
    return jnp.all(jnp.isfinite(logits), axis=-1)


def finished(
    state: SamplingState,
    tokens: jax.Array,  # [B] int32
) -> jax.Array:  # [B] bool
    """Whether each row's token is one that ends it: its stop_token_ids, and without ignore_eos the model's own."""
    return jnp.any(tokens[:, None] == state.stop_ids, axis=-1)


def _adjust(logits: jax.Array, state: SamplingState) -> jax.Array:
    """Logits [B, V] with the bias added, then the penalties applied. What is left of a mask stays so, however large these are."""
    given, rows = logits, jnp.arange(logits.shape[0])[:, None]
    logits = logits.at[rows, state.bias_ids].add(state.bias_values, mode="drop")  # padding is out of bounds
    generated = state.counts > 0
    repetition = state.repetition_penalty[:, None]
    repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(generated | state.in_prompt, repeated, logits)
    logits = logits - state.frequency_penalty[:, None] * state.counts.astype(jnp.float32)
    logits = logits - jnp.where(generated, state.presence_penalty[:, None], jnp.float32(0))
    return jnp.where(given == -jnp.inf, given, jnp.clip(logits, -_MOST, _MOST))


def _choose(partition: Partition | None, when: jax.Array, one: Callable[[], jax.Array], other: Callable[[], jax.Array]) -> jax.Array:
    """The result [B, V] of one of two functions. XLA does not know by itself that a branch's result may stay where its parts are."""
    lay = lambda branch: lambda: constrain(partition, branch(), ("batch", "vocab"))
    return lay(lambda: jax.lax.cond(when, lay(one), lay(other)))()


def _drawn(
    adjusted: jax.Array,
    likeliest: jax.Array,
    forced: jax.Array | None,
    state: SamplingState,
    positions: jax.Array,
    count: int,
    partition: Partition | None,
) -> tuple[jax.Array, Processed]:
    """Each row's token, forced, drawn, or at temperature 0 the likeliest; and what is said of the distribution that it comes from."""
    draws = state.temperature > 0
    left = _left(adjusted, state, partition)
    noisy = left + _gumbel(state.seed, positions, left.shape[-1])
    tokens = _forced(jnp.where(draws, jnp.argmax(noisy, axis=-1).astype(jnp.int32), likeliest), forced)

    def processed():
        only = jnp.where(jnp.arange(left.shape[-1], dtype=jnp.int32)[None, :] == likeliest[:, None], jnp.float32(0), -jnp.inf)
        return reported.processed(jnp.where(draws[:, None], left, only), tokens, count, partition)

    return tokens, reported.wanted(partition, jnp.any(state.processed), processed)


def _taken(likeliest: jax.Array, forced: jax.Array | None, count: int) -> tuple[jax.Array, Processed]:
    """As `_drawn`, where all rows are at temperature 0."""
    tokens = _forced(likeliest, forced)
    first = jnp.arange(count, dtype=jnp.int32)[None, :] == 0
    best = jnp.broadcast_to(jnp.where(first, jnp.float32(0), -jnp.inf), (len(tokens), count))
    best_tokens = jnp.where(first, likeliest[:, None], 0)
    return tokens, Processed(jnp.where(tokens == likeliest, jnp.float32(0), -jnp.inf), best_tokens, best)


def _forced(tokens: jax.Array, forced: jax.Array | None) -> jax.Array:
    return tokens if forced is None else jnp.where(forced >= 0, forced, tokens)


def _left(logits: jax.Array, state: SamplingState, partition: Partition | None) -> jax.Array:
    """Log-weights [B, V] of what each row's filters keep at its temperature, 0 for the most probable; at temperature 0 as if at 1."""
    temperature = jnp.where(state.temperature > 0, state.temperature, jnp.float32(1))[:, None]
    top = jnp.max(logits, axis=-1, keepdims=True)
    scaled = jnp.where(logits == top, jnp.float32(0), (logits - top) / temperature)  # 0 for the most probable, were it -inf
    filtering = jnp.any((state.top_k < logits.shape[-1]) | (state.top_p < 1) | (state.log_min_p > -jnp.inf))
    return _choose(partition, filtering, lambda: _filter(logits, scaled, state, partition), lambda: scaled)


def _filter(logits: jax.Array, scaled: jax.Array, state: SamplingState, partition: Partition | None) -> jax.Array:
    """`scaled` [B, V], with -inf for the tokens that min_p, top_k or top_p drop."""
    keys = filters.rank_keys(logits)
    everything = jnp.ones(logits.shape, bool)
    some = jnp.any(state.top_k < logits.shape[-1])
    kept = filters.keep_min_p(scaled, state.log_min_p)
    kept &= _choose(partition, some, lambda: filters.keep_top_k(keys, state.top_k), lambda: everything)
    scaled = jnp.where(kept, scaled, -jnp.inf)
    kept = _choose(partition, jnp.any(state.top_p < 1), lambda: filters.keep_top_p(keys, scaled, state.top_p), lambda: everything)
    return jnp.where(kept, scaled, -jnp.inf)


def _gumbel(seeds: jax.Array, positions: jax.Array, vocab: int) -> jax.Array:
    """Standard Gumbel noise [B, V], a function of each row's seed and position: log-weights plus it, argmax, is a fair draw.

    `jax.random.gumbel` spends 23 bits on a number, so that among 201,088 of them the greatest are often equal. Here 32 bits
    count from the end that wins, where floats are dense, which also leaves rare tokens their chance.
    """

    def bits(seed, position):
        key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), position)
        return jax.random.bits(key, (vocab,), jnp.uint32)

    uniform = (jax.vmap(bits)(seeds, positions).astype(jnp.float32) + 0.5) * 2.0**-32
    uniform = jnp.minimum(uniform, 1 - 2.0**-24)  # 1 would be noise of -inf
    return -jnp.log(-jnp.log1p(-uniform))
