"""What `forward` and hooks are given, checked at their door: types and shapes always, values where they are known: not under a trace."""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.model.params import Params
from gptoss_jax.parallel import sharding
from gptoss_jax.quoting import quoted
from pallas_kernels.low_rank import LowRank


def check(params: Params, config: Config, tokens: jax.Array, segment_ids: jax.Array | None, hook: object = None) -> None:
    """Raises ValueError where the arguments of `forward` cannot be what they are for."""
    if not isinstance(config, Config):
        raise ValueError(f"config must be a Config; got {type(config).__name__}; pass model.config, behind the params.")
    _check_pair(params, config)
    _check_array("tokens", tokens)
    if 0 in tokens.shape:
        raise ValueError(f"tokens must have a row and a token; got shape {tokens.shape}; pass at least one token.")
    if segment_ids is None and tokens.shape[1] > config.max_position_embeddings:
        most, got = f"{config.max_position_embeddings:,}", f"{tokens.shape[1]:,}"
        raise ValueError(f"a row of tokens must have at most the model's {most} positions; got {got}; pass shorter rows.")
    if hook is not None and not callable(hook):
        raise ValueError(f"hook must be a function (name, value) -> value; got {quoted(hook, 40)}; leave it out for none.")
    if segment_ids is not None:
        _check_array("segment_ids", segment_ids)
        if segment_ids.shape != tokens.shape:
            raise ValueError(f"segment_ids must have the shape of tokens, {tokens.shape}; got {segment_ids.shape}; pass one a token.")
    _check_places(params, tokens if segment_ids is None else (tokens, segment_ids))
    ids = _known(tokens)
    if ids is not None and (outside := ids[(ids < 0) | (ids >= config.vocab_size)]).size:
        raise ValueError(
            f"token ids must lie in 0 ... {config.vocab_size - 1:,}; got {int(outside[0]):,}; pass those of the model's tokenizer, "
            "and padding of any of them."
        )


def _check_array(name: str, value: jax.Array) -> None:
    if not isinstance(value, jax.Array | np.ndarray):
        raise ValueError(f"{name} must be an array [rows, tokens]; got {type(value).__name__} {quoted(value, 40)}; pass jnp.array(...).")
    if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer) and value.is_deleted():
        raise ValueError(f"{name} must be there; got a deleted array; pass one that was not given away.")
    if value.dtype.kind not in "iu":
        raise ValueError(f"{name} must be an array of integers; got {value.dtype}; convert it with .astype(jnp.int32).")
    if value.ndim != 2:
        remedy = f"pass {name}[None] for one row" if value.ndim == 1 else "reshape it"
        raise ValueError(f"{name} must have two dimensions, [rows, tokens]; got shape {value.shape}; {remedy}.")


def _check_pair(params: Params, config: Config) -> None:
    """Raises ValueError where the parameters are not of such a model."""
    c, groups = config, config.num_attention_heads // config.num_key_value_heads
    if len(params.layers) != c.num_hidden_layers:
        raise ValueError(f"params and config must be one model's; got {len(params.layers)} layers for {c.num_hidden_layers}; pass its own.")
    attention, moe = params.layers[0].attention, params.layers[0].moe
    qkv = attention.qkv.base if isinstance(attention.qkv, LowRank) else attention.qkv
    wanted = {
        "embedding": (params.embedding, (c.vocab_size, c.hidden_size)),
        "qkv": (qkv, (c.num_key_value_heads, groups + 2, c.head_dim, c.hidden_size)),
        "router": (moe.router, (c.num_local_experts, c.hidden_size)),
    }
    if all(isinstance(array, np.ndarray) for array, _ in wanted.values()):
        raise ValueError("params must be JAX's arrays; got NumPy's; put them on a device with jax.device_put(params).")
    for name, (array, shape) in wanted.items():
        if tuple(array.shape) != shape:
            raise ValueError(f"params and config must be one model's; got {name} {tuple(array.shape)} for {shape}; pass its own.")


def _check_places(params: Params, given: object) -> None:
    """Raises ValueError where parameters, or what is computed with them, lie on devices that cannot work together."""
    bound = lambda x: x if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and x.committed else None
    place = sharding.home(params.partition, jax.tree.map(bound, params))
    for array in jax.tree.leaves(jax.tree.map(bound, given)):
        if place is not None and array.sharding.device_set != sharding.of(place).device_set:
            devices = ", ".join(sorted(map(str, array.sharding.device_set))[:4])
            raise ValueError(f"tokens must lie where the parameters do; got some on {devices}; pass NumPy's, which lie anywhere.")


def _known(tokens: jax.Array) -> np.ndarray | None:
    """The ids, where this process knows them."""
    if isinstance(tokens, jax.core.Tracer) or (isinstance(tokens, jax.Array) and not tokens.is_fully_addressable):
        return None
    return np.asarray(tokens)


def function_of(fn: Callable) -> Callable:
    """What `capture` and `patch` wrap. Raises ValueError where it is no function."""
    if not callable(fn):
        raise ValueError(f"a function of the model must be passed, such as forward; got a {type(fn).__name__}; pass gptoss_jax.forward.")
    return fn


def names_of(names: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several, as several. Raises ValueError where there is none."""
    names = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, Iterable) and not isinstance(names, bytes) else names
    if not isinstance(names, tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"names must be at least one name of a site; got {quoted(names)}; gptoss_jax.sites(config) lists them.")
    return names


def array_of(value: object, name: str) -> jax.Array:
    """Raises ValueError where a value cannot be an array."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} takes numbers, an array, or of a patch a function; got {quoted(value, 60)}; pass one.") from error


def fitted(name: str, value: jax.Array, new: object) -> jax.Array:
    """What is to stand for the value of a site, as wide as it. Raises ValueError where it cannot."""
    new = array_of(new, name)
    whole = jnp.issubdtype(value.dtype, jnp.integer)
    if whole and not jnp.issubdtype(new.dtype, jnp.integer):
        raise ValueError(f"{name} holds integers; got {new.dtype}; pass integers.")
    if new.ndim > value.ndim or any(n not in (1, have) for n, have in zip(new.shape[::-1], value.shape[::-1], strict=False)):
        raise ValueError(f"{name} has shape {value.shape}; got {new.shape}, which cannot be broadcast to it; pass such an array.")
    return jnp.broadcast_to(new.reshape((1,) * (value.ndim - new.ndim) + new.shape).astype(value.dtype), value.shape)


def check_index(shape: tuple[int, ...], at: object) -> None:
    """Raises IndexError where an index lies outside of an array, which jax would leave out without a word; traced ones are not known."""
    try:
        np.broadcast_to(np.False_, shape)[at]
    except jax.errors.JAXTypeError:
        pass
