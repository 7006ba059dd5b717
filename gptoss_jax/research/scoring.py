"""The log-probabilities of given tokens, without drawing anything; what sequences begin with in common is computed once.

Sequences are cut into blocks of a page, of which equal beginnings are one (`branches`). Dispatches are of one shape, and a row's numbers do
not depend on the other rows: a sequence's are the same to the bit in any company.
"""

from collections import deque
from collections.abc import Generator, Mapping, Sequence
import dataclasses
import itertools
from typing import Any

import jax
import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.engine.device import scored, weights
from gptoss_jax.engine.device.state import Blocks
from gptoss_jax.engine.engine import Engine
from gptoss_jax.engine.sizes import Sizes
from gptoss_jax.model.cache import Cache, make_cache, ring_blocks
from gptoss_jax.model.params import Params
from gptoss_jax.parallel import sharding
from gptoss_jax.parallel.sharding import Place
from gptoss_jax.research.branches import Block, Walk, dealt, next_rows
from gptoss_jax.sampling.options import MAX_GIVEN, MAX_LOGPROBS
from gptoss_jax.sampling.reported import Sampled


@dataclasses.dataclass(frozen=True, eq=False)
class PromptLogprobs:
    """What the model says of each token of a prompt but the first, before which there is nothing.

    Attributes:
      tokens: ids, all of them.
      logprobs: [len(tokens) - 1] float32: entry i is the natural log of the probability of tokens[i + 1] after those before it, under
        the model's own distribution: before bias, penalties, temperature, filters and masks.
      top_logprobs: for each of these places, the most probable ids and their log-probabilities, most probable first; None unless asked for.
      given_logprobs: for each of these places, the ids that were given and their log-probabilities; None unless there are some.
    """

    tokens: tuple[int, ...]
    logprobs: np.ndarray
    top_logprobs: tuple[dict[int, float], ...] | None
    given_logprobs: tuple[dict[int, float], ...] | None = None


def score(params: Params, config: Config, sequences: Sequence[Sequence[int]], **options) -> list[PromptLogprobs]:
    """What the model says of every token after the first of each sequence; arguments and result are those of `dispatches`."""
    steps = dispatches(params, config, sequences, **options)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def run(
    engine: Engine,
    sequences: Sequence[Sequence[int]],
    top: int = 0,
    given: Sequence[int] = (),
    *,
    adapter: str | None = None,
    compiled: set[tuple[bool, bool]],
) -> list[PromptLogprobs]:
    """As `dispatches`, in the thread and the sizes of an engine.

    Args:
      adapter: name of one that is attached to the engine; None for none.
      compiled: of the programs without and with the most probable tokens, and given ones, those that are compiled; written to.

    Raises:
      ValueError: token ids that `requests.check_prompt` refuses; no adapter of that name is attached.
      RuntimeError: a weight is no more, which it names; or what a dispatch raises.
    """
    engine.check_awake()
    engine.terms_of(adapter)
    for ids in sequences:
        engine.check(ids, room=0)
    told = {"sizes": engine.sizes, "cache_dtype": engine.programs.cache_dtype, "top": top, "given": given}
    program = (bool(top), bool(given))
    if program not in compiled:  # here, not in the engine's thread, which others wait for
        compile(engine.programs.joined, engine.config, **told, adapter=engine.terms_of(None))
        compiled.add(program)
    return engine.work(_now(engine, sequences, adapter, told))


def _now(engine: Engine, sequences: Sequence[Sequence[int]], adapter: str | None, told: Mapping[str, Any]) -> Generator:
    """`dispatches` with the weights and the adapter that there are when they begin."""
    which, params = engine.terms_of(adapter), engine.params  # it may be gone by now
    try:
        return (yield from dispatches(engine.programs.joined, engine.config, sequences, **told, adapter=which))
    except RuntimeError as error:
        if (why := weights.lost(params)) is None:
            raise
        raise RuntimeError(f"a score failed: {why}, and ask again.") from error


def compile(
    params: Params,
    config: Config,
    *,
    sizes: Sizes,
    top: int = 0,
    given: Sequence[int] = (),
    cache_dtype=None,
    adapter: int | None = None,
) -> None:
    """Compiles what `dispatches` with these arguments runs, which its first dispatch does otherwise."""
    pages = _pages(sizes)
    blocks, targets = _put(params, _packed([], config, sizes, pages, adapter))
    cache = _cache(params, config, sizes, pages, cache_dtype)
    with sharding.at(_home(params)):
        scored.score.lower(params, config, cache, blocks, targets, **_options(params, top, given)).compile()


def dispatches(
    params: Params,
    config: Config,
    sequences: Sequence[Sequence[int]],
    *,
    sizes: Sizes,
    top: int = 0,
    given: Sequence[int] = (),
    cache_dtype=None,
    adapter: int | None = None,
) -> Generator[None, None, list[PromptLogprobs]]:
    """What the model says of every token after the first of each sequence; yields after each dispatch.

    Args:
      params, config: the model.
      sequences: token ids that `requests.check_prompt` does not refuse, with room for none.
      sizes: of an engine: a dispatch reads as many tokens, sequences may be as long. The cache is this call's own: of a context and a
        dispatch for each replica.
      top: how many of the most probable tokens to report, at most `MAX_LOGPROBS`.
      given: ids of the vocabulary whose log-probabilities to report, at most `MAX_GIVEN`.
      cache_dtype: of keys and values; None for the params' own.
      adapter: which of the terms that lie side by side in params, see `beside.take`: -1 for none of them, None where there are none.

    Returns:
      One for each sequence, in their order.
    """
    arrays = [np.asarray(ids, np.int32) for ids in sequences]
    rows, pages = sizes.read_rows // sizes.replicas, _pages(sizes)
    walks = [Walk(part, i * pages, pages, sizes.page) for i, part in enumerate(dealt(arrays, sizes))]
    paths = [iter(walk) for walk in walks]
    cache, asked, options = None, deque(), _options(params, top, given)
    while owners := next_rows(paths, rows):
        cache = cache or _cache(params, config, sizes, pages, cache_dtype)
        blocks, targets = _put(params, _packed(owners, config, sizes, pages, adapter))
        for walk in walks:
            walk.dispatched()
        with sharding.at(_home(params)):  # as it was compiled
            cache, said = scored.score(params, config, cache, blocks, targets, **options)
        asked.append((said, [(row, path[-1]) for row, path in owners]))
        if len(asked) > 1:  # the device has the next at hand
            _take_in(*asked.popleft(), top)
        yield
    while asked:
        _take_in(*asked.popleft(), top)
    found = {number: path for walk in walks for number, path in walk.paths.items()}
    return [_joined(ids, found[number], top, given) for number, ids in enumerate(arrays)]


def _pages(sizes: Sizes) -> int:
    """Of a replica."""
    return sizes.blocks + sizes.read_rows // sizes.replicas


def _options(params: Params, top: int, given: Sequence[int]) -> dict[str, Any]:
    """Of four programs at most."""
    ids = np.full(MAX_GIVEN, -1, np.int32)
    ids[: len(given)] = given
    return {"top_logprobs": MAX_LOGPROBS if top else 0, "given": sharding.put(ids, _home(params), (None,)) if given else None}


def _packed(owners: list[tuple[int, list[Block]]], config: Config, sizes: Sizes, pages: int, adapter: int | None):
    """A dispatch on the host: `Blocks`, and the targets [P, T] of these. `pages`: of a replica."""
    n, ring = sizes.read_rows, _ring(config, sizes)
    tokens, targets = np.zeros((2, n, sizes.page), np.int32)
    count, start = np.zeros((2, n), np.int32)
    some_page = (np.arange(n, dtype=np.int32) * sizes.replicas // n * pages)[:, None]  # of the row's replica, where nothing else is
    full_table, ring_table = np.repeat(some_page, sizes.blocks, 1), np.repeat(some_page, ring, 1)
    for row, path in owners:
        block = path[-1]
        count[row], start[row] = len(block.ids) - 1, block.start
        tokens[row, : count[row]], targets[row, : count[row]] = block.ids[:-1], block.ids[1:]
        full_table[row, : len(path)] = [one.page for one in path]
        for i in range(max(0, len(path) - ring), len(path)):
            ring_table[row, i % ring] = path[i].page
    which = None if adapter is None else np.full(n, adapter, np.int32)
    return Blocks(tokens, count, start, full_table, ring_table, which), targets


def _home(params: Params) -> Place:
    return sharding.home(params.partition, params.embedding)


def _put(params: Params, arrays):
    """A tree of NumPy arrays with a row for each block, where the params lie."""
    return jax.tree.map(lambda x: sharding.put(x, _home(params), ("batch", None)[: x.ndim]), arrays)


def _ring(config: Config, sizes: Sizes) -> int:
    """Blocks that sliding layers look at: those of a window before a block, and itself."""
    return min(sizes.blocks, ring_blocks(config, sizes.page, sizes.page))


def _cache(params: Params, config: Config, sizes: Sizes, pages: int, dtype) -> Cache:
    """An empty cache of so many pages a replica, which layers of both kinds use alike."""
    tables = (np.zeros((sizes.read_rows, width), np.int32) for width in (sizes.blocks, _ring(config, sizes)))
    total = pages * sizes.replicas
    lies = {"dtype": dtype or params.embedding.dtype, "page_size": sizes.page, "partition": _home(params)}
    return make_cache(config, *tables, full_pages=total, ring_pages=total, **lies)


def _take_in(said: Sampled, owners: list[tuple[int, Block]], top: int) -> None:
    """Waits for a dispatch and gives each block what is its own."""
    said = jax.device_get(said)
    for row, block in owners:
        own = lambda all, row=row, block=block: all[row, : len(block.ids) - 1]
        block.scores = Sampled(
            tokens=own(said.tokens),
            logprobs=own(said.logprobs),
            top_tokens=own(said.top_tokens)[:, :top],
            top_logprobs=own(said.top_logprobs)[:, :top],
            given_logprobs=None if said.given_logprobs is None else own(said.given_logprobs),
        )


def _joined(ids: np.ndarray, path: list[Block], top: int, given: Sequence[int]) -> PromptLogprobs:
    """What a sequence's blocks say."""
    logprobs = np.concatenate([block.scores.logprobs for block in path] or [np.zeros(0, np.float32)])
    best = None
    if top:
        rows = [zip(block.scores.top_tokens.tolist(), block.scores.top_logprobs.tolist(), strict=True) for block in path]
        best = tuple(dict(zip(*row, strict=True)) for row in itertools.chain.from_iterable(rows))
    others = None
    if given:
        rows = (block.scores.given_logprobs[:, : len(given)].tolist() for block in path)
        others = tuple(dict(zip(given, row, strict=True)) for row in itertools.chain.from_iterable(rows))
    return PromptLogprobs(tuple(ids.tolist()), logprobs, best, others)
