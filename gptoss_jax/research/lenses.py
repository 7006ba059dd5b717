"""Lenses: what captured values say, in small pure functions of arrays. They run under jit, and know no tokenizer.

logits, seen = capture(forward, ["layers.*.residual_post", "layers.*.moe.experts"])(params, config, tokens)
by_layer = logit_lens(params, config, layers_of(seen, "residual_post"))
load = expert_load(layers_of(seen, "moe.experts"), config.num_local_experts)
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.model.hooks import layers_of
from gptoss_jax.model.params import Params
from gptoss_jax.model.transformer import embed, unembed
from gptoss_jax.quoting import quoted

ATTRIBUTED = ("attention.head_outputs", "attention.out", "moe.experts", "moe.gates", "moe.expert_outputs", "moe.out")


@flax.struct.dataclass
class Attribution:
    """What each part of the model adds to a logit, or to the difference of two; float32. Their sum is the logit, before a patch of it.

    Attributes:
      embedding: [B, T]: the token's own row.
      heads: [L, B, T, N]: each head.
      attention_rest: [L, B, T]: what attention adds beside its heads: its output's bias, and what a patch of `attention.out` changed.
      experts: [L, B, T, E]: each expert with its gate, 0 where it was not chosen.
      moe_rest: [L, B, T]: what `moe.out` is beside its experts: rounding, and what a patch changed.
      residual_rest: [B, T]: what the last residual stream is beside all of these: rounding, and what patches of the stream changed.
    """

    embedding: jax.Array
    heads: jax.Array
    attention_rest: jax.Array
    experts: jax.Array
    moe_rest: jax.Array
    residual_rest: jax.Array

    @property
    def attention(self) -> jax.Array:
        """[L, B, T]: what each layer's attention adds."""
        return jnp.sum(self.heads, -1) + self.attention_rest

    @property
    def moe(self) -> jax.Array:
        """[L, B, T]: what each layer's experts add."""
        return jnp.sum(self.experts, -1) + self.moe_rest

    @property
    def total(self) -> jax.Array:
        """[B, T]: the logit, or the difference."""
        return self.embedding + jnp.sum(self.attention, 0) + jnp.sum(self.moe, 0) + self.residual_rest


def attributed_sites(config: Config) -> list[str]:
    """The names that `direct_logit_attribution` needs of a capture."""
    if not isinstance(config, Config):
        raise ValueError(f"config must be a Config; got a {type(config).__name__}; pass model.config.")
    return ["embedding", *(f"layers.*.{site}" for site in ATTRIBUTED), f"layers.{config.num_hidden_layers - 1}.residual_post"]


def direct_logit_attribution(
    params: Params,
    config: Config,
    values: Mapping[str, jax.Array],
    tokens: jax.Array,  # [B, T] int32
    *,
    minus: jax.Array | None = None,  # [B, T] int32
    positions: slice | int | np.ndarray = slice(None),
) -> Attribution:
    """What embedding, heads and experts add directly to a token's logit at each position.

    A logit is linear in the residual stream once the last norm's scale is taken as it came out. What a part does to later parts is not
    seen. Where the unembedding is bfloat16 the model rounds what goes into it, and the sum is the logit without that rounding.

    Args:
      values: of a capture of `attributed_sites(config)`.
      tokens: whose logits, at each of the positions: those that come next, say.
      minus: tokens whose logits are taken away.
      positions: which of the captured ones, such as `np.s_[-4:]` or -1; T of the other arguments and of the result is their number.
    """
    wanted = attributed_sites(config)
    if not isinstance(params, Params) or not isinstance(values, Mapping):
        got = f"{type(params).__name__} and {type(values).__name__}"
        raise ValueError(
            f"params must be Params, and values those of a capture, by name; got {got}; pass model.params and the second result."
        )
    missing = [name for name in wanted if any(name.replace("*", str(i)) not in values for i in range(config.num_hidden_layers))]
    if missing:
        raise ValueError(f"values must be those of attributed_sites(config); {', '.join(missing)} absent; capture these names.")
    positions = _places(values[wanted[0]], positions)
    embedding, last = (values[name][:, positions].astype(jnp.float32) for name in (wanted[0], wanted[-1]))
    heads, attention, experts, gates, outputs, moe = (layers_of(values, site)[:, :, positions] for site in ATTRIBUTED)
    direction = _rows(params, "tokens", tokens, last.shape[:2])
    if minus is not None:
        direction = direction - _rows(params, "minus", minus, last.shape[:2])
    scale = jax.lax.rsqrt(jnp.mean(last * last, -1, keepdims=True) + config.rms_norm_eps)
    direction = direction * params.norm.reshape(1, 1, -1) * scale
    along = lambda part, letters: jnp.einsum(f"{letters}d,btd->{letters}", part, direction, precision="highest")
    by_head, attention, each, moe = along(heads, "lbtn"), along(attention, "lbt"), along(outputs, "lbta"), along(moe, "lbt")
    by_expert = expert_gates(experts, gates * each, config.num_local_experts)
    first = along(embedding, "bt")
    return Attribution(
        embedding=first,
        heads=by_head,
        attention_rest=attention - jnp.sum(by_head, -1),
        experts=by_expert,
        moe_rest=moe - jnp.sum(by_expert, -1),
        residual_rest=along(last, "bt") - first - jnp.sum(attention + moe, 0),
    )


def _places(embedding: jax.Array, positions: object) -> slice | np.ndarray:
    """Positions as an index. Raises ValueError where they are none of the captured ones, or where those are no batch."""
    if jnp.ndim(embedding) != 3:
        got = jnp.shape(embedding)
        raise ValueError(f"values must be those of a batch, an embedding [B, T, D]; got {got}; of one generation pass value[None] of each.")
    count = embedding.shape[1]
    try:
        places = positions if isinstance(positions, slice) else np.atleast_1d(positions)
        fits = np.arange(count)[places].ndim == 1
    except (IndexError, TypeError, ValueError):  # outside, no index, or ragged
        fits = False
    if not fits:
        raise ValueError(f"positions must be some of the {count:,} captured ones; got {quoted(positions, 60)}; pass -1 for the last.")
    return places


def _rows(params: Params, name: str, tokens: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Rows of the unembedding [B, T, D] float32. Raises ValueError where tokens are not ids for each of the positions."""
    tokens = np.asarray(tokens) if isinstance(tokens, list | tuple) else tokens
    got = getattr(tokens, "shape", type(tokens).__name__)
    if got != shape or not jnp.issubdtype(tokens.dtype, jnp.integer):
        got = f"{got} of {tokens.dtype}" if hasattr(tokens, "dtype") else got
        raise ValueError(f"{name} must be ids, one for each of the positions, {shape}; got {got}; pass those of the same batch.")
    V, known = len(params.unembedding), not isinstance(tokens, jax.core.Tracer)
    if known and (outside := np.asarray(tokens)[(tokens < 0) | (tokens >= V)]).size:
        raise ValueError(f"{name} must be ids of the vocabulary, 0 ... {V - 1:,}; got {int(outside[0]):,}; pass the model's own.")
    return embed(params.replace(embedding=params.unembedding), jnp.asarray(tokens))


def logit_lens(
    params: Params,
    config: Config,
    residuals: jax.Array,  # [layers, B, T, D] float32
    *,
    keep: Callable[[jax.Array], Any] = lambda logits: logits,
) -> Any:  # [layers, B, T, V] float32
    """The logits that each layer's residual stream would give if it were the last: the model's own last norm and unembedding of it.

    One layer at a time: with `keep` the logits of all layers never exist together.

    Args:
      residuals: such as `layers_of(values, "residual_post")`, or some positions of it, `[:, :, -8:]`.
      keep: what is kept of a layer's logits [B, T, V], stacked over layers; for instance
        `lambda logits: token_logprobs(logits, tokens)`.
    """
    if getattr(residuals, "ndim", 0) != 4 or residuals.shape[-1] != config.hidden_size:
        got = getattr(residuals, "shape", type(residuals).__name__)
        raise ValueError(f"residuals must be [layers, B, T, {config.hidden_size}]; got {got}; pass layers_of(values, 'residual_post').")
    return jax.lax.map(lambda x: keep(unembed(params, config, x)), residuals)


def token_logprobs(
    logits: jax.Array,  # [B, T, V] float32
    tokens: jax.Array,  # [B, T] int32
) -> jax.Array:  # [B, T - 1] float32
    """Natural-log probability of each token after the first, under the logits before it."""
    shapes = [getattr(x, "shape", type(x).__name__) for x in (logits, tokens)]
    if len(shapes[0]) != 3 or shapes[0][:2] != shapes[1]:
        raise ValueError(f"logits must be [B, T, V] and tokens [B, T]; got {shapes[0]} and {shapes[1]}; pass those of one batch.")
    before = logits[:, :-1].astype(jnp.float32)
    own = jnp.take_along_axis(before, tokens[:, 1:, None], 2)[:, :, 0]
    return own - jax.nn.logsumexp(before, -1)


def entropy(
    logits: jax.Array,  # [..., V] float32
) -> jax.Array:  # [...] float32
    """Entropy of the distribution, in nats: 0 where one token is certain, log(V) where all are alike. Logits of -inf count for nothing."""
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    return -jnp.sum(jnp.where(logprobs > -jnp.inf, jnp.exp(logprobs) * logprobs, 0), -1)


def expert_gates(
    experts: jax.Array,  # [..., A] int32
    gates: jax.Array,  # [..., A] float32
    num_experts: int,
) -> jax.Array:  # [..., E] float32
    """The weight of every expert, 0 for those that were not chosen: what is kept of "moe.experts" and "moe.gates", by expert."""
    chosen = jax.nn.one_hot(experts, num_experts, dtype=gates.dtype)  # [..., A, E], all zeros for E and more
    return jnp.sum(chosen * gates[..., None], -2)


def expert_load(
    experts: jax.Array,  # [L, B, T, A] int32
    num_experts: int,
    *,
    valid: jax.Array | None = None,  # [B, T] bool
) -> jax.Array:  # [L, E] float32
    """Share of the tokens that are routed to each expert; a layer's shares add up to A, and A / E is an even load.

    Args:
      experts: `layers_of(values, "moe.experts")`. E or more is no expert.
      valid: which tokens count, such as those that are no padding, or those of one kind; None for all. Of no tokens, all shares are 0.
    """
    routed = jnp.max(jax.nn.one_hot(experts, num_experts, dtype=jnp.float32), -2)  # [L, B, T, E]
    return _mean_of_tokens(routed, valid)


def sink_mass_by_head(
    mass: jax.Array,  # [L, B, T, N] float32
    *,
    valid: jax.Array | None = None,  # [B, T] bool
) -> jax.Array:  # [L, N] float32
    """Mean share of the softmax that each head's sink takes, over the tokens that count (`valid`, as for `expert_load`).

    Args:
      mass: `layers_of(values, "attention.sink_mass")`.
    """
    return _mean_of_tokens(mass, valid)


def _mean_of_tokens(values: jax.Array, valid: jax.Array | None) -> jax.Array:
    """[L, B, T, X] -> [L, X]."""
    if valid is None:
        return jnp.mean(values, (1, 2))
    total = jnp.sum(jnp.where(valid[None, :, :, None], values, 0), (1, 2))
    return total / jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1)
