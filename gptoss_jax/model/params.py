"""Every weight of a gpt-oss model: one table of shape, dtype, logical axes and random scale.

Random initialisation, the loader's checks, shardings and byte counts are derived from `abstract_params`; nothing else
states a shape. Dimension letters are those of `gptoss_jax.config`.
"""

from collections.abc import Callable
from dataclasses import dataclass
import math
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp

from gptoss_jax.config import Config
from gptoss_jax.parallel.sharding import Axes, Partition
from gptoss_jax.quoting import quoted
from pallas_kernels.low_rank import LowRank
from pallas_kernels.mxfp4 import GROUP, Mxfp4
from pallas_kernels.mxfp4.tiles import TILE, Tiles, tiled_shapes

ExpertsForm = Literal["packed", "tiled", "stacked", "split"]
"""How the two expert matrices are held.

packed:  `Mxfp4`, the published 4-bit blocks.
tiled:   `Tiles`, the same bits in the order that the Hopper kernels read; needs D and F to be multiples of 64.
stacked: one array [E, out, in].
split:   a tuple of E arrays [out, in]. XLA's CPU backend copies a dynamic slice of an array before it multiplies by it,
         but reads a whole buffer in place, so a routed product over split experts is several times faster there.
"""

Experts = Mxfp4 | Tiles | jax.Array | tuple[jax.Array, ...] | LowRank


@flax.struct.dataclass
class Attention:
    norm: jax.Array  # [D] float32
    qkv: jax.Array | LowRank  # [K, G+2, H, D]: of each kv head its G query heads (query head n = k*G + g), its key, its value
    qkv_bias: jax.Array  # [K, G+2, H] float32
    sinks: jax.Array  # [N] float32
    out: jax.Array | LowRank  # [D, N*H]
    out_bias: jax.Array  # [D] float32


@flax.struct.dataclass
class Moe:
    norm: jax.Array  # [D] float32
    router: jax.Array  # [E, D] float32
    router_bias: jax.Array  # [E] float32
    gate_up: Experts  # [E, 2F, D], rows interleaved as published: even gate, odd linear
    gate_up_bias: jax.Array  # [E, 2F] float32
    down: Experts  # [E, D, F]
    down_bias: jax.Array  # [E, D] float32


@flax.struct.dataclass
class Layer:
    attention: Attention
    moe: Moe


@flax.struct.dataclass
class Params:
    embedding: jax.Array  # [V, D]
    layers: tuple[Layer, ...]
    norm: jax.Array  # [D] float32
    unembedding: jax.Array  # [V, D]
    partition: Partition | None = flax.struct.field(pytree_node=False, default=None)  # how they lie on a mesh; None: one device
    without: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())  # kernels that programs of these weights do without


@dataclass(frozen=True)
class Spec:
    """What the table says of one array: the leaf of `abstract_params`."""

    shape: tuple[int, ...]
    dtype: jnp.dtype
    axes: Axes  # logical names, one per dimension; `gptoss_jax.parallel.sharding` maps them to mesh axes
    init: Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def is_spec(x) -> bool:
    return isinstance(x, Spec)


def _normal(std: float, mean: float = 0.0):
    def init(key, shape, dtype):
        return (mean + std * jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    return init


def _codes(key, shape, dtype):
    return jax.random.bits(key, shape, dtype)


def _exponents(fan_in: int):
    """e8m0 scales that give e2m1 codes (root mean square 2.9) a standard deviation of about 1/sqrt(fan_in)."""
    centre = 127 - round(math.log2(2.9 * fan_in**0.5))

    def init(key, shape, dtype):
        return jax.random.randint(key, shape, centre - 1, centre + 2).astype(dtype)

    return init


def _word_of_exponents(fan_in: int):
    """Four of `_exponents`' scales in a word."""

    def init(key, shape, dtype):
        scales = _exponents(fan_in)(key, (*shape, 4), dtype)
        return jnp.sum(scales << jnp.arange(0, 32, 8, dtype=dtype).reshape(*[1] * len(shape), 4), -1, dtype=dtype)

    return init


GATE_UP_AXES: Axes = ("experts", "expert_hidden", "embed")
DOWN_AXES: Axes = ("experts", "embed", "expert_hidden")


QKV_AXES: Axes = ("kv_heads", None, None, "embed")
OUT_AXES: Axes = ("embed", "heads")


def low_rank_axes(w, axes: Axes):
    """The logical axes of an attention matrix with these axes, in a tree like it."""
    if not isinstance(w, LowRank):
        return axes
    rank = (None,) * (len(axes) // 2)  # a of queries, keys and values is [3, r, D], of the output [r, N*H]
    return _beside(w, axes, (*rank, axes[-1]), (*axes[:-1], None))


def _beside(w: LowRank, base, a: Axes, b: Axes) -> LowRank:
    """The logical axes of a matrix and what is beside it: one term with the axes of a and b, or several side by side."""
    return LowRank(base, a, b) if w.which is None else LowRank(base, (None, *a), (None, *b), ("batch",))


def expert_axes(experts: Experts, axes: Axes) -> Experts:
    """The logical axes of the arrays that hold an expert matrix with these axes, in a tree like it (of arrays or of `Spec`)."""
    if isinstance(experts, LowRank):
        return _beside(experts, expert_axes(experts.base, axes), (axes[0], None, axes[2]), (*axes[:2], None))
    if isinstance(experts, Mxfp4):
        return Mxfp4(blocks=(*axes, None), scales=axes)
    if isinstance(experts, Tiles):
        return Tiles((*axes, None, None), (*axes, None, None))
    return tuple(axes[1:] for _ in experts) if isinstance(experts, tuple) else axes


def expert_width(config: Config, experts: ExpertsForm, partition: Partition | None) -> int:
    """The experts' hidden width as it is held: F, or on a mesh the next one that its devices can share. What is more is zero and adds zero.

    Tiles and MXFP4 groups are not cut. Of more than three tiles a device has a multiple of three, which the kernels take in steps.
    """
    parts = 1 if partition is None else partition.parts("expert_hidden")
    if parts == 1:
        return config.intermediate_size
    unit = {"packed": GROUP, "tiled": TILE}.get(experts, 1)
    units = -(-config.intermediate_size // (unit * parts))  # of each device
    if experts == "tiled" and units > 3:
        units += -units % 3
    return units * unit * parts


def _experts(num: int, out: int, fan_in: int, axes: Axes, dtype, form: ExpertsForm, interleaved: int):
    """The table's entry for one expert matrix [E, out, fan_in] in the given form; its rows belong to `interleaved` matrices in turn."""
    if form == "packed":
        u8, groups = jnp.dtype("uint8"), fan_in // GROUP
        blocks, scales = (num, out, groups, 16), (num, out, groups)
        of = expert_axes(Mxfp4(None, None), axes)
        return Mxfp4(Spec(blocks, u8, of.blocks, _codes), Spec(scales, u8, of.scales, _exponents(fan_in)))
    if form == "tiled":
        words, scales = tiled_shapes((num, out, fan_in), interleaved)
        u32, of = jnp.dtype("uint32"), expert_axes(Tiles(None, None), axes)
        return Tiles(Spec(words, u32, of.words, _codes), Spec(scales, u32, of.scales, _word_of_exponents(fan_in)))
    init = _normal(fan_in**-0.5)
    if form == "stacked":
        return Spec((num, out, fan_in), dtype, axes, init)
    if form == "split":
        return tuple(Spec((out, fan_in), dtype, axes[1:], init) for _ in range(num))
    raise ValueError(f"experts must be 'packed', 'tiled', 'stacked' or 'split'; got {quoted(form)}.")


def abstract_params(config: Config, dtype="bfloat16", experts: ExpertsForm = "packed", partition: Partition | None = None) -> Params:
    """The table: a `Params` whose leaves are `Spec`, of whole arrays.

    Args:
      config: geometry.
      dtype: of the embeddings, the attention matrices and unpacked experts. Norms, sinks, biases and the router are
        always float32: they are small, and routing must not depend on rounding.
      experts: how the expert matrices are held.
      partition: how they lie on a mesh, which may widen the experts (`expert_width`).
    """
    dtype, f32 = jnp.dtype(dtype), jnp.dtype("float32")
    D, V, H, F = config.hidden_size, config.vocab_size, config.head_dim, expert_width(config, experts, partition)
    N, K, E = config.num_attention_heads, config.num_key_value_heads, config.num_local_experts
    G = N // K
    gain = Spec((D,), f32, ("embed",), _normal(0.2, mean=1.0))
    attention = Attention(
        norm=gain,
        qkv=Spec((K, G + 2, H, D), dtype, QKV_AXES, _normal(1.5 * D**-0.5)),
        qkv_bias=Spec((K, G + 2, H), f32, ("kv_heads", None, None), _normal(0.3)),
        sinks=Spec((N,), f32, ("heads",), _normal(1.5)),
        out=Spec((D, N * H), dtype, OUT_AXES, _normal((N * H) ** -0.5)),
        out_bias=Spec((D,), f32, ("embed",), _normal(0.1)),
    )
    moe = Moe(
        norm=gain,
        router=Spec((E, D), f32, ("experts", "embed"), _normal(2 * D**-0.5)),
        router_bias=Spec((E,), f32, ("experts",), _normal(0.5)),
        gate_up=_experts(E, 2 * F, D, GATE_UP_AXES, dtype, experts, 2),
        gate_up_bias=Spec((E, 2 * F), f32, ("experts", "expert_hidden"), _normal(0.8)),
        down=_experts(E, D, F, DOWN_AXES, dtype, experts, 1),
        down_bias=Spec((E, D), f32, ("experts", "embed"), _normal(0.1)),
    )
    return Params(
        embedding=Spec((V, D), dtype, ("vocab", "embed"), _normal(1.0)),
        layers=(Layer(attention, moe),) * config.num_hidden_layers,
        norm=gain,
        unembedding=Spec((V, D), dtype, ("vocab", "embed"), _normal(0.2)),
        partition=partition,
    )


def form_of(params: Params) -> ExpertsForm:
    """How parameters hold the experts."""
    forms: dict[type, ExpertsForm] = {Mxfp4: "packed", Tiles: "tiled", tuple: "split"}
    experts = params.layers[0].moe.gate_up
    return forms.get(type(experts.base if isinstance(experts, LowRank) else experts), "stacked")


def has_adapter(params: Params) -> bool:
    """Whether some matrix has a low-rank term beside it."""
    return any(isinstance(leaf, LowRank) for leaf in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, LowRank)))


def param_axes(params: Params, config: Config) -> Params:
    """The logical axes of parameters, in a tree like them."""
    table = abstract_params(config, experts=form_of(params), partition=params.partition)
    return jax.tree.map(lambda spec: spec.axes, table, is_leaf=is_spec).replace(without=params.without)


def init_params(key: jax.Array, config: Config, dtype="bfloat16", experts: ExpertsForm = "packed") -> Params:
    """Random parameters of realistic scale: gates far from uniform, sinks and biases far from zero."""
    leaves, tree = jax.tree.flatten(abstract_params(config, dtype, experts), is_leaf=is_spec)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, [s.init(k, s.shape, s.dtype) for k, s in zip(keys, leaves, strict=True)])


def param_bytes(config: Config, dtype="bfloat16", experts: ExpertsForm = "packed", partition: Partition | None = None) -> int:
    """Bytes of all parameters on one device, from the table alone."""
    table = jax.tree.leaves(abstract_params(config, dtype, experts, partition), is_leaf=is_spec)
    return sum(spec.nbytes // (1 if partition is None else math.prod(map(partition.parts, filter(None, spec.axes)))) for spec in table)
