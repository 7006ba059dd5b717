"""Room on the device for the low-rank terms of several adapters, each in a place of its own.

Arrays are never written over: what is under way keeps what it was given, and whoever reads the terms has those of one moment.
"""

from collections.abc import Callable, Collection
import functools
import itertools
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.model import beside
from gptoss_jax.model.beside import Terms
from gptoss_jax.model.params import Params, Spec, has_adapter, is_spec
from gptoss_jax.parallel import sharding
from gptoss_jax.parallel.sharding import Axes, Partition, constrain
from gptoss_jax.quoting import quoted

MOST = 1 << 16  # adapters, and of their ranks


class Room:
    """Terms of several adapters beside a model's params. Takes no memory before `make`.

    Args:
      params, config: the model.
      adapters: places.
      rank: of the terms; those of less are filled up with zeros.
      targets: matrices that have terms; see `beside.MATRICES`.
    """

    def __init__(self, params: Params, config: Config, *, adapters: int, rank: int, targets: tuple[str, ...]):
        self.rank, self.targets, self._partition = rank, targets, params.partition
        self._home = sharding.home(params.partition, params.embedding)
        room = beside.room(params, config, adapters=adapters, rank=rank, targets=targets)
        self.nbytes = beside.room_bytes(room, params.partition)  # of a device
        self._specs, self._tree = jax.tree.flatten(room, is_leaf=is_spec)
        self._arrays: list[jax.Array] = []
        self._compiled: dict[tuple, Callable] = {}
        self._writes = 0  # so far
        self._joined: tuple[Params, int, Params] | None = None  # what was asked for last

    @classmethod
    def of(cls, params: Params, config: Config, adapters: int, rank: int, targets: Collection[str] | None) -> "Room | None":
        """As a caller asks for it: None for no adapters; targets None are all of them.

        Raises:
          ValueError: a number or a name is out of range; or the params have an adapter beside them.
        """
        known = tuple(itertools.chain.from_iterable(beside.MATRICES.values()))
        for name, value, least in (("adapters", adapters, 0), ("adapter_rank", rank, 1)):
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= value <= MOST:
                raise ValueError(f"{name} must be a whole number, {least} to {MOST:,}; got {quoted(value)}.")
        targets = known if targets is None else targets
        listed = isinstance(targets, Collection) and not isinstance(targets, str | bytes) and all(isinstance(one, str) for one in targets)
        if not listed or not targets or not set(targets) <= set(known):
            raise ValueError(f"adapter_targets must be some of {', '.join(known)}; got {quoted(targets)}; pass a list of them.")
        if adapters and has_adapter(params):
            raise ValueError(
                "an LLM with room for adapters must have weights without one; these have one beside them; merge it first, or attach it to "
                "the LLM."
            )
        chosen = tuple(name for name in known if name in targets)
        return cls(params, config, adapters=int(adapters), rank=int(rank), targets=chosen) if adapters else None

    def make(self) -> None:
        """Takes its memory, and compiles what `write` needs."""
        self._arrays = [sharding.put(np.zeros(spec.shape, spec.dtype), self._home, spec.axes) for spec in self._specs]
        for array, spec in zip(self._arrays, self._specs, strict=True):
            self._write_of(array, spec)

    def beside(self, params: Params) -> Params:
        """The params with the terms beside them; which of them a row of a batch takes is for a program to say, see `beside.take`."""
        writes, joined = self._writes, self._joined  # before what is made of them: any thread may ask, in the middle of a change too
        if joined is None or joined[0] is not params or joined[1] != writes:
            self._joined = joined = params, writes, beside.join(params, self.terms)
        return joined[2]

    def forget(self) -> None:
        """Lets go of the params that terms were put beside."""
        self._joined = None

    @property
    def terms(self) -> Terms:
        return jax.tree.unflatten(self._tree, self._arrays)

    def write(self, place: int, terms: Terms) -> None:
        """Puts an adapter's terms, NumPy arrays like one place of the room's, into a place that no row takes."""
        at = sharding.put(np.int32(place), self._home)
        self.forget()
        try:
            for i, (spec, new) in enumerate(zip(self._specs, jax.tree.leaves(terms), strict=True)):
                own = sharding.put(new.astype(spec.dtype), self._home, spec.axes[1:])
                array = self._arrays[i]
                self._arrays[i] = self._write_of(array, spec)(array, own, at)  # one at a time: there is never twice the room
                del array
        finally:
            self._writes += 1

    def _write_of(self, array: jax.Array, spec: Spec) -> Callable:
        key = spec.shape, spec.axes
        if key not in self._compiled:
            new = jax.ShapeDtypeStruct(spec.shape[1:], spec.dtype, sharding=sharding.of(self._home, spec.axes[1:]))
            at = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.of(self._home))
            with sharding.at(self._home):
                self._compiled[key] = _write.lower(array, new, at, axes=spec.axes, partition=self._partition).compile()
        return self._compiled[key]


@functools.partial(jax.jit, static_argnames=("axes", "partition"))
def _write(all: jax.Array, new: jax.Array, at: jax.Array, *, axes: Axes, partition: Partition | None) -> jax.Array:
    return constrain(partition, jax.lax.dynamic_update_index_in_dim(all, new, at, 0), axes)
