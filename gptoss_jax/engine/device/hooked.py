"""Hooks of requests within programs: what changes and keeps the values of sites while a program is traced, row by row.

A kind of hook (`engine.hooks.kinds.Kind`) is static; what each row is given is data. A function is mapped over rows and tokens, so that a
row's values do not depend on what the other rows are.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from gptoss_jax.config import Config
from gptoss_jax.engine.hooks.kinds import LAST_ONLY, Kind, Step, dtype_of, shape_of
from gptoss_jax.model import hooks
from gptoss_jax.model.cache import Cache
from gptoss_jax.model.params import Params
from gptoss_jax.model.transformer import unembed
from gptoss_jax.quoting import said


@flax.struct.dataclass
class Given:
    """What the rows of a dispatch are given, for the steps of a kind."""

    spans: jax.Array  # [B, steps, 2] int32: from which position on a token is changed, and before which; nothing where these are equal
    new: tuple[jax.Array | None, ...]  # of each step [B, ...]


def looking(fn: Callable, kind: Kind | None, given: Given | None, positions: jax.Array, *, logits: bool = True) -> Callable:
    """`fn`, a function of the model, with a kind's changes made; it returns its result and what is kept, {name: [B, T, ...]}.

    Args:
      kind: None for `fn` as it is, which keeps nothing.
      positions: [B, T] int32 of its tokens.
      logits: whether `fn` passes the sites behind the last layer.
    """
    if kind is None:
        return lambda *args, **options: (fn(*args, **options), {})
    of: dict[str, list[int]] = {}
    for i, step in enumerate(kind.steps):
        for name in step.names:
            if logits or name not in LAST_ONLY:
                of.setdefault(name, []).append(i)
    changes = {name: _change(name, kind, steps, given, positions) for name, steps in of.items()}
    fn = hooks.patch(fn, changes) if changes else fn
    return hooks.capture(fn, kind.captures) if kind.captures else lambda *args, **options: (fn(*args, **options), {})


def reading(kind: Kind | None, extend: Callable) -> tuple[Callable, bool]:
    """What reads a prompt: `extend`, or for a kind that keeps the last norm or the logits what goes as far; and whether it does."""
    if kind is None or not set(LAST_ONLY) & set(kind.captures):
        return extend, False

    def to_the_logits(params: Params, config: Config, *args, hook: hooks.Hook | None = None) -> tuple[jax.Array, Cache]:
        x, cache = extend(params, config, *args, hook=hook)
        unembed(params, config, x, hook=hook)
        return x, cache

    return to_the_logits, True


def empty(kind: Kind | None, config: Config, cache: Cache, rows: int, steps: int) -> dict[str, jax.Array]:
    """Room for what a kind keeps of so many steps, [rows, steps, ...] each."""
    names, context = () if kind is None else kind.captures, cache.full_table.shape[1] * cache.k[0].shape[2]
    return {name: jnp.zeros((rows, steps, *shape_of(config, name, context)), dtype_of(name)) for name in names}


def _change(name: str, kind: Kind, steps: list[int], given: Given, positions: jax.Array) -> Callable[[jax.Array], jax.Array]:
    def change(value: jax.Array) -> jax.Array:
        for i in steps:
            meant = (positions >= given.spans[:, i, :1]) & (positions < given.spans[:, i, 1:])
            changed = _changed(name, kind.steps[i], value, given.new[i])
            value = jnp.where(meant.reshape(*meant.shape, *(1,) * (value.ndim - 2)), changed, value)
        return value

    return change


def _changed(name: str, step: Step, value: jax.Array, new: jax.Array | None) -> jax.Array:
    """The value of every token [B, T, ...] as a step has it."""
    one = lambda token, new: apply(name, step, token[None, None], new)[0, 0]
    return jax.vmap(jax.vmap(one, (0, None)), (0, None if new is None else 0))(value, new)


def apply(name: str, step: Step, value: jax.Array, new: Any) -> jax.Array:
    """One token's value [1, 1, ...] as a step has it. Raises ValueError where its function fails or returns another kind of array."""
    if step.operation != "call":
        return getattr(value.at[step.at], step.operation)(new.astype(value.dtype))
    try:
        changed = step.function(value)
    except Exception as error:  # of a function that is not ours
        got = f"it raised {said(error)}"
        raise ValueError(
            f"a patch of {name} must be a function of one token's value, {value.dtype}{value.shape}; {got}; mend it."
        ) from error
    if getattr(changed, "shape", None) != value.shape or changed.dtype != value.dtype:
        got = f"{changed.dtype}{changed.shape}" if hasattr(changed, "shape") else type(changed).__name__
        raise ValueError(f"a hook must return an array like the one it got; {name} is {value.dtype}{value.shape}, got {got}.")
    return changed
