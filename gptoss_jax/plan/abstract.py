"""A model's arrays without numbers: shapes, dtypes and where they lie on a mesh, for programs that are compiled and never run."""

import math
from typing import Any

import jax

from gptoss_jax import decode, sharding
from gptoss_jax.config import Config
from gptoss_jax.decode import State
from gptoss_jax.model.cache import init_cache
from gptoss_jax.model.params import ExpertsForm, Params, abstract_params, is_spec
from gptoss_jax.options import Sampling
from gptoss_jax.sharding import Axes, Partition


def array(shape: tuple[int, ...], dtype: Any, axes: Axes = (), partition: Partition | None = None) -> jax.ShapeDtypeStruct:
    """An array with these logical axes; whole on every device if there are none."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.of(partition, axes))


def weights(config: Config, form: ExpertsForm, partition: Partition | None) -> Params:
    """Parameters without numbers: `jax.ShapeDtypeStruct`s that lie as `weights.load` would place them."""
    table = abstract_params(config, experts=form, partition=partition)
    return jax.tree.map(lambda spec: array(spec.shape, spec.dtype, spec.axes, partition), table, is_leaf=is_spec)


def state(config: Config, slots: int, context: int, chunk: int, partition: Partition | None) -> State:
    """The engine's state without numbers; slots must be a multiple of the mesh's replicas."""

    def make() -> State:
        cache = init_cache(config, slots, context, chunk=chunk)
        return decode.init_state(cache, sampling_state.stack([Sampling()], vocab_size=config.vocab_size), [1])  # of one row, to be light

    made = jax.eval_shape(make)

    def placed(x: jax.ShapeDtypeStruct, axes: Axes) -> jax.ShapeDtypeStruct:
        rows = (slots,) if axes[0] == "batch" else x.shape[:1]
        return array(rows + x.shape[1:], x.dtype, axes, partition)

    return jax.tree.map(placed, made, decode.state_axes(made))


def device_bytes(tree) -> int:
    """Bytes of abstract arrays on one device."""
    shape = lambda x: x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    return sum(math.prod(shape(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
