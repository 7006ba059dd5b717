"""From logits to the next token of every row, on device: penalties, temperature, filters, draw, log-probabilities.

Rows of one batch may differ in every setting under one compiled program: settings are arrays [B] in `SamplingState`. What no
row asks for is skipped by `lax.cond`. Token ids in, token ids out: knows no tokenizer, no text and no model.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
import secrets

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax import filters, processes, sharding
from gptoss_jax.options import Sampling
from gptoss_jax.sharding import Partition, constrain, gathered, local

__all__ = ["Sampled", "Sampling", "SamplingState", "finished", "observe", "sample", "stack"]


@flax.struct.dataclass
class SamplingState:
    """The settings of the rows of a batch, and what their penalties must remember."""

    temperature: jax.Array  # [B] f32; 0: the most probable token
    top_k: jax.Array  # [B] int32, 1 to V; V keeps all
    top_p: jax.Array  # [B] f32; 1 keeps all
    log_min_p: jax.Array  # [B] f32; -inf keeps all
    presence_penalty: jax.Array  # [B] f32
    frequency_penalty: jax.Array  # [B] f32
    repetition_penalty: jax.Array  # [B] f32; 1 is off
    bias_ids: jax.Array  # [B, slots] int32, padded with V
    bias_values: jax.Array  # [B, slots] f32
    stop_ids: jax.Array  # [B, slots] int32, padded with -1
    seed: jax.Array  # [B, 2] uint32: high and low half, which is what jax.random.key(seed) holds
    counts: jax.Array  # [B, V] int32: times that each token was generated
    in_prompt: jax.Array  # [B, V] bool; all False where the repetition penalty is off


def state_axes() -> SamplingState:
    """The logical axes of a state's arrays, in a tree like it."""
    axes = dict.fromkeys((field.name for field in dataclasses.fields(SamplingState)), ("batch",))
    axes |= dict.fromkeys(("bias_ids", "bias_values", "stop_ids", "seed"), ("batch", None))
    return SamplingState(**axes | dict.fromkeys(("counts", "in_prompt"), ("batch", "vocab")))


@flax.struct.dataclass
class Sampled:
    """The tokens of one step. Log-probabilities are natural logs under the model's own distribution."""

    tokens: jax.Array  # [B] int32
    logprobs: jax.Array  # [B] f32
    top_tokens: jax.Array  # [B, n] int32, most probable first
    top_logprobs: jax.Array  # [B, n] f32


def stack(
    samplings: Sequence[Sampling],
    *,
    vocab_size: int,
    eos_token_ids: Sequence[int] = (),
    prompts: Sequence[Sequence[int]] | None = None,
    slots: int = 16,
    partition: Partition | None = None,
) -> SamplingState:
    """One `SamplingState` for a batch in which row i follows `samplings[i]`.

    Args:
        samplings: One per row.
        vocab_size: V, the width of the logits.
        eos_token_ids: The model's own stop tokens, which end every row without `ignore_eos`.
        prompts: Each row's prompt tokens, which the repetition penalty counts as seen; needed where a row uses it.
        slots: Least room for biases and for stop tokens in a row. It grows to the next power of two that fits, and another
            room is another compiled program.
        partition: How the state lies on a mesh, the params' own.

    Raises:
        ValueError: A token id is outside the vocabulary, or a row uses the repetition penalty and `prompts` is missing.
    """
    for sampling in samplings:
        sampling.validate_for(vocab_size)
    in_prompt = np.zeros((len(samplings), vocab_size), bool)
    for row, sampling in enumerate(samplings):
        if sampling.repetition_penalty == 1:
            continue
        if prompts is None:
            raise ValueError(f"repetition_penalty needs the prompt's tokens; got none for row {row}; pass prompts.")
        in_prompt[row, np.asarray(prompts[row], np.int32)] = True
    seeds = [secrets.randbits(63) if s.seed is None else s.seed for s in samplings]
    if partition is not None and partition.processes > 1:
        seeds = processes.broadcast(np.array(seeds, np.uint64)).tolist()
    stops = [s.stop_token_ids + (() if s.ignore_eos else tuple(eos_token_ids)) for s in samplings]

    def column(values, dtype=np.float32):
        return np.array(list(values), dtype)

    state = SamplingState(
        temperature=column(s.temperature for s in samplings),
        top_k=column((min(s.top_k or vocab_size, vocab_size) for s in samplings), np.int32),
        top_p=column(s.top_p for s in samplings),
        log_min_p=column(math.log(s.min_p) if s.min_p else -math.inf for s in samplings),
        presence_penalty=column(s.presence_penalty for s in samplings),
        frequency_penalty=column(s.frequency_penalty for s in samplings),
        repetition_penalty=column(s.repetition_penalty for s in samplings),
        bias_ids=_padded([[token for token, _ in s.logit_bias] for s in samplings], vocab_size, np.int32, slots),
        bias_values=_padded([[value for _, value in s.logit_bias] for s in samplings], 0, np.float32, slots),
        stop_ids=_padded(stops, -1, np.int32, slots),
        seed=column(((seed >> 32, seed & 0xFFFFFFFF) for seed in seeds), np.uint32),
        counts=np.zeros((len(samplings), vocab_size), np.int32),
        in_prompt=in_prompt,
    )
    return jax.tree.map(lambda value, axes: sharding.put(value, partition, axes), state, state_axes())


def _padded(rows, fill, dtype, slots: int) -> np.ndarray:
    longest = max((len(row) for row in rows), default=0)
    width = slots if longest <= slots else 1 << (longest - 1).bit_length()
    out = np.full((len(rows), width), fill, dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def sample(
    logits: jax.Array,  # [B, V] f32
    state: SamplingState,
    positions: jax.Array,  # [B] int32
    *,
    top_logprobs: int = 0,
    partition: Partition | None = None,
) -> Sampled:
    """The next token of every row, drawn as its settings say, in this order (vLLM's):

    1. logit_bias is added;
    2. repetition penalty (tokens of prompt and answer), then frequency and presence penalties (tokens of the answer);
    3. temperature 0: the token with the highest logit, the lowest id of equals. Else logits are divided by the temperature;
    4. min_p, then top_k, then top_p, whose mass is that of the tokens that the first two kept (ties: `filters`);
    5. a draw from what is left, by the Gumbel-max rule.

    A draw depends on the row's logits, settings, seed and position alone: not on the batch's size, order or other rows.
    Log-probabilities are those of the model: of the logits as given, before any of the above.

    Args:
        logits: The model's, NaN-free.
        state: Settings and counts; see `observe`.
        positions: Index that the drawn token will have in its row's sequence, prompt included.
        top_logprobs: Static. How many of the most probable tokens to report.
        partition: How logits and state lie on a mesh. Each device looks at its part of the vocabulary; parts are never gathered.
    """
    chex.assert_shape(logits, state.counts.shape)
    chex.assert_shape(positions, logits.shape[:1])
    adjusts = (
        jnp.any(state.bias_values != 0)
        | jnp.any(state.repetition_penalty != 1)
        | jnp.any(state.presence_penalty != 0)
        | jnp.any(state.frequency_penalty != 0)
    )
    adjusted = _choose(partition, adjusts, lambda: _adjust(logits, state), lambda: logits)
    best = jnp.argmax(adjusted, axis=-1).astype(jnp.int32)
    tokens = jax.lax.cond(
        jnp.any(state.temperature > 0),
        lambda: jnp.where(state.temperature > 0, _draw(adjusted, state, positions, partition), best),
        lambda: best,
    )
    log_total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)  # [B, 1]
    top_logits, top_tokens = _top(logits, top_logprobs, partition)
    return Sampled(
        tokens=tokens,
        logprobs=(jnp.take_along_axis(logits, tokens[:, None], axis=-1) - log_total)[:, 0],
        top_tokens=top_tokens,
        top_logprobs=top_logits - log_total,
    )


def _top(logits: jax.Array, count: int, partition: Partition | None) -> tuple[jax.Array, jax.Array]:
    """The highest logits [B, count] and their tokens, of equals the lowest ids first."""

    def top(logits):
        values, tokens = jax.lax.top_k(logits, min(count, logits.shape[1]))
        if partition is None or not count:
            return values, tokens
        tokens += partition.index("vocab") * logits.shape[1]
        values, tokens = (gathered(partition, x, "vocab") for x in (values, tokens))  # the best of each part, by ascending ids
        values, place = jax.lax.top_k(values, count)
        return values, jnp.take_along_axis(tokens, place, 1)

    rows = ("batch", None)
    return local(partition, top, [("batch", "vocab")], (rows, rows))(logits)


def observe(
    state: SamplingState,
    tokens: jax.Array,  # [B] int32
    active: jax.Array,  # [B] bool
) -> SamplingState:
    """The state after the active rows have generated `tokens`: what the next step's penalties count."""
    rows = jnp.arange(tokens.shape[0])
    return state.replace(counts=state.counts.at[rows, tokens].add(active.astype(jnp.int32)))


def finished(
    state: SamplingState,
    tokens: jax.Array,  # [B] int32
) -> jax.Array:  # [B] bool
    """Whether each row's token is one that ends it: its stop_token_ids, and without ignore_eos the model's own."""
    return jnp.any(tokens[:, None] == state.stop_ids, axis=-1)


def _adjust(logits: jax.Array, state: SamplingState) -> jax.Array:
    """Logits [B, V] with the bias added, then the penalties applied."""
    rows = jnp.arange(logits.shape[0])[:, None]
    logits = logits.at[rows, state.bias_ids].add(state.bias_values, mode="drop")  # padding is out of bounds
    generated = state.counts > 0
    repetition = state.repetition_penalty[:, None]
    repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(generated | state.in_prompt, repeated, logits)
    logits = logits - state.frequency_penalty[:, None] * state.counts.astype(jnp.float32)
    return logits - jnp.where(generated, state.presence_penalty[:, None], jnp.float32(0))


def _choose(partition: Partition | None, when: jax.Array, one: Callable[[], jax.Array], other: Callable[[], jax.Array]) -> jax.Array:
    """The result [B, V] of one of two functions. XLA does not know by itself that a branch's result may stay where its parts are."""
    lay = lambda branch: lambda: constrain(partition, branch(), ("batch", "vocab"))
    return lay(lambda: jax.lax.cond(when, lay(one), lay(other)))()


def _draw(logits: jax.Array, state: SamplingState, positions: jax.Array, partition: Partition | None) -> jax.Array:
    """Tokens [B] drawn at each row's temperature among what its filters keep; rows at temperature 0 draw as if at 1."""
    temperature = jnp.where(state.temperature > 0, state.temperature, jnp.float32(1))[:, None]
    scaled = (logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature  # 0 for the most probable
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
