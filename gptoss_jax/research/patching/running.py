"""The two ways to fill a grid: a run for each cell, many of them together; or an estimate of all cells from one backward pass."""

from collections.abc import Sequence
import functools
import itertools
import numbers
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.model.hooks import capture, patch
from gptoss_jax.model.params import Params
from gptoss_jax.model.transformer import forward, unembed
from gptoss_jax.quoting import quoted
from gptoss_jax.research.patching.effects import Effects
from gptoss_jax.research.patching.metrics import Metric, as_partial, measured
from gptoss_jax.research.patching.plan import By, Cell, Plan, indices, plan

Into = Literal["corrupt", "clean"]


def grid(
    params: Params,
    config: Config,
    clean: Sequence[Sequence[int]] | jax.Array,  # [B, T] int32
    corrupt: Sequence[Sequence[int]] | jax.Array,  # [B, T] int32
    metric: Metric,
    site: str | Sequence[str],
    *,
    by: By = "position",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    at: int | Sequence[int] = -1,
    into: Into = "corrupt",
    batch: int = 16,
) -> Effects:
    """The metric of a run in which one site, in one layer, at one position or of one head, has its value from the other run: for each.

    Args:
      clean, corrupt: prompts, row by row of the same length and, but for what is in question, the same text; [T] of one row.
      metric: of the logits [B, V] behind the token `at`, or of [B, P, V] behind several, to [B] or to one number: `logit_difference`,
        `log_probability`, or a function that JAX can trace. Each function is compiled once.
      site: as in `gptoss_jax.sites`, without the layer, such as "attention.out"; several are an axis of their own, the first.
      by: a cell is a position; a head of an attention site, at all `positions` together; or a head at a position.
      layers: None for all.
      positions: None for all; negative ones count from the end.
      at: of which tokens the logits are taken; -1 is the last.
      into: "corrupt" puts clean values into the corrupt run, which shows what suffices (denoising); "clean" corrupt values into the clean
        run, which shows what is needed (noising).
      batch: cells at a time: as many times B rows are computed together, which bounds memory.

    Raises:
      ValueError: prompts of different lengths or without a difference, or what is no site, layer, position, metric or batch.
    """
    one, metric, at = _door(params, config, clean, corrupt, metric, site, by, layers, positions, at, into)
    if not isinstance(batch, numbers.Integral) or isinstance(batch, bool) or batch < 1:
        raise ValueError(f"batch must be a whole number of cells from 1 on; got {quoted(batch, 60)}; pass 1 for the least memory.")
    source, run = (one.clean, one.corrupt) if into == "corrupt" else (one.corrupt, one.clean)
    _, values = _look(params, config, source, metric, names=one.names, at=at)
    values = tuple(values[name] for name in one.names)

    cells = list(one.cells())
    todo = [i for i, cell in enumerate(cells) if cell.places.any()]
    nowhere = Cell(-1, np.zeros(run.shape, bool))
    runs = [(one.clean, nowhere), (one.corrupt, nowhere), *((run, cells[i]) for i in todo)]
    batch = min(int(batch), 1 << (len(runs) - 1).bit_length())  # few cells need no more rows, and few sizes are few programs
    patched = functools.partial(_patched, names=one.names, at=at, heads="head" in by)
    found = []
    for some in itertools.batched(runs, batch):
        tokens, these = zip(*some, *some[:1] * (batch - len(some)), strict=True)
        where = (np.array([getattr(cell, part) for cell in these]) for part in ("name", "places", "head"))
        found.extend(np.asarray(patched(params, config, np.stack(tokens), values, *where, metric)))
    clean_is, corrupt_is = found[:2]
    all_cells = np.repeat((corrupt_is if into == "corrupt" else clean_is)[None], len(cells), 0)
    all_cells[todo] = np.reshape(found[2 : len(runs)], (len(todo), -1))
    return Effects(all_cells.reshape(*one.shape, -1), clean_is, corrupt_is, one.axes)


def estimate(
    params: Params,
    config: Config,
    clean: Sequence[Sequence[int]] | jax.Array,  # [B, T] int32
    corrupt: Sequence[Sequence[int]] | jax.Array,  # [B, T] int32
    metric: Metric,
    site: str | Sequence[str],
    *,
    by: By = "position",
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    at: int | Sequence[int] = -1,
    into: Into = "corrupt",
) -> Effects:
    """What `grid` would say if the metric were linear in the value: its gradient in the run, times the change that a patch makes.

    One forward pass of each prompt and one backward pass, however many cells there are (attribution patching). It is good where a patch
    changes little, and misleads where a value is saturated. Arguments are those of `grid`; rows of a metric must not look at each other.

    Raises:
      ValueError: as for `grid`, and a site of integers, which has no gradient.
    """
    one, metric, at = _door(params, config, clean, corrupt, metric, site, by, layers, positions, at, into)
    if "moe.experts" in one.sites:
        raise ValueError("an estimate needs a site of real numbers; moe.experts holds integers; use grid, or moe.router_logits.")
    tokens = (one.clean, one.corrupt)
    (clean_is, _), (corrupt_is, _) = seen = [_look(params, config, rows, metric, names=one.names, at=at) for rows in tokens]
    source, run = (0, 1) if into == "corrupt" else (1, 0)
    change = {name: seen[source][1][name] - seen[run][1][name] for name in one.names}
    by_place = _slopes(params, config, tokens[run], change, metric, names=one.names, at=at, heads="head" in by)
    effects = _summed(one, [np.asarray(by_place[name]) for name in one.names], len(clean_is))
    clean_is, corrupt_is = np.asarray(clean_is), np.asarray(corrupt_is)
    return Effects((corrupt_is if into == "corrupt" else clean_is) + effects, clean_is, corrupt_is, one.axes)


def _door(params, config, clean, corrupt, metric, site, by, layers, positions, at, into) -> tuple[Plan, Metric, int | tuple[int, ...]]:
    one = plan(params, config, clean, corrupt, site, by, layers, positions)
    if into not in Into.__args__:
        raise ValueError(f"into must be 'corrupt' or 'clean'; got {quoted(into, 60)}; pass the run that is patched.")
    single = isinstance(at, numbers.Integral) and not isinstance(at, bool)
    places = indices("at", [at] if single else at, one.clean.shape[1], "-1 for the last token")
    return one, as_partial(metric, config), places[0] if single else places


def _logits(params: Params, config: Config, tokens: jax.Array, at: int | tuple[int, ...], changes: dict, names: Sequence[str] = ()):
    """Logits [B, V] or [B, P, V] behind the tokens `at`, of which alone they are made, and what the named sites hold."""
    last = f"layers.{config.num_hidden_layers - 1}.residual_post"
    _, seen = capture(patch(forward, changes) if changes else forward, [*names, last])(params, config, tokens)
    logits = unembed(params, config, seen[last][:, np.atleast_1d(at)])
    return logits[:, 0] if isinstance(at, int) else logits, {name: seen[name] for name in names}


@functools.partial(jax.jit, static_argnames=("config", "names", "at"))
def _look(params: Params, config: Config, tokens: jax.Array, metric: Metric, *, names: tuple[str, ...], at):
    """The metric of a run as it is, and what its sites hold."""
    logits, seen = _logits(params, config, tokens, at, {}, names)
    return measured(metric, logits), seen


@functools.partial(jax.jit, static_argnames=("config", "names", "at", "heads"))
def _patched(
    params: Params,
    config: Config,
    tokens: jax.Array,  # [cells, B, T] int32
    values: tuple[jax.Array, ...],  # of each name, [B, T, ...]
    name: jax.Array,  # [cells] int32, -1 for none
    places: jax.Array,  # [cells, B, T] bool
    head: jax.Array,  # [cells] int32
    metric: Metric,
    *,
    names: tuple[str, ...],
    at: int | tuple[int, ...],
    heads: bool,
) -> jax.Array:  # [cells, B] or [cells, 1] float32
    """The metric of some cells. They are rows of one batch, each with its own part of the values."""
    cells, B, _ = tokens.shape

    def change(i: int, value: jax.Array) -> jax.Array:
        own = value.reshape(cells, B, *value.shape[1:])
        here = (places & (name == i)[:, None, None]).reshape(places.shape + (1,) * (own.ndim - 3))
        if heads:
            mine, each = jnp.expand_dims(head, range(1, own.ndim)), jnp.arange(own.shape[3])
            here &= mine == jnp.expand_dims(each, [axis for axis in range(own.ndim) if axis != 3])
        return jnp.where(here, values[i][None], own).reshape(value.shape)

    changes = {site: functools.partial(change, i) for i, site in enumerate(names)}
    logits, _ = _logits(params, config, tokens.reshape(cells * B, -1), at, changes)
    return jax.vmap(functools.partial(measured, metric))(logits.reshape(cells, B, *logits.shape[1:]))


@functools.partial(jax.jit, static_argnames=("config", "names", "at", "heads"))
def _slopes(params: Params, config: Config, tokens: jax.Array, change: dict, metric: Metric, *, names, at, heads: bool):
    """Of each site the metric's derivative along its change, [B, T], or [B, T, heads]."""

    def total(added):
        changes = {name: functools.partial(jnp.add, added[name]) for name in names}
        return jnp.sum(measured(metric, _logits(params, config, tokens, at, changes)[0]))

    slopes = jax.grad(total)(jax.tree.map(jnp.zeros_like, change))
    kept = 3 if heads else 2
    return {name: jnp.sum(slopes[name] * change[name], range(kept, change[name].ndim)) for name in names}


def _summed(one: Plan, by_place: list[np.ndarray], rows: int) -> np.ndarray:
    """What a change at each cell's places adds up to, [*grid, rows]: of all rows together where the metric has one number for them."""
    places = one.places.astype(np.float32)  # [columns, B, T]
    each = np.stack([np.einsum("cbt,bt...->c...b", places, part) for part in by_place])  # [names, columns, heads, B]
    each = each if rows > 1 else each.sum(-1, keepdims=True)
    return each.reshape(*one.shape, -1)
