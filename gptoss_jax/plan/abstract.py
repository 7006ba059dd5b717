"""A model's arrays without numbers: shapes, dtypes and where they lie on a mesh, for programs that are compiled and never run."""

import math
from typing import Any

import jax
import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.engine.device.programs import ROOM
from gptoss_jax.engine.device.state import Blocks, Orders, State, init_state, plain_orders, state_axes
from gptoss_jax.engine.sizes import STEPS, Sizes
from gptoss_jax.model.cache import make_cache
from gptoss_jax.model.params import ExpertsForm, Params, abstract_params, is_spec
from gptoss_jax.parallel import sharding
from gptoss_jax.parallel.sharding import Axes, Partition
from gptoss_jax.sampling import state as sampling_state
from gptoss_jax.sampling.options import Sampling


def array(shape: tuple[int, ...], dtype: Any, axes: Axes = (), partition: Partition | None = None) -> jax.ShapeDtypeStruct:
    """An array with these logical axes; whole on every device if there are none."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.of(partition, axes))


def weights(config: Config, form: ExpertsForm, partition: Partition | None) -> Params:
    """Parameters without numbers: `jax.ShapeDtypeStruct`s that lie as `weights.loading.load` would place them."""
    table = abstract_params(config, experts=form, partition=partition)
    return jax.tree.map(lambda spec: array(spec.shape, spec.dtype, spec.axes, partition), table, is_leaf=is_spec)


def state(config: Config, sizes: Sizes, partition: Partition | None) -> State:
    """The engine's state without numbers."""
    tables = (np.zeros((1, width), np.int32) for width in (sizes.blocks, sizes.decode_ring))  # of one row, to be light

    def make() -> State:
        cache = make_cache(config, *tables, full_pages=sizes.full_pages, ring_pages=sizes.ring_pages, page_size=sizes.page)
        return init_state(cache, sampling_state.stack([Sampling()], vocab_size=config.vocab_size, slots=ROOM))

    made = jax.eval_shape(make)

    def placed(x: jax.ShapeDtypeStruct, axes: Axes) -> jax.ShapeDtypeStruct:
        rows = (sizes.slots,) if axes[0] == "batch" else x.shape[:1]
        return array(rows + x.shape[1:], x.dtype, axes, partition)

    return jax.tree.map(placed, made, state_axes(made))


def orders(config: Config, sizes: Sizes, partition: Partition | None) -> Orders:
    """What the host gives to decode steps."""
    made = jax.eval_shape(lambda: plain_orders(sizes.slots, 1, steps=STEPS, vocab_size=config.vocab_size))
    axes = lambda x: (("batch", None)[: x.ndim]) if x.ndim else ()
    return jax.tree.map(lambda x: array(x.shape, x.dtype, axes(x), partition), made)


def blocks(sizes: Sizes, partition: Partition | None) -> Blocks:
    """What the host gives of prompts."""
    row = lambda *shape: array((sizes.read_rows, *shape), "int32", ("batch", None)[: 1 + len(shape)], partition)
    return Blocks(row(sizes.page), row(), row(), row(sizes.blocks), row(sizes.read_ring))


def device_bytes(tree) -> int:
    """Bytes of abstract arrays on one device."""
    shape = lambda x: x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    return sum(math.prod(shape(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
