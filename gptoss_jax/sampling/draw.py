"""From logits to the next token of every row, on device: penalties, temperature, filters, draw, log-probabilities.

Rows of one batch may differ in every setting under one compiled program: settings are arrays [B] in `SamplingState`. What no
row asks for is skipped by `lax.cond`. Token ids in, token ids out: knows no tokenizer, no text and no model.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from gptoss_jax.parallel.sharding import Partition, constrain, gathered, local
from gptoss_jax.sampling import filters
from gptoss_jax.sampling.state import SamplingState

_MOST = float(jnp.finfo(jnp.float32).max)


@flax.struct.dataclass
class Sampled:
    """The tokens of one step. Log-probabilities are natural logs under the model's own distribution."""

    tokens: jax.Array  # [B] int32
    logprobs: jax.Array  # [B] f32
    top_tokens: jax.Array  # [B, n] int32, most probable first
    top_logprobs: jax.Array  # [B, n] f32


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
    Log-probabilities are those of the model: of the logits as given, before any of the above.

    Args:
        logits: The model's. A row in which one is not finite (`finite`) gets some token of the vocabulary, which means nothing.
        state: Settings and counts; see `observe`.
        positions: Index that the drawn token will have in its row's sequence, prompt included.
        allowed: Token i is bit i % 32 of word i // 32. At least one token of every masked row must be.
        masked: Rows that `allowed` is for.
        forced: Tokens to take whatever would be drawn; -1 for none.
        top_logprobs: Static. How many of the most probable tokens to report; zeros where no row of the batch asks for them.
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
    tokens = jax.lax.cond(
        jnp.any(state.temperature > 0),
        lambda: jnp.where(state.temperature > 0, _draw(adjusted, state, positions, partition), likeliest),
        lambda: likeliest,
    )
    if forced is not None:
        tokens = jnp.where(forced >= 0, forced, tokens)
    log_total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)  # [B, 1]
    nothing = (jnp.zeros((len(logits), top_logprobs), jnp.float32), jnp.zeros((len(logits), top_logprobs), jnp.int32))
    whole = lambda found: tuple(constrain(partition, x, ("batch", None)) for x in found)
    ranked = lambda: whole(most_probable(logits, log_total, top_logprobs, partition))
    best, best_tokens = jax.lax.cond(jnp.any(state.ranked), ranked, lambda: whole(nothing))
    return Sampled(
        tokens=tokens,
        logprobs=(jnp.take_along_axis(logits, tokens[:, None], axis=-1) - log_total)[:, 0],
        top_tokens=best_tokens,
        top_logprobs=best,
    )


def _bits(allowed: jax.Array, masked: jax.Array, logits: jax.Array) -> jax.Array:
    """Which tokens each row may draw, [B, V] bool."""
    token = jnp.arange(logits.shape[1], dtype=jnp.int32)
    bit = allowed[:, token // 32] >> (token % 32).astype(jnp.uint32)[None, :]
    return (bit & 1 == 1) | ~masked[:, None]


def most_probable(
    logits: jax.Array,  # [B, V] f32
    log_total: jax.Array,  # [B, 1] f32
    count: int,
    partition: Partition | None,
) -> tuple[jax.Array, jax.Array]:  # [B, count] f32 and int32
    """The highest log-probabilities of each row and their tokens, of equals the lowest ids first. `log_total`: logits' logsumexp."""

    def top(logits):
        values, tokens = jax.lax.top_k(logits, min(count, logits.shape[1]))
        if partition is None or not count:
            return values, tokens
        tokens += partition.index("vocab") * logits.shape[1]
        values, tokens = (gathered(partition, x, "vocab") for x in (values, tokens))  # the best of each part, by ascending ids
        values, place = jax.lax.top_k(values, count)
        return values, jnp.take_along_axis(tokens, place, 1)

    rows = ("batch", None)
    values, tokens = local(partition, top, [("batch", "vocab")], (rows, rows))(logits)
    return values - log_total, tokens


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


def _draw(logits: jax.Array, state: SamplingState, positions: jax.Array, partition: Partition | None) -> jax.Array:
    """Tokens [B] drawn at each row's temperature among what its filters keep; rows at temperature 0 draw as if at 1."""
    temperature = jnp.where(state.temperature > 0, state.temperature, jnp.float32(1))[:, None]
    top = jnp.max(logits, axis=-1, keepdims=True)
    scaled = jnp.where(logits == top, jnp.float32(0), (logits - top) / temperature)  # 0 for the most probable, were it -inf
    filtering = jnp.any((state.top_k < logits.shape[-1]) | (state.top_p < 1) | (state.log_min_p > -jnp.inf))
    scaled = _choose(partition, filtering, lambda: _filter(logits, scaled, state, partition), lambda: scaled)
    return jnp.argmax(scaled + _gumbel(state.seed, positions, logits.shape[-1]), axis=-1).astype(jnp.int32)


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
