"""Weights by name: what to differentiate, train or replace, chosen by patterns from a tree of parameters.

A weight's name is its place in `Params`: "embedding", "layers.3.attention.sinks", "layers.0.moe.gate_up.blocks".

    weights = select(params, "layers.*.attention.sinks")
    grads = jax.grad(lambda w: loss(substitute(params, w)))(weights)     # {name: array}
"""

from collections.abc import Iterable, Mapping, Sequence
import difflib
import fnmatch
from typing import NoReturn

import jax

from gptoss_jax.model.params import Params
from gptoss_jax.quoting import quoted


def names(params: Params) -> list[str]:
    """Every weight's name."""
    return [_name(path) for path, _ in jax.tree.leaves_with_path(params)]


def select(params: Params, patterns: str | Sequence[str]) -> dict[str, jax.Array]:
    """The weights of the given names or patterns ("*" and "?" stand for anything), by name.

    Raises:
      ValueError: a pattern means no weight.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns) if isinstance(patterns, Iterable) else patterns
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"patterns must be names of weights, or patterns; got {quoted(patterns, 60)}; pass strings.")
    leaves = {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    for pattern in patterns:
        if not fnmatch.filter(leaves, pattern):
            refuse(pattern, list(leaves))
    return {name: leaf for name, leaf in leaves.items() if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)}


def substitute(params: Params, weights: Mapping[str, jax.Array]) -> Params:
    """The parameters with the named weights in place of their own.

    Raises:
      ValueError: there is no weight of that name, or it has another shape.
    """
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) and hasattr(new, "shape") for name, new in weights.items()):
        raise ValueError(f"weights must be a dict of names and arrays; got {quoted(weights, 60)}; pass what select returned, or its like.")
    known = names(params)
    for name in weights:
        if name not in known:
            refuse(name, known)

    def leaf(path, own):
        new = weights.get(_name(path), own)
        if new.shape != own.shape:
            raise ValueError(f"{_name(path)} has shape {own.shape}; got {new.shape}; pass an array of that shape.")
        return new

    return jax.tree.map_with_path(leaf, params)


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def refuse(name: str, known: list[str]) -> NoReturn:
    """Raises ValueError: there is no weight of that name; it says which are like it."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0)
    raise ValueError(f"no weight is named {quoted(name)}; similar names are {', '.join(near)}.")
