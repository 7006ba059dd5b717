"""An adapter and a model's parameters: beside the weights, or merged into them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from gptoss_jax.adapters.factors import ATTENTION, EXPERTS, TARGETS, Adapter, Factors, check
from gptoss_jax.config import Config
from gptoss_jax.model.beside import Terms, join
from gptoss_jax.model.params import DOWN_AXES, GATE_UP_AXES, Experts, Layer, Params, abstract_params, has_adapter
from gptoss_jax.parallel import sharding
from gptoss_jax.weights import forms
from pallas_kernels.low_rank import LowRank
from pallas_kernels.mxfp4 import Mxfp4
from pallas_kernels.mxfp4.tiles import Tiles


def attach(params: Params, config: Config, adapter: Adapter) -> Params:
    """The parameters with the adapter's terms beside them: nothing is added up, so that packed experts stay packed. Differentiable in both.

    Everything that takes parameters takes these. Kernels do not cover matrices with a term beside them: XLA's form runs.

    Raises:
        ValueError: the adapter's names or shapes are not those of the model, or there is one already.
    """
    if not isinstance(params, Params):
        raise ValueError(f"params must be a model's parameters; got a {type(params).__name__}; pass model.params.")
    check(config, adapter)
    place = sharding.home(params.partition, params.embedding)
    adapter = jax.tree.map(lambda x: sharding.moved(x, place), dict(adapter))
    if has_adapter(params):
        raise ValueError("these parameters have an adapter already; attach to those without, or merge the first one.")
    return join(params, terms(config, adapter, params.layers[0].moe.gate_up_bias.shape[1] // 2))


def terms(config: Config, adapter: Adapter, width: int, xp=jnp) -> Terms:
    """An adapter's factors, which are checked, as they lie beside the model's matrices; a scale is in b.

    Args:
        width: of the experts as they are held: on a mesh they may be wider, by zeros.
        xp: jax.numpy, or numpy where factors are NumPy arrays.
    """
    layers = []
    for i in range(config.num_hidden_layers):
        own = {target: adapter[f"layers.{i}.{target}"] for target in TARGETS if f"layers.{i}.{target}" in adapter}
        layer = {}
        if own.keys() & set(ATTENTION[:3]):
            layer["qkv"] = _fused(config, own, xp)
        if "o_proj" in own:
            layer["out"] = own["o_proj"].a, _scaled(own["o_proj"], xp)
        if "gate_up_proj" in own:
            layer["gate_up"] = own["gate_up_proj"].a, _widened(_scaled(own["gate_up_proj"], xp), 1, 2 * width, xp)
        if "down_proj" in own:
            layer["down"] = _widened(own["down_proj"].a, 2, width, xp), _scaled(own["down_proj"], xp)
        layers.append(layer)
    return tuple(layers)


def merge(params: Params, config: Config, adapter: Adapter) -> Params:
    """The parameters with the adapter's terms added to them, rounded once to the weights' dtype; as fast as without an adapter.

    MXFP4 cannot hold the sum: where an adapter is on experts, packed ones and tiles are expanded ("stacked"), those of all layers.

    Raises:
        ValueError: as `attach`.
    """
    apart = attach(params, config, adapter)
    expanded = any(name.endswith(EXPERTS) for name in adapter) and isinstance(params.layers[0].moe.gate_up, Mxfp4 | Tiles)
    table = abstract_params(config, params.embedding.dtype, "stacked", params.partition)
    layers = []
    for layer, specs in zip(apart.layers, table.layers, strict=True):
        attention, moe = layer.attention, layer.moe
        if isinstance(attention.qkv, LowRank):
            a = jnp.take(attention.qkv.a, jnp.array([0] * config.group + [1, 2]), 0)  # [G+2, r, D]
            delta = jnp.einsum("kghr,grd->kghd", attention.qkv.b, a, precision="highest")
            attention = attention.replace(qkv=_sum(attention.qkv.base, delta))
        if isinstance(attention.out, LowRank):
            attention = attention.replace(out=_sum(attention.out.base, _product(attention.out)))
        if expanded:
            width = specs.moe.gate_up_bias.shape[1]
            bias = moe.gate_up_bias[:, :width]
            gate_up = _merged(moe.gate_up, specs.moe.gate_up, GATE_UP_AXES, params)
            moe = moe.replace(gate_up=gate_up, gate_up_bias=bias, down=_merged(moe.down, specs.moe.down, DOWN_AXES, params))
        else:
            moe = moe.replace(gate_up=_merged(moe.gate_up), down=_merged(moe.down))
        layers.append(Layer(attention, moe))
    return params.replace(layers=tuple(layers))


def _scaled(factors: Factors, xp) -> jax.Array:
    return factors.b * xp.asarray(factors.scale, factors.b.dtype)


def _fused(config: Config, own: Mapping[str, Factors], xp) -> tuple[jax.Array, jax.Array]:
    """a [3, r, D] of queries, keys and values, and b [K, G+2, H, r] of the heads; what is not adapted, or of less rank, is zero."""
    K, G, H, D = config.num_key_value_heads, config.group, config.head_dim, config.hidden_size
    rank = max(own[name].rank for name in ATTENTION[:3] if name in own)
    dtype = next(own[name].a.dtype for name in ATTENTION[:3] if name in own)
    a, b = [], []
    for name, heads in zip(ATTENTION[:3], (G, 1, 1), strict=True):
        if name not in own:
            a.append(xp.zeros((rank, D), dtype))
            b.append(xp.zeros((K, heads, H, rank), dtype))
            continue
        a.append(_widened(own[name].a, 0, rank, xp))
        b.append(_widened(_scaled(own[name], xp), 1, rank, xp).reshape(K, heads, H, rank))
    return xp.stack(a), xp.concatenate(b, 1)


def _widened(x: jax.Array, axis: int, size: int, xp) -> jax.Array:
    return xp.pad(x, [(0, size - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])


def _product(w: LowRank) -> jax.Array:
    return jnp.matmul(w.b.astype(jnp.float32), w.a.astype(jnp.float32), precision="highest")


def _sum(base: jax.Array, delta: jax.Array) -> jax.Array:
    return (base.astype(jnp.float32) + delta.astype(jnp.float32)).astype(base.dtype)


def _merged(w: Experts, spec=None, axes=None, params: Params | None = None) -> Experts:
    """An expert matrix with its term added; expanded to what a table says, where one is given."""
    base = w.base if isinstance(w, LowRank) else w
    if spec is not None:
        base = forms.stored(base, axes, params.partition)
        base = forms.expand(base, spec.shape, params.embedding.dtype.name, axes, params.partition)
    if not isinstance(w, LowRank):
        return base
    delta = _product(w)
    if isinstance(base, tuple):
        return tuple(_sum(one, part) for one, part in zip(base, delta, strict=True))
    return _sum(base, delta[:, : base.shape[1], : base.shape[2]])
