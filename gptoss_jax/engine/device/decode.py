"""The device side of generation: blocks of prompts into the cache, then many decode steps a dispatch. Token ids in and out.

    read ... read -> place -> decode_chunk ... decode_chunk

`read` fills the cache with all of a prompt but its last token, `place` gives a slot that token, and `decode_chunk` alone draws. The
state never leaves the device between dispatches: the token that a step draws is the next step's input. Each program has one shape,
and a row's numbers do not depend on what the other rows are: a request is the same to the bit whatever runs beside it. Knows no text.
"""

import functools

import jax
import jax.numpy as jnp

from gptoss_jax.config import Config
from gptoss_jax.engine.device import hooked
from gptoss_jax.engine.device.hooked import Given
from gptoss_jax.engine.device.routes import Recorder, routes_dtype
from gptoss_jax.engine.device.state import COLUMNS, ROW, Blocks, Chunk, Orders, Row, State, state_axes
from gptoss_jax.engine.hooks.kinds import Kind
from gptoss_jax.model import beside
from gptoss_jax.model.params import Params
from gptoss_jax.model.transformer import decode_step, extend
from gptoss_jax.parallel.sharding import Partition, constrain
from gptoss_jax.sampling import reported
from gptoss_jax.sampling import state as sampling_state
from gptoss_jax.sampling.draw import finished, finite, observe, sample
from gptoss_jax.sampling.reported import Sampled


@functools.partial(jax.jit, static_argnames=("config", "routed", "kind"), donate_argnames=("state",))
def read(
    params: Params,
    config: Config,
    state: State,
    blocks: Blocks,
    given: Given | None = None,
    *,
    routed: bool = False,
    kind: Kind | None = None,
) -> tuple:
    """The state with pieces of prompts in its cache. No logits: the slot that is given the last token makes them.

    With `routed`, static, also the experts that every token was routed to, [P, T, L, A]; on a mesh every device has all of them. With a
    `kind` of hook, static, also what it keeps of every token, {name: [P, T, ...]}; `given` is its rows' part of the hook.
    """
    params = beside.take(params, blocks.adapter)
    view = state.cache.replace(full_table=blocks.full_table, ring_table=blocks.ring_table, length=blocks.start)
    recorder = Recorder(config, routed)
    run, logits = hooked.reading(kind, extend)
    positions = blocks.start[:, None] + jnp.arange(blocks.tokens.shape[1], dtype=jnp.int32)[None, :]
    run = hooked.looking(run, kind, given, positions, logits=logits)
    (_, view), kept = run(params, config, view, blocks.tokens, blocks.count, hook=recorder.hook)
    told = (recorder.routes,) if kind is None else (recorder.routes, kept)
    return state.replace(cache=state.cache.replace(k=view.k, v=view.v)), *jax.tree.map(lambda x: constrain(params.partition, x), told)


@functools.partial(jax.jit, static_argnames=("partition",), donate_argnames=("state",))
def place(state: State, slots: jax.Array, row: Row, *, partition: Partition | None = None) -> State:
    """The state with new owners in `slots` [n] int32, which begin with what `row` says; those past the last slot are dropped."""
    one = lambda all, new, axes: constrain(partition, all.at[slots].set(new.astype(all.dtype), mode="drop"), axes)
    fill = lambda all, value: one(all, jnp.full(slots.shape, value), ROW)
    return state.replace(
        cache=state.cache.replace(length=one(state.cache.length, row.length, ROW)),
        sampling=jax.tree.map(one, state.sampling, row.sampling, sampling_state.state_axes()),
        token=one(state.token, row.token, ROW),
        remaining=one(state.remaining, row.remaining, ROW),
        done=fill(state.done, False),
        guided=one(state.guided, row.guided, ROW),
        pauses=one(state.pauses, row.pauses, COLUMNS),
        paused=one(state.paused, row.guided, ROW),
        adapter=None if state.adapter is None else one(state.adapter, row.adapter, ROW),
    )


@functools.partial(jax.jit, static_argnames=("config", "steps", "top_logprobs", "routed", "kind"), donate_argnames=("state",))
def decode_chunk(
    params: Params,
    config: Config,
    state: State,
    orders: Orders,
    given: Given | None = None,
    *,
    steps: int,
    top_logprobs: int = 0,
    routed: bool = False,
    kind: Kind | None = None,
) -> tuple[State, Chunk]:
    """Draws up to `orders.limit` tokens for every row that is not done, waits or is held; ends early when none is left.

    A row ends where one of its logits is not finite: there it gets no token, a forced one neither.

    Args:
      orders: `limit` is at most `steps`.
      steps: static; room for tokens in the result.
      top_logprobs: static; how many of the most probable tokens to report.
      routed: static; report the experts that tokens are routed to. The model then runs layer by layer also where a fused step could.
      kind: static; of the hook that all rows have which are not held, and `given` their part of it. Layer by layer too.
    """
    B, params = state.token.shape[0], beside.take(params, state.adapter)
    state = state.replace(done=state.done | orders.dropped, paused=state.paused & ~orders.resumed)

    def body(carry):
        i, state, out, count, broken = carry
        active = ~(state.done | state.paused | orders.held)
        recorder = Recorder(config, routed)
        step = hooked.looking(decode_step, kind, given, state.cache.length[:, None])
        (logits, cache), kept = step(params, config, state.cache, state.token, active=active, hook=recorder.hook)
        state, sampled, drawn = _draw(params.partition, state.replace(cache=cache), logits, active, orders, i, top_logprobs)
        new = (sampled, recorder.routes[:, 0] if routed else None, {name: value[:, 0] for name, value in kept.items()})
        out = jax.tree.map(lambda all, new: jax.lax.dynamic_update_index_in_dim(all, new, i, 1), out, new)
        return i + 1, state, out, count + drawn.astype(jnp.int32), broken | active & ~drawn

    column = lambda dtype, *shape: jnp.zeros((B, steps, *shape), dtype)
    empty = reported.room(B, steps, top_logprobs)
    routes = column(routes_dtype(config), config.num_hidden_layers, config.num_experts_per_tok) if routed else None
    kept = hooked.empty(kind, config, state.cache, B, steps)
    carry = (jnp.int32(0), state, (empty, routes, kept), jnp.zeros(B, jnp.int32), jnp.zeros(B, bool))
    more = lambda carry: (carry[0] < orders.limit) & ~jnp.all(carry[1].done | carry[1].paused | orders.held)
    _, state, (sampled, routes, kept), count, broken = jax.lax.while_loop(more, body, carry)
    state = _laid(params.partition, state)  # the loop alone would leave it to XLA
    stopped = finished(state.sampling, state.token) & ~broken
    chunk = Chunk(sampled, count, state.done, stopped, state.paused, broken, routes, kept)
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
