"""The device side of generation: blocks of prompts into the cache, then many decode steps a dispatch. Token ids in and out.

    read ... read -> place -> decode_chunk ... decode_chunk

`read` fills the cache with all of a prompt but its last token, `place` gives a slot that token, and `decode_chunk` alone draws. The
state never leaves the device between dispatches: the token that a step draws is the next step's input. Each program has one shape,
and a row's numbers do not depend on what the other rows are: a request is the same to the bit whatever runs beside it. Knows no text.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.engine.device.routes import Recorder, routes_dtype
from gptoss_jax.model.cache import Cache, cache_axes
from gptoss_jax.model.params import Params
from gptoss_jax.model.transformer import decode_step, extend, unembed
from gptoss_jax.parallel import sharding
from gptoss_jax.parallel.sharding import Partition, Place, constrain
from gptoss_jax.sampling import state as sampling_state
from gptoss_jax.sampling.draw import Sampled, finished, finite, most_probable, observe, sample
from gptoss_jax.sampling.state import SamplingState

PAUSES = 2  # tokens after which a guided row may wait
SCORED_LOGITS = 1 << 26  # elements of logits alive at a time while tokens are scored: 256 MB in float32


@flax.struct.dataclass
class State:
    """The slots in the middle of generation."""

    cache: Cache  # every token but the newest of each row
    sampling: SamplingState
    token: jax.Array  # [B] int32 the newest token, not yet in the cache
    remaining: jax.Array  # [B] int32 tokens that may still be drawn
    done: jax.Array  # [B] bool
    guided: jax.Array  # [B] bool: draws only what and when the host allows
    pauses: jax.Array  # [B, PAUSES] int32 tokens after which a guided row waits for the host; -1 for none
    paused: jax.Array  # [B] bool


@flax.struct.dataclass
class Blocks:
    """Pieces of prompts, one a row, in any order; several may be of one prompt, then all have its pages in their tables.

    A row's keys and values are written before any row looks for keys, in every layer: a piece sees those before it.
    """

    tokens: jax.Array  # [P, T] int32, padded at the end of each row
    count: jax.Array  # [P] int32 tokens that count; 0 for a row of nothing
    start: jax.Array  # [P] int32 position of the first
    full_table: jax.Array  # [P, R] int32
    ring_table: jax.Array  # [P, R'] int32


@flax.struct.dataclass
class Row:
    """What a slot is given; leaves are a slot's part of `State`'s, with a first axis of one."""

    sampling: SamplingState
    length: jax.Array  # [1] int32 tokens that the cache holds
    token: jax.Array  # [1] int32
    remaining: jax.Array  # [1] int32
    guided: jax.Array  # [1] bool
    pauses: jax.Array  # [1, PAUSES] int32


@flax.struct.dataclass
class Orders:
    """What the host wants of the next steps."""

    limit: jax.Array  # [] int32 most steps
    dropped: jax.Array  # [B] bool rows that end without another token
    held: jax.Array  # [B] bool rows that stand still in these steps
    resumed: jax.Array  # [B] bool guided rows that wait no longer
    single: jax.Array  # [B] bool guided rows that draw one token, and wait again
    masked: jax.Array  # [B] bool rows that draw among the allowed tokens only
    allowed: jax.Array  # [B, ceil(V / 32)] uint32, see `draw.sample`
    forced: jax.Array  # [B, steps] int32 tokens that are taken as if they had been drawn; -1 to draw


@flax.struct.dataclass
class Chunk:
    """What some steps drew. Row r holds `count[r]` tokens; what lies behind them means nothing. On a mesh every device has all of it."""

    sampled: Sampled  # leaves [B, steps, ...]
    count: jax.Array  # [B] int32
    done: jax.Array  # [B] bool: the row has ended, now or before
    stopped: jax.Array  # [B] bool: its last token is one that ends it
    paused: jax.Array  # [B] bool: it waits for the host
    broken: jax.Array  # [B] bool: it has ended at the step after its last token here, whose logits were not finite; that draws none
    routes: jax.Array | None = None  # [B, steps, L, A] uint8 or uint16: experts that each step's input was routed to; None if not asked for


_ROW = ("batch",)
_COLUMNS = ("batch", None)


def init_state(cache: Cache, sampling: SamplingState, *, partition: Place = None) -> State:
    """Slots of which none has anything to do. `cache` and `sampling` are of the same rows, lying where it shall lie too."""
    B = cache.length.shape[0]
    put = lambda value, axes=_ROW: sharding.put(value, partition, axes)
    zeros, false = np.zeros(B, np.int32), np.zeros(B, bool)
    return State(
        cache, sampling, put(zeros), put(zeros), put(~false), put(false), put(np.full((B, PAUSES), -1, np.int32), _COLUMNS), put(false)
    )


def state_axes(state: State) -> State:
    """The logical axes of a state's arrays, in a tree like it."""
    return State(cache_axes(state.cache), sampling_state.state_axes(), _ROW, _ROW, _ROW, _ROW, _COLUMNS, _ROW)


def rows(sampling: SamplingState, length: Any, token: Any, remaining: Any, pauses: tuple[int, ...] | None = None) -> Row:
    """Rows for slots, as NumPy arrays; `pauses` is None where the rows are not guided. Leaves have the rows' axis."""
    column = lambda value: np.atleast_1d(np.asarray(value, np.int32))
    count = len(column(length))
    ids = list(pauses or ()) + [-1] * (PAUSES - len(pauses or ()))
    guided = np.full(count, pauses is not None)
    return Row(sampling, column(length), column(token), column(remaining), guided, np.tile(np.array(ids, np.int32), (count, 1)))


def orders(slots: int, limit: int, *, steps: int, vocab_size: int, partition: Place = None) -> Orders:
    """Orders for `limit` steps without anything special."""
    put = lambda value, axes: sharding.put(value, partition, axes)
    no = np.zeros(slots, bool)
    return Orders(
        limit=put(np.int32(limit), ()),
        dropped=put(no, _ROW),
        held=put(no, _ROW),
        resumed=put(no, _ROW),
        single=put(no, _ROW),
        masked=put(no, _ROW),
        allowed=put(np.zeros((slots, -(-vocab_size // 32)), np.uint32), _COLUMNS),
        forced=put(np.full((slots, steps), -1, np.int32), _COLUMNS),
    )


@functools.partial(jax.jit, static_argnames=("config", "routed"), donate_argnames=("state",))
def read(params: Params, config: Config, state: State, blocks: Blocks, *, routed: bool = False) -> tuple[State, jax.Array | None]:
    """The state with pieces of prompts in its cache. No logits: the slot that is given the last token makes them.

    With `routed`, static, also the experts that every token was routed to, [P, T, L, A]; on a mesh every device has all of them.
    """
    view = state.cache.replace(full_table=blocks.full_table, ring_table=blocks.ring_table, length=blocks.start)
    recorder = Recorder(config, routed)
    _, view = extend(params, config, view, blocks.tokens, blocks.count, hook=recorder.hook)
    routes = jax.tree.map(lambda x: constrain(params.partition, x), recorder.routes)
    return state.replace(cache=state.cache.replace(k=view.k, v=view.v)), routes


@functools.partial(jax.jit, static_argnames=("partition",), donate_argnames=("state",))
def place(state: State, slots: jax.Array, row: Row, *, partition: Partition | None = None) -> State:
    """The state with new owners in `slots` [n] int32, which begin with what `row` says; those past the last slot are dropped."""
    one = lambda all, new, axes: constrain(partition, all.at[slots].set(new.astype(all.dtype), mode="drop"), axes)
    fill = lambda all, value: one(all, jnp.full(slots.shape, value), _ROW)
    return state.replace(
        cache=state.cache.replace(length=one(state.cache.length, row.length, _ROW)),
        sampling=jax.tree.map(one, state.sampling, row.sampling, sampling_state.state_axes()),
        token=one(state.token, row.token, _ROW),
        remaining=one(state.remaining, row.remaining, _ROW),
        done=fill(state.done, False),
        guided=one(state.guided, row.guided, _ROW),
        pauses=one(state.pauses, row.pauses, _COLUMNS),
        paused=one(state.paused, row.guided, _ROW),
    )


@functools.partial(jax.jit, static_argnames=("config", "steps", "top_logprobs", "routed"), donate_argnames=("state",))
def decode_chunk(
    params: Params, config: Config, state: State, orders: Orders, *, steps: int, top_logprobs: int = 0, routed: bool = False
) -> tuple[State, Chunk]:
    """Draws up to `orders.limit` tokens for every row that is not done, waits or is held; ends early when none is left.

    A row ends where one of its logits is not finite: there it gets no token, a forced one neither.

    Args:
      orders: `limit` is at most `steps`.
      steps: static; room for tokens in the result.
      top_logprobs: static; how many of the most probable tokens to report.
      routed: static; report the experts that tokens are routed to. The model then runs layer by layer also where a fused step could.
    """
    B = state.token.shape[0]
    state = state.replace(done=state.done | orders.dropped, paused=state.paused & ~orders.resumed)

    def body(carry):
        i, state, out, count, broken = carry
        active = ~(state.done | state.paused | orders.held)
        recorder = Recorder(config, routed)
        logits, cache = decode_step(params, config, state.cache, state.token, active=active, hook=recorder.hook)
        state, sampled, drawn = _draw(params.partition, state.replace(cache=cache), logits, active, orders, i, top_logprobs)
        new = (sampled, recorder.routes[:, 0] if routed else None)
        out = jax.tree.map(lambda all, new: jax.lax.dynamic_update_index_in_dim(all, new, i, 1), out, new)
        return i + 1, state, out, count + drawn.astype(jnp.int32), broken | active & ~drawn

    column = lambda dtype, *shape: jnp.zeros((B, steps, *shape), dtype)
    most = (column(jnp.int32, top_logprobs), column(jnp.float32, top_logprobs))
    empty = Sampled(column(jnp.int32), column(jnp.float32), *most)
    routes = column(routes_dtype(config), config.num_hidden_layers, config.num_experts_per_tok) if routed else None
    carry = (jnp.int32(0), state, (empty, routes), jnp.zeros(B, jnp.int32), jnp.zeros(B, bool))
    more = lambda carry: (carry[0] < orders.limit) & ~jnp.all(carry[1].done | carry[1].paused | orders.held)
    _, state, (sampled, routes), count, broken = jax.lax.while_loop(more, body, carry)
    state = _laid(params.partition, state)  # the loop alone would leave it to XLA
    stopped = finished(state.sampling, state.token) & ~broken
    chunk = Chunk(sampled, count, state.done, stopped, state.paused, broken, routes)
    return state, jax.tree.map(lambda x: constrain(params.partition, x), chunk)


def _draw(
    partition: Partition | None, state: State, logits: jax.Array, active: jax.Array, orders: Orders, step: jax.Array, top_logprobs: int
) -> tuple[State, Sampled, jax.Array]:
    """Draws the active rows' next token, which will lie at the position that their cache has reached; [B] bool which rows got one."""
    with jax.named_scope("sample"):
        sampled = sample(
            *(logits, state.sampling, state.cache.length),
            allowed=orders.allowed,
            masked=orders.masked,
            forced=jax.lax.dynamic_index_in_dim(orders.forced, step, 1, keepdims=False),
            top_logprobs=top_logprobs,
            partition=partition,
        )
        drawn = active & finite(logits)
        remaining = state.remaining - drawn.astype(jnp.int32)
        ended = active & (finished(state.sampling, sampled.tokens) | (remaining <= 0) | ~drawn)
        state = state.replace(
            sampling=observe(state.sampling, sampled.tokens, drawn),
            token=jnp.where(drawn, sampled.tokens, state.token),
            remaining=remaining,
            done=state.done | ended,
            paused=state.paused | drawn & _waits(state, sampled.tokens, orders, step),
        )
    return _laid(partition, state), sampled, drawn


def _laid(partition: Partition | None, state: State) -> State:
    """The state, lying as the next program wants it."""
    return jax.tree.map(lambda x, axes: constrain(partition, x, axes), state, state_axes(state))


def _waits(state: State, tokens: jax.Array, orders: Orders, step: jax.Array) -> jax.Array:  # [B] bool
    """Guided rows that wait after this step: after a drawn token if the host has to see it, after forced ones when they are over."""
    forced = jax.lax.dynamic_slice_in_dim(jnp.pad(orders.forced, ((0, 0), (0, 1)), constant_values=-1), step, 2, 1) >= 0
    seen = orders.single | jnp.any(tokens[:, None] == state.pauses, axis=-1)
    return state.guided & jnp.where(forced[:, 0], ~forced[:, 1], seen)


@functools.partial(jax.jit, static_argnames=("config", "top_logprobs"), donate_argnames=("cache",))
def score(
    params: Params,
    config: Config,
    cache: Cache,
    blocks: Blocks,
    targets: jax.Array,  # [P, T] int32
    *,
    top_logprobs: int = 0,
) -> tuple[Cache, Sampled]:
    """The cache with pieces of sequences in it, and what the model says of the token that follows each position.

    Args:
      cache: whose pages are used; its tables and lengths are not.
      blocks: the pieces. A piece sees those before it in its sequence, which may be in the same dispatch.
      targets: the tokens that follow.
      top_logprobs: static; how many of the most probable tokens to report.

    Returns:
      The cache, and of each position the target with its log-probability: leaves [P, T, ...], on a mesh whole on every device.
    """
    view = cache.replace(full_table=blocks.full_table, ring_table=blocks.ring_table, length=blocks.start)
    x, view = extend(params, config, view, blocks.tokens, blocks.count)
    (P, T, _), V = x.shape, config.vocab_size
    most = max(1, SCORED_LOGITS // (P * V))
    size = max(n for n in range(1, T + 1) if T % n == 0 and n <= most)  # positions of each row at a time

    def part(piece):
        x, targets = piece
        logits = unembed(params, config, x).reshape(P * size, V)
        log_total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        best, best_tokens = most_probable(logits, log_total, top_logprobs, params.partition)
        chosen = jnp.take_along_axis(logits, targets.reshape(-1, 1), axis=-1) - log_total
        return Sampled(targets.reshape(-1), chosen[:, 0], best_tokens, best)

    cut = lambda all: jnp.moveaxis(all.reshape(P, T // size, size, *all.shape[2:]), 1, 0)
    join = lambda parts: jnp.moveaxis(parts.reshape(T // size, P, size, *parts.shape[2:]), 0, 1).reshape(P, T, *parts.shape[2:])
    scored = jax.tree.map(join, jax.lax.map(part, (cut(x), cut(targets))))
    return cache.replace(k=view.k, v=view.v), jax.tree.map(lambda all: constrain(params.partition, all), scored)
