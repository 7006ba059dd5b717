"""An adapter for a place among several that lie side by side: its terms on the host, filled up with zeros to the room that there is."""

from collections.abc import Iterable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.adapters.attaching import terms
from gptoss_jax.adapters.factors import MOST_ALPHA, TARGETS, Adapter, Factors, check
from gptoss_jax.config import Config
from gptoss_jax.model import beside
from gptoss_jax.model.beside import Terms
from gptoss_jax.model.params import Params
from gptoss_jax.quoting import quoted


@dataclasses.dataclass(frozen=True)
class Fitted:
    """An adapter as a room takes it.

    Attributes:
        terms: NumPy arrays, like one place of the room's.
        rank: the largest of its matrices'.
        targets: the matrices that it has factors for, in some layer.
    """

    terms: Terms
    rank: int
    targets: tuple[str, ...]


def fitted(params: Params, config: Config, adapter: Adapter, *, rank: int, targets: tuple[str, ...]) -> Fitted:
    """An adapter for a room of such rank and targets beside a model's params. Compiles nothing.

    Raises:
        ValueError: it is not one of this model's, or does not fit the room.
    """
    check(config, adapter)
    if not adapter:
        raise ValueError("an adapter must have factors of a matrix at least; got none; make it with adapters.load or adapters.init.")
    host = {name: _on_host(name, factors) for name, factors in adapter.items()}
    most, own = max(factors.rank for factors in host.values()), {name.rpartition(".")[2] for name in host}
    if most > rank:
        raise ValueError(f"an adapter's rank must be at most the room's, {rank:,}; got {most:,}; make the LLM with adapter_rank={most}.")
    if outside := [name for name in own if name not in targets]:
        there, got = ", ".join(targets), ", ".join(sorted(outside))
        raise ValueError(f"an adapter must be on matrices that have room, {there}; got {got}; make the LLM with these in adapter_targets.")
    shapes = beside.room(params, config, adapters=1, rank=rank, targets=targets)
    with np.errstate(all="ignore"):  # what overflows is infinite, as on a device
        found = terms(config, host, params.layers[0].moe.gate_up_bias.shape[1] // 2, np)
    layers = []
    for layer, room in zip(found, shapes, strict=True):
        pairs = {name: zip(layer.get(name, (None, None)), specs, strict=True) for name, specs in room.items()}
        layers.append({name: tuple(_filled(x, spec.shape[1:]) for x, spec in pair) for name, pair in pairs.items()})
    return Fitted(tuple(layers), most, tuple(name for name in targets if name in own))


def room_for(adapters: Iterable[Adapter]) -> dict[str, Any]:
    """The keywords of an LLM that has room for these side by side, and no more."""
    found = list(adapters)
    if not found:
        return {}
    targets = {name.rpartition(".")[2] for one in found for name in one}
    rank = max(factors.rank for one in found for factors in one.values())
    return {"adapters": len(found), "adapter_rank": rank, "adapter_targets": [name for name in TARGETS if name in targets]}


def _on_host(name: str, factors: Factors) -> Factors:
    arrays = {}
    for side in ("a", "b"):
        array = getattr(factors, side)
        if isinstance(array, jax.core.Tracer) or isinstance(array, jax.Array) and array.is_deleted():
            raise ValueError(f"an adapter's factors must be there; {side} of {name} is deleted or traced; pass arrays that have values.")
        arrays[side] = np.asarray(array)
        if not jnp.issubdtype(arrays[side].dtype, jnp.floating):
            raise ValueError(f"an adapter's factors must be floating-point; {side} of {name} is {arrays[side].dtype}; convert it.")
    number = isinstance(factors.scale, int | float | np.number) and not isinstance(factors.scale, bool)
    if not number or not abs(factors.scale) <= MOST_ALPHA:
        most = f"{MOST_ALPHA:g} at most"
        raise ValueError(f"an adapter's scale must be a number, {most}; that of {name} is {quoted(factors.scale)}; pass alpha / rank.")
    return factors.replace(**arrays)


def _filled(x: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """In float32, which holds what any factor holds; zeros where there is none, or more."""
    whole = np.zeros(shape, np.float32)
    if x is not None:
        whole[tuple(slice(size) for size in x.shape)] = x
    return whole
