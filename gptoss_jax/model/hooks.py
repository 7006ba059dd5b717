"""Hooks: a hook is a function (name, value) -> value that every named site of the model passes through.

Returning the value observes it; returning another one of the same shape and dtype patches it. Hooks run while the model is
traced, so without one the compiled program is the same as if the sites were not there. `capture` and `patch` make hooks of
names and values: they take any function of the model that takes `hook=`, and return one that takes it again. Names may be those of
TransformerLens (`gptoss_jax.model.aliases`).

    logits, seen = capture(forward, "layers.*.residual_post")(params, config, tokens)
    logits = patch(forward, {"layers.3.attention.out": 0.0})(params, config, tokens)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import difflib
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp

from gptoss_jax.model import aliases, inputs
from gptoss_jax.model.sites import SITES, site_of
from gptoss_jax.quoting import quoted, said

Hook = Callable[[str, jax.Array], jax.Array]
Change = jax.typing.ArrayLike | Callable[[jax.Array], jax.Array]


def capture(fn: Callable, names: str | Sequence[str]) -> Callable:
    """`fn`, which then returns its result and the values of the named sites: (result, {name: value}).

    jit, vmap, grad and a mesh treat the values as any other result. Values are those that flow on, behind every patch.

    Args:
      fn: `forward`, `extend`, `prefill`, `decode_step`, or any function that hands its keyword `hook` to one of them.
      names: of sites, or patterns such as "layers.*.moe.experts" ("*" and "?" stand for anything, "[02]" for one of these); those of
        TransformerLens, such as "blocks.*.hook_resid_post", keep the value under its name there.

    Raises (the returned function):
      ValueError: a name or pattern that `fn` passes nowhere.
    """
    names, fn = inputs.names_of(names), inputs.function_of(fn)

    @functools.wraps(fn)
    def captured(*args, hook: Hook | None = None, **options) -> tuple[Any, dict[str, jax.Array]]:
        kept = _Capture(hook, names)
        result = fn(*args, hook=kept, **options)
        _check_used(names, kept.used, kept.passed)
        return result, kept.values

    return captured


def patch(fn: Callable, changes: Mapping[str, Change]) -> Callable:
    """`fn`, with the values of the named sites changed; it returns what `fn` returns.

    Args:
      fn: as for `capture`.
      changes: of a name or a pattern, what replaces the value (an array or a number, broadcast to its shape), or a function that is
        given the value and returns another; see `add`, `scale`. Where several match, they follow one another.

    Raises (the returned function):
      ValueError: a name or pattern that `fn` passes nowhere, a value that does not fit, or a site that cannot be patched.
    """
    names, fn = inputs.names_of(changes if isinstance(changes, Mapping) else ()), inputs.function_of(fn)

    @functools.wraps(fn)
    def patched(*args, hook: Hook | None = None, **options) -> Any:
        changing = _Patch(hook, names, changes)
        result = fn(*args, hook=changing, **options)
        _check_used(names, changing.used, changing.passed)
        return result

    return patched


def add(vector: jax.typing.ArrayLike, at: Any = ...) -> Change:
    """A change that adds to the value: a steering vector [D], say. `at` indexes where, such as `np.s_[:, -1]`."""
    return At("add", vector, at)


def scale(factor: jax.typing.ArrayLike, at: Any = ...) -> Change:
    """A change that multiplies the value; 0 ablates. `at` indexes where, such as `np.s_[:, :, 3]` for a head."""
    return At("multiply", factor, at)


def replace(new: jax.typing.ArrayLike, at: Any = ...) -> Change:
    """A change that replaces the value, or the part that `at` indexes, such as `np.s_[:, 7]` for a position."""
    return At("set", new, at)


@dataclasses.dataclass(frozen=True, eq=False)
class At:
    """A change of a value, or of a part of it, by one of `jax.Array.at`'s operations."""

    operation: str
    new: jax.typing.ArrayLike
    at: Any

    def __call__(self, value: jax.Array) -> jax.Array:
        try:
            inputs.check_index(value.shape, self.at)
            return getattr(value.at[self.at], self.operation)(jnp.asarray(self.new, value.dtype))
        except (TypeError, ValueError, IndexError) as error:
            got = f"{quoted(self.new, 40)} at {quoted(self.at, 40)}"
            raise ValueError(f"a change must fit its value, {value.dtype}{value.shape}; got {got} ({said(error)}).") from error


def force_experts(experts: jax.typing.ArrayLike) -> dict[str, Change]:
    """Changes for `patch` that route tokens to given experts, of a capture or a generation; gates follow from their router logits.

    Args:
      experts: [T, L, A] or [B, T, L, A] integers, such as `Completion.routed_experts`; below 0, and E or more, is no expert.
    """
    experts = inputs.array_of(experts, "experts")
    if experts.ndim not in (3, 4) or not jnp.issubdtype(experts.dtype, jnp.integer):
        raise ValueError(f"experts must be integers [T, L, A] or [B, T, L, A]; got {experts.dtype}{experts.shape}.")
    layers = jnp.moveaxis(experts.astype(jnp.int32), -2, 0)
    return {f"layers.{i}.moe.experts": layer for i, layer in enumerate(layers)}


def layers_of(values: Mapping[str, jax.Array], site: str) -> jax.Array:
    """What `capture` kept of one site in several layers, in their order: [layers, ...].

    Args:
      values: by name.
      site: such as "residual_post" or "hook_resid_post", without the layer.
    """
    own = re.compile(rf"(?:layers|blocks)\.(\d+)\.{re.escape(site)}")
    kept = {int(match[1]): value for name, value in values.items() if (match := own.fullmatch(name))}
    if not kept:
        raise ValueError(
            f"no layer's {quoted(site)} is among the values, which are {', '.join(list(values)[:6])}; capture 'layers.*.{site[:40]}'."
        )
    return jnp.stack([kept[i] for i in sorted(kept)])


def tap(hook: Hook | None, name: str, value: jax.Array) -> jax.Array:
    """`value` as the hook returns it; `value` itself without one."""
    if hook is None:
        return value
    patched = hook(name, value)
    if getattr(patched, "shape", None) != value.shape or patched.dtype != value.dtype:
        got = f"{patched.dtype}{patched.shape}" if hasattr(patched, "shape") else type(patched).__name__
        raise ValueError(f"a hook must return an array like the one it got; {name} is {value.dtype}{value.shape}, got {got}.")
    if patched is not value and site_of(name).fixed:
        raise ValueError(f"{name} can be looked at, not patched; patch attention.sink_mass or attention.pattern instead.")
    return patched


def asked(hook: Hook | None, name: str) -> bool:
    """Whether a hook wants a site that is computed on request."""
    return any(kind.wants(name) for kind in _chain(hook))


def carried(transform: Callable[[Callable], Callable], fn: Callable, hook: Hook | None) -> Callable:
    """`transform(fn)`, where what `capture` keeps inside leaves the transformation as results, as JAX wants it."""
    keeping = [kind for kind in _chain(hook) if isinstance(kind, _Capture)]

    def inside(*args):
        outer = [kept.values for kept in keeping]
        for kept in keeping:
            kept.values = {}
        result = fn(*args)
        own = [kept.values for kept in keeping]
        for kept, values in zip(keeping, outer, strict=True):
            kept.values = values
        return result, own

    def run(*args):
        result, own = transform(inside)(*args)
        for kept, values in zip(keeping, own, strict=True):
            kept.values |= values
        return result

    return run


class _Named:
    """A hook for some names, around another one that comes first or last."""

    def __init__(self, other: Hook | None, names: tuple[str, ...]):
        self.other, self.names = other, names
        self.used: set[str] = set()
        self.passed: list[str] = []

    def wants(self, name: str) -> bool:
        return any(aliases.meant(pattern, name, named=True) for pattern in self.names)

    def matching(self, name: str) -> dict[str, list[str]]:
        """The patterns that mean this site, each with those of its names that it means."""
        self.passed.append(name)
        named = site_of(name).on_request
        found = {pattern: names for pattern in self.names if (names := aliases.meant(pattern, name, named=named))}
        self.used.update(found)
        return found


class _Capture(_Named):
    def __init__(self, other: Hook | None, names: tuple[str, ...]):
        super().__init__(other, names)
        self.values: dict[str, jax.Array] = {}

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        value = tap(self.other, name, value)
        for own in self.matching(name).values():
            self.values |= {one: aliases.there(one, value) for one in own}
        return value


class _Patch(_Named):
    def __init__(self, other: Hook | None, names: tuple[str, ...], changes: Mapping[str, Change]):
        super().__init__(other, names)
        self.changes = changes

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        for pattern, (one, *_) in self.matching(name).items():
            value = _changed(one, value, self.changes[pattern])
        return tap(self.other, name, value)


def _changed(name: str, value: jax.Array, change: Change) -> jax.Array:
    seen = aliases.there(name, value)
    new = change(seen) if callable(change) else inputs.fitted(name, seen, change)
    return value if new is seen else aliases.here(name, new)


def _chain(hook: Hook | None) -> Iterator[_Named]:
    while isinstance(hook, _Named):
        yield hook
        hook = hook.other


def _check_used(names: Sequence[str], used: set[str], passed: Sequence[str]) -> None:
    for name in names:
        if name in used:
            continue
        if why := aliases.why_absent(name):
            raise ValueError(f"a name of TransformerLens must be that of a site; got {quoted(name)}; {why}.")
        known = list(dict.fromkeys([*passed, *(site.replace("{i}", "0") for site in (*SITES, *aliases.TRANSFORMER_LENS))]))
        near = difflib.get_close_matches(name, known, n=3, cutoff=0)
        raise ValueError(f"no site that was passed is named {quoted(name)}; similar names are {', '.join(near)}; sites(config) lists all.")
