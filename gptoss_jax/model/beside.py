"""Low-rank terms beside a model's weights: one adapter's, or those of several side by side, of which each row of a batch takes one.

Terms lie by layer and matrix: a [..., r, in] and b [..., out, r] of "qkv", "out", "gate_up" and "down", of several adapters with a leading
axis of their own. `join` makes Params of weights and terms, which whatever takes params takes: which term a row takes is a part of them,
so that no function of the model has to be told.
"""

from collections.abc import Collection
import math

import jax
import jax.numpy as jnp

from gptoss_jax.config import Config
from gptoss_jax.model.params import (
    DOWN_AXES,
    GATE_UP_AXES,
    OUT_AXES,
    QKV_AXES,
    Params,
    Spec,
    abstract_params,
    expert_axes,
    form_of,
    low_rank_axes,
)
from gptoss_jax.parallel.sharding import Partition
from pallas_kernels.low_rank import LowRank

Terms = tuple[dict[str, tuple[jax.Array, jax.Array]], ...]
"""Of each layer, a and b of the matrices that have terms, by name."""

MATRICES = {
    "qkv": ("q_proj", "k_proj", "v_proj"), "out": ("o_proj",), "gate_up": ("gate_up_proj",), "down": ("down_proj",),
}  # fmt: skip
"""The matrices that terms are beside, each with the targets of adapters that lie in it."""
_ATTENTION = ("qkv", "out")


def join(params: Params, terms: Terms, which: jax.Array | None = None) -> Params:
    """The parameters with terms beside them.

    Args:
        params: without terms.
        terms: of one adapter, or of several side by side.
        which: [B] int32, of several: which of them each row of a batch takes, -1 for none; or None, and `take` says it.
    """
    layers = []
    for layer, own in zip(params.layers, terms, strict=True):
        beside = lambda part, names, own=own: part.replace(
            **{name: LowRank(getattr(part, name), *own[name], which) for name in names if name in own}
        )
        names = [name for name in MATRICES if name not in _ATTENTION]
        layers.append(layer.replace(attention=beside(layer.attention, _ATTENTION), moe=beside(layer.moe, names)))
    return params.replace(layers=tuple(layers))


def take(params: Params, which: jax.Array | None) -> Params:
    """Params that were joined with terms of several, for a batch whose rows take these [B] int32; itself where that is None."""
    if which is None:
        return params
    is_pair = lambda x: isinstance(x, LowRank)
    return jax.tree.map(lambda w: w.replace(which=which) if is_pair(w) else w, params, is_leaf=is_pair)


def room(params: Params, config: Config, *, adapters: int, rank: int, targets: Collection[str], dtype="float32") -> tuple:
    """What terms of so many adapters would be: `Terms` whose leaves are `Spec`, on a mesh of its axes."""
    table = abstract_params(config, params.embedding.dtype, form_of(params), params.partition).layers[0]
    E, width = table.moe.gate_up_bias.shape[0], table.moe.gate_up_bias.shape[1] // 2
    D, several = config.hidden_size, jnp.zeros(0)  # any array: that terms stand side by side
    K, groups, H, _ = table.attention.qkv.shape
    shapes = {
        "qkv": ((3, rank, D), (K, groups, H, rank)),
        "out": ((rank, table.attention.out.shape[1]), (D, rank)),
        "gate_up": ((E, rank, D), (E, 2 * width, rank)),
        "down": ((E, rank, width), (E, D, rank)),
    }
    axes = {
        "qkv": low_rank_axes(LowRank(None, None, None, several), QKV_AXES),
        "out": low_rank_axes(LowRank(None, None, None, several), OUT_AXES),
        "gate_up": expert_axes(LowRank(None, None, None, several), GATE_UP_AXES),
        "down": expert_axes(LowRank(None, None, None, several), DOWN_AXES),
    }
    zeros = lambda key, shape, dtype: jnp.zeros(shape, dtype)
    spec = lambda shape, axes: Spec((adapters, *shape), jnp.dtype(dtype), axes, zeros)
    layer = {
        name: (spec(shapes[name][0], axes[name].a), spec(shapes[name][1], axes[name].b))
        for name, own in MATRICES.items()
        if not set(own).isdisjoint(targets)
    }
    return (layer,) * config.num_hidden_layers


def room_bytes(specs: tuple, partition: Partition | None) -> int:
    """Bytes of a `room` on one device."""
    parts = lambda spec: 1 if partition is None else math.prod(map(partition.parts, filter(None, spec.axes)))
    leaves = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, Spec))
    return sum(spec.nbytes // parts(spec) for spec in leaves)
