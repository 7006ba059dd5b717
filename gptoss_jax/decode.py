"""The device side of generation: a chunk of every row's prompt, then many decode steps a dispatch. Token ids in and out.

    prefill_chunk ... prefill_chunk -> decode_chunk ... decode_chunk

The state never leaves the device between dispatches: the token that a step draws is the next step's input. Knows no text.
"""

from collections.abc import Sequence
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax import sampling, sharding
from gptoss_jax.config import Config
from gptoss_jax.model.cache import Cache, cache_axes
from gptoss_jax.model.params import Params
from gptoss_jax.model.transformer import decode_step, extend, prefill, unembed
from gptoss_jax.sampling import Sampled, SamplingState, finished, observe, sample
from gptoss_jax.sharding import Partition, constrain

SCORED_LOGITS = 1 << 26  # elements of logits alive at a time while a prompt is scored: 256 MB in float32


@flax.struct.dataclass
class State:
    """A batch in the middle of generation."""

    cache: Cache  # every token but the newest of each row
    sampling: SamplingState
    token: jax.Array  # [B] int32 the newest token, drawn and not yet in the cache
    remaining: jax.Array  # [B] int32 tokens that may still be drawn
    done: jax.Array  # [B] bool


@flax.struct.dataclass
class Chunk:
    """What some steps drew. Row r holds `count[r]` tokens; what lies behind them means nothing. On a mesh every device has all of it."""

    sampled: Sampled  # leaves [B, steps, ...]
    count: jax.Array  # [B] int32
    done: jax.Array  # [B] bool: the row has ended, now or before
    stopped: jax.Array  # [B] bool: its last token is one that ends it


def init_state(cache: Cache, sampling: SamplingState, max_tokens: Sequence[int], *, partition: Partition | None = None) -> State:
    """The state before the first prompt chunk. A row with `max_tokens` 0 is done from the start.

    Args:
      cache, sampling: of the same rows, lying as `partition` says.
      max_tokens: of each row.
      partition: the params' own.
    """
    remaining = np.array(list(max_tokens), np.int32)
    rows = (np.zeros_like(remaining), remaining, remaining <= 0)
    return State(cache, sampling, *(sharding.put(row, partition, ("batch",)) for row in rows))


def state_axes(state: State) -> State:
    """The logical axes of a state's arrays, in a tree like it."""
    row = ("batch",)
    return State(cache_axes(state.cache), sampling.state_axes(), row, row, row)


@functools.partial(jax.jit, static_argnames=("config", "top_logprobs"), donate_argnames=("state",))
def prefill_chunk(
    params: Params,
    config: Config,
    state: State,
    tokens: jax.Array,  # [B, T] int32
    num_tokens: jax.Array,  # [B] int32
    ends: jax.Array,  # [B] bool
    *,
    top_logprobs: int = 0,
) -> tuple[State, Chunk]:
    """Appends a chunk of each row's prompt; rows whose prompt ends with it draw their first token.

    Args:
      tokens: the chunk, padded at the end of each row.
      num_tokens: tokens of each row that count; 0 leaves the row as it is.
      ends: rows whose prompt is complete now.
      top_logprobs: static; how many of the most probable tokens to report.
    """
    logits, cache = prefill(params, config, state.cache, tokens, num_tokens)
    state, sampled = _draw(params.partition, state.replace(cache=cache), logits, ends & ~state.done, top_logprobs)
    return state, _chunk(params.partition, state, jax.tree.map(lambda x: x[:, None], sampled), ends.astype(jnp.int32))


@functools.partial(jax.jit, static_argnames=("config", "steps", "top_logprobs"), donate_argnames=("state",))
def decode_chunk(
    params: Params,
    config: Config,
    state: State,
    limit: jax.Array,  # [] int32
    *,
    steps: int,
    top_logprobs: int = 0,
) -> tuple[State, Chunk]:
    """Draws up to `limit` tokens for every row that is not done; ends early when all are.

    Args:
      limit: most tokens a row, at most `steps`.
      steps: static; room for tokens in the result.
      top_logprobs: static; how many of the most probable tokens to report.
    """
    B = state.token.shape[0]

    def body(carry):
        i, state, out, count = carry
        active = ~state.done
        logits, cache = decode_step(params, config, state.cache, state.token, active=active)
        state, sampled = _draw(params.partition, state.replace(cache=cache), logits, active, top_logprobs)
        out = jax.tree.map(lambda all, new: jax.lax.dynamic_update_index_in_dim(all, new, i, 1), out, sampled)
        return i + 1, state, out, count + active.astype(jnp.int32)

    def column(dtype, *shape):
        return jnp.zeros((B, steps, *shape), dtype)

    empty = Sampled(
        tokens=column(jnp.int32),
        logprobs=column(jnp.float32),
        top_tokens=column(jnp.int32, top_logprobs),
        top_logprobs=column(jnp.float32, top_logprobs),
    )
    carry = (jnp.int32(0), state, empty, jnp.zeros(B, jnp.int32))
    _, state, sampled, count = jax.lax.while_loop(lambda c: (c[0] < limit) & ~jnp.all(c[1].done), body, carry)
    return state, _chunk(params.partition, state, sampled, count)


def _chunk(partition: Partition | None, state: State, sampled: Sampled, count: jax.Array) -> Chunk:
    chunk = Chunk(sampled, count, state.done, finished(state.sampling, state.token))
    return jax.tree.map(lambda x: constrain(partition, x), chunk)


def _draw(partition: Partition | None, state: State, logits: jax.Array, active: jax.Array, top_logprobs: int) -> tuple[State, Sampled]:
    """Draws the active rows' next token, which will lie at the position that their cache has reached."""
    with jax.named_scope("sample"):
        sampled = sample(logits, state.sampling, state.cache.length, top_logprobs=top_logprobs, partition=partition)
        remaining = state.remaining - active.astype(jnp.int32)
        ended = active & (finished(state.sampling, sampled.tokens) | (remaining <= 0))
        state = state.replace(
            sampling=observe(state.sampling, sampled.tokens, active),
            token=jnp.where(active, sampled.tokens, state.token),
            remaining=remaining,
            done=state.done | ended,
        )
        state = jax.tree.map(lambda x, axes: constrain(partition, x, axes), state, state_axes(state))
    return state, sampled


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def score_chunk(
    params: Params,
    config: Config,
    cache: Cache,
    tokens: jax.Array,  # [B, T] int32
    num_tokens: jax.Array,  # [B] int32
    targets: jax.Array,  # [B, T] int32
) -> tuple[jax.Array, Cache]:  # [B, T] float32
    """Appends a chunk; returns the natural-log probability of each position's target (the token that follows it)."""
    x, cache = extend(params, config, cache, tokens, num_tokens)
    B, T, D = x.shape
    rows = max(1, SCORED_LOGITS // config.vocab_size)  # of logits at a time
    pad = -(B * T) % min(rows, B * T)
    x = jnp.pad(x.reshape(B * T, D), ((0, pad), (0, 0)))
    targets = jnp.pad(targets.reshape(B * T), (0, pad))

    def logprobs(part):
        x, targets = part
        logits = unembed(params, config, x[None])[0]
        return jnp.take_along_axis(logits, targets[:, None], 1)[:, 0] - jax.nn.logsumexp(logits, -1)

    size = min(rows, B * T)
    scores = jax.lax.map(logprobs, (x.reshape(-1, size, D), targets.reshape(-1, size)))
    return constrain(params.partition, scores.reshape(-1)[: B * T].reshape(B, T)), cache
