"""Other weights for programs that are compiled: checked against those that they were compiled for, and put where these lie.

What comes out is an array of the same shape, dtype and place under each name, so that nothing can be compiled for it. Values are not
looked at. Knows no engine.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gptoss_jax.model import named
from gptoss_jax.model.params import Params, form_of, has_adapter
from gptoss_jax.quoting import quoted


def held(params: Params) -> Params:
    """Parameters as an engine holds them: the same buffers, bound to where they lie, so that others can take their place unnoticed.

    JAX compiles a jitted function again where an array that was free to go elsewhere is followed by one that is not.
    """
    return jax.tree.map(lambda x: _bound(x, x.sharding) if isinstance(x, jax.Array) and not x.is_deleted() else x, params)


def lost(params: Params) -> str | None:
    """What to say of a weight that is no more; None where there is none such."""
    name = next((name for name, array in named.select(params, "*").items() if array.is_deleted()), None)
    return None if name is None else f"its weight {name} was given to a program to write over; update it with one that stays"


def prepared(given: Params | Mapping[str, Any], params: Params) -> dict[str, jax.Array]:
    """The given weights by name, each where the parameters' own lies, and there already; buffers that lie there are not copied.

    Args:
      given: parameters with the same names, or some of them by name; JAX's arrays or NumPy's.
      params: those that programs were compiled for.

    Raises:
      ValueError: names, shapes or dtypes are others; or an array is none, or is no more.
    """
    own = named.select(params, "*")
    new = _by_name(given, params, own)
    for name, array in new.items():
        _check(name, array, own[name])
    with jax.ensure_compile_time_eval():  # also where a function is being traced around this
        return jax.block_until_ready({name: _put(array, own[name]) for name, array in new.items()})


def _by_name(given: Any, params: Params, own: Mapping[str, jax.Array]) -> dict[str, Any]:
    if isinstance(given, Params):
        return _all_of(given, params, own)
    if not isinstance(given, Mapping) or not given or not all(isinstance(name, str) for name in given):
        hint = "pass model.params" if hasattr(given, "params") else "pass model.params of another model, or what gptoss_jax.select returned"
        raise ValueError(f"weights must be Params, or a dict of names and arrays with at least one; got {quoted(given, 60)}; {hint}.")
    for name in given:
        if name not in own:
            named.refuse(name, list(own))
    return dict(given)


def _all_of(given: Params, params: Params, own: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Parameters by name. Raises ValueError where their names are not those of the engine's."""
    new = named.select(given, "*") if jax.tree.leaves(given) else {}
    if new.keys() == own.keys():
        return new
    layers, others = _layers(own), _layers(new)
    if layers != others:
        raise ValueError(f"weights must have {layers} layers; got {others}; make an LLM of the other model.")
    if has_adapter(given) != has_adapter(params):
        does = "has an adapter beside its weights" if has_adapter(params) else "has none"
        raise ValueError(f"weights must have an adapter beside them where the LLM's have one; this LLM {does}; merge it, or make an LLM.")
    if any(name.startswith("layers.0.moe.gate_up") for name in new) and form_of(given) != (wanted := form_of(params)):
        raise ValueError(f"weights must hold experts as the LLM's do, '{wanted}'; got '{form_of(given)}'; load with experts='{wanted}'.")
    differ = min(new.keys() ^ own.keys())
    has = "is missing" if differ in own else "is not among them"
    raise ValueError(f"weights must have the names that the LLM's have; {differ} {has}; make an LLM of the other model.")


def _layers(weights: Mapping[str, Any]) -> int:
    return len({name.split(".")[1] for name in weights if name.startswith("layers.")})


def _check(name: str, array: Any, own: jax.Array) -> None:
    if isinstance(array, jax.core.Tracer):
        raise ValueError(f"weights must be there; {name} is being traced; update outside of jit and grad.")
    if not isinstance(array, jax.Array | np.ndarray) or isinstance(array, np.ma.MaskedArray):
        what = f"{type(array).__module__}.{type(array).__name__}"
        raise ValueError(f"weights must be JAX's or NumPy's arrays; {name} is a {what}; pass numpy.asarray of it.")
    if isinstance(array, jax.Array) and array.is_deleted():
        raise ValueError(f"weights must be there; {name} is deleted, or was given to a program to write over; pass what that returned.")
    if array.shape != own.shape:
        raise ValueError(f"{name} must have the shape {own.shape}; got {array.shape}; make an LLM of the other model.")
    if array.dtype != own.dtype:
        raise ValueError(f"{name} must be {own.dtype}, as the LLM's own; got {array.dtype}; pass it .astype('{own.dtype}').")


def _put(array: jax.Array | np.ndarray, own: jax.Array) -> jax.Array:
    """An array where `own` lies, and nothing is compiled for that."""
    lies = own.sharding
    if not isinstance(array, jax.Array):
        return jax.make_array_from_callback(array.shape, lies, lambda index: np.array(array[index], order="C"))  # it may change later
    if array.sharding.is_equivalent_to(lies, array.ndim) and array.sharding.memory_kind == lies.memory_kind:
        return _bound(array, lies)
    if len(array.sharding.device_set) > 1 or len(lies.device_set) > 1:
        if array.is_fully_addressable:
            return _put(np.asarray(array), own)  # from one way of lying to another JAX compiles programs
    return _bound(jax.device_put(array, lies), lies)


def _bound(array: jax.Array, lies: jax.sharding.Sharding) -> jax.Array:
    """The same buffers as an array that lies so, and is strictly of its dtype."""
    if array.committed and array.sharding == lies and not array.weak_type:
        return array
    return jax.make_array_from_single_device_arrays(array.shape, lies, [shard.data for shard in array.addressable_shards])
