"""What `forward` is given, checked at its door: types and shapes always, values where they are known, so never under a trace."""

import jax
import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.model.params import Params
from gptoss_jax.quoting import quoted


def check(params: Params, config: Config, tokens: jax.Array, segment_ids: jax.Array | None) -> None:
    """Raises ValueError where the arguments of `forward` cannot be what they are for."""
    if not isinstance(config, Config):
        raise ValueError(f"config must be a Config; got {type(config).__name__}; pass model.config, behind the params.")
    _check_pair(params, config)
    _check_array("tokens", tokens)
    if 0 in tokens.shape:
        raise ValueError(f"tokens must have a row and a token; got shape {tokens.shape}; pass at least one token.")
    if segment_ids is not None:
        _check_array("segment_ids", segment_ids)
        if segment_ids.shape != tokens.shape:
            raise ValueError(f"segment_ids must have the shape of tokens, {tokens.shape}; got {segment_ids.shape}; pass one a token.")
    ids = _known(tokens)
    if ids is not None and (outside := ids[(ids < 0) | (ids >= config.vocab_size)]).size:
        raise ValueError(
            f"token ids must lie in 0 ... {config.vocab_size - 1:,}; got {int(outside[0]):,}; pass those of the model's tokenizer, "
            "and padding of any of them."
        )


def _check_array(name: str, value: jax.Array) -> None:
    if not isinstance(value, jax.Array | np.ndarray):
        raise ValueError(f"{name} must be an array [rows, tokens]; got {type(value).__name__} {quoted(value, 40)}; pass jnp.array(...).")
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
    wanted = {
        "embedding": (params.embedding, (c.vocab_size, c.hidden_size)),
        "qkv": (getattr(attention.qkv, "base", attention.qkv), (c.num_key_value_heads, groups + 2, c.head_dim, c.hidden_size)),
        "router": (moe.router, (c.num_local_experts, c.hidden_size)),
    }
    for name, (array, shape) in wanted.items():
        if tuple(array.shape) != shape:
            raise ValueError(f"params and config must be one model's; got {name} {tuple(array.shape)} for {shape}; pass its own.")


def _known(tokens: jax.Array) -> np.ndarray | None:
    """The ids, where this process knows them."""
    if isinstance(tokens, jax.core.Tracer) or (isinstance(tokens, jax.Array) and not tokens.is_fully_addressable):
        return None
    return np.asarray(tokens)
