"""What the programs of generation take and give: the slots' state, pieces of prompts, a slot's new owner, orders, what steps drew.

Arrays, as the device holds them, and what makes the first of each. Knows no program.
"""

from typing import Any

import flax.struct
import jax
import numpy as np

from gptoss_jax.model.cache import Cache, cache_axes
from gptoss_jax.parallel import sharding
from gptoss_jax.parallel.sharding import Place
from gptoss_jax.sampling import state as sampling_state
from gptoss_jax.sampling.reported import Sampled
from gptoss_jax.sampling.state import SamplingState

PAUSES = 2  # tokens after which a guided row may wait
ROW = ("batch",)
COLUMNS = ("batch", None)


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
    adapter: jax.Array | None = None  # [B] int32 which of the terms side by side a row takes, -1 for none; None without room for any


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
    adapter: jax.Array | None = None  # [P] int32, as of `State`


@flax.struct.dataclass
class Row:
    """What a slot is given; leaves are a slot's part of `State`'s, with a first axis of one."""

    sampling: SamplingState
    length: jax.Array  # [1] int32 tokens that the cache holds
    token: jax.Array  # [1] int32
    remaining: jax.Array  # [1] int32
    guided: jax.Array  # [1] bool
    pauses: jax.Array  # [1, PAUSES] int32
    adapter: jax.Array | None = None  # [1] int32


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
    kept: dict[str, jax.Array] = flax.struct.field(default_factory=dict)  # [B, steps, ...] of the sites that a hook keeps, by name


def init_state(cache: Cache, sampling: SamplingState, *, partition: Place = None, adapters: bool = False) -> State:
    """Slots of which none has anything to do. `cache` and `sampling` are of the same rows, lying where it shall lie too.

    With `adapters` its rows may take terms that lie side by side.
    """
    B = cache.length.shape[0]
    put = lambda value, axes=ROW: sharding.put(value, partition, axes)
    zeros, false = np.zeros(B, np.int32), np.zeros(B, bool)
    pauses, adapter = put(np.full((B, PAUSES), -1, np.int32), COLUMNS), put(zeros - 1) if adapters else None
    return State(cache, sampling, put(zeros), put(zeros), put(~false), put(false), pauses, put(false), adapter)


def state_axes(state: State) -> State:
    """The logical axes of a state's arrays, in a tree like it."""
    adapter = None if state.adapter is None else ROW
    return State(cache_axes(state.cache), sampling_state.state_axes(), ROW, ROW, ROW, ROW, COLUMNS, ROW, adapter)


def make_rows(sampling: SamplingState, length: Any, token: Any, remaining: Any, pauses: tuple[int, ...] | None = None) -> Row:
    """Rows for slots, as NumPy arrays; `pauses` is None where the rows are not guided. Leaves have the rows' axis."""
    column = lambda value: np.atleast_1d(np.asarray(value, np.int32))
    count = len(column(length))
    ids = list(pauses or ()) + [-1] * (PAUSES - len(pauses or ()))
    guided = np.full(count, pauses is not None)
    return Row(sampling, column(length), column(token), column(remaining), guided, np.tile(np.array(ids, np.int32), (count, 1)))


def plain_orders(slots: int, limit: int, *, steps: int, vocab_size: int, partition: Place = None) -> Orders:
    """Orders for `limit` steps without anything special."""
    put = lambda value, axes: sharding.put(value, partition, axes)
    no = np.zeros(slots, bool)
    return Orders(
        limit=put(np.int32(limit), ()),
        dropped=put(no, ROW),
        held=put(no, ROW),
        resumed=put(no, ROW),
        single=put(no, ROW),
        masked=put(no, ROW),
        allowed=put(np.zeros((slots, -(-vocab_size // 32)), np.uint32), COLUMNS),
        forced=put(np.full((slots, steps), -1, np.int32), COLUMNS),
    )
