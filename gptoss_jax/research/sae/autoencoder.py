"""What a sparse autoencoder is, and what it computes: features of a value, and the value of features. Pure; they run under jit.

Products are accumulated in float32 and in full precision where weights are float32; everything else is float32. Source: SAELens 6.54,
whose names for architectures, weights and normalisations these are.
"""

from collections.abc import Callable, Sequence
import math
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.quoting import quoted

ARCHITECTURES = ("standard", "gated", "jumprelu", "topk")
NORMALISATIONS = ("none", "constant_norm_rescale", "layer_norm")
OWN = {"standard": ("b_enc",), "topk": ("b_enc",), "jumprelu": ("b_enc", "threshold"), "gated": ("b_enc", "r_mag", "b_mag")}
"""Weights of each architecture beside `w_enc`, `w_dec` and `b_dec`."""
ONE_KIND_S = {"threshold": None, "r_mag": None, "b_mag": None, "k": None, "by_decoder_norm": False}
"""What only some architectures have, and what it is where there is none."""

_EPS = 1e-5  # of layer_norm, beside the standard deviation
_AT_ONCE = 1 << 24  # activations of features that are held while values are encoded


@flax.struct.dataclass
class SAE:
    """A sparse autoencoder of d_sae features for a value that is d_in wide.

    Attributes:
      w_enc, b_enc: [d_in, d_sae] and [d_sae]: the encoder; of a gated one `b_enc` is that of the gates.
      w_dec, b_dec: [d_sae, d_in] and [d_in]: the decoder; a row is what its feature writes.
      threshold: [d_sae]: what a jumprelu's feature must exceed.
      r_mag, b_mag: [d_sae]: of a gated one: its features' magnitudes have the encoder scaled by exp(r_mag), and these biases.
      architecture: "standard", "gated", "jumprelu" or "topk".
      k: how many features a topk keeps.
      b_dec_first: whether b_dec is taken from what is encoded.
      normalisation: of what is encoded, undone behind the decoder: "none", "constant_norm_rescale" (to a norm of sqrt(d_in)), "layer_norm".
      by_decoder_norm: whether a topk's features are weighed by the norm of what they write.
      heads: whether it reads all heads of `attention.heads` (`attn.hook_z`) as one vector.
      hook_name: the site that it was trained on, as its files name it: TransformerLens' names are understood by `capture` and `patch`.
    """

    w_enc: jax.Array
    b_enc: jax.Array
    w_dec: jax.Array
    b_dec: jax.Array
    threshold: jax.Array | None = None
    r_mag: jax.Array | None = None
    b_mag: jax.Array | None = None
    architecture: Literal["standard", "gated", "jumprelu", "topk"] = flax.struct.field(pytree_node=False, default="standard")
    k: int | None = flax.struct.field(pytree_node=False, default=None)
    b_dec_first: bool = flax.struct.field(pytree_node=False, default=True)
    normalisation: Literal["none", "constant_norm_rescale", "layer_norm"] = flax.struct.field(pytree_node=False, default="none")
    by_decoder_norm: bool = flax.struct.field(pytree_node=False, default=False)
    heads: bool = flax.struct.field(pytree_node=False, default=False)
    hook_name: str | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def d_in(self) -> int:
        return self.w_enc.shape[-2]

    @property
    def d_sae(self) -> int:
        return self.w_enc.shape[-1]


def encode(
    sae: SAE,
    x: jax.Array,  # [..., d_in] float32
    *,
    only: Sequence[int] | None = None,
) -> jax.Array:  # [..., d_sae] float32
    """The activations of the features, zero where one is not active.

    Args:
      x: values of the site that it is for; [..., N, H] where it reads all heads.
      only: features, whose activations alone are computed (of a topk picked), [..., len(only)] in this order; None for all.
    """
    check(sae)
    only = None if only is None else features_of(sae, only)
    return _in_blocks(lambda rows: _encoded(sae, rows, only), sae, flat(sae, x))


def decode(
    sae: SAE,
    features: jax.Array,  # [..., d_sae] float32
    x: jax.Array | None = None,  # [..., d_in] float32
) -> jax.Array:  # [..., d_in] float32
    """What the features write, b_dec included.

    Args:
      x: what was encoded, where the SAE normalises: its norm, or mean and deviation, are put back. Its shape is that of the result.
    """
    check(sae)
    if getattr(features, "ndim", 0) < 1 or features.shape[-1] != sae.d_sae:
        got = getattr(features, "shape", type(features).__name__)
        raise ValueError(f"features must be [..., {sae.d_sae}]; got {got}; pass what encode of this SAE returned.")
    if x is None and (sae.normalisation != "none" or sae.heads):
        what = "reads heads" if sae.heads else f"normalises ({sae.normalisation})"
        raise ValueError(f"decode needs x, for this SAE {what}; got none; pass what was encoded.")
    return _written(sae, _product(_weighed(sae, features), sae.w_dec), x)


def reconstruct(
    sae: SAE,
    x: jax.Array,  # [..., d_in] float32
) -> jax.Array:  # [..., d_in] float32
    """What the SAE makes of a value: `decode` of `encode`, some positions at a time, so that features of all never exist together."""
    check(sae)
    made = lambda rows: _kept(sae, rows) if sae.architecture == "topk" else _product(_weighed(sae, _encoded(sae, rows)), sae.w_dec)
    return _written(sae, _in_blocks(made, sae, flat(sae, x)), x)


def check(sae: SAE) -> None:
    """Raises ValueError where it is no SAE, or one whose weights are not those of its architecture."""
    if not isinstance(sae, SAE):
        raise ValueError(f"sae must be a sparse autoencoder; got a {type(sae).__name__}; pass what sae.load returned.")
    for name, given, known in (
        ("architecture", sae.architecture, ARCHITECTURES),
        ("normalisation", sae.normalisation, NORMALISATIONS),
    ):
        if given not in known:
            raise ValueError(f"the {name} of an SAE must be {', '.join(known)}; got {quoted(given, 60)}; make it of one of these.")
    of = lambda name: tuple(getattr(getattr(sae, name), "shape", ())) or quoted(getattr(sae, name), 20)
    D, F = (*of("w_enc"), 0, 0)[:2] if isinstance(of("w_enc"), tuple) else (0, 0)
    wanted = {"w_enc": (D, F), "w_dec": (F, D), "b_dec": (D,)} | {name: (F,) for name in OWN[sae.architecture]}
    if wrong := [f"{name} {of(name)}" for name, shape in wanted.items() if of(name) != shape]:
        must = "w_enc [d_in, d_sae], w_dec [d_sae, d_in], b_dec [d_in], and [d_sae] " + ", ".join(OWN[sae.architecture])
        raise ValueError(f"a {sae.architecture} SAE must have {must}; got {', '.join(wrong)}; make it of such arrays.")
    used = (*OWN[sae.architecture], "k", "by_decoder_norm") if sae.architecture == "topk" else OWN[sae.architecture]
    others = [name for name, none in ONE_KIND_S.items() if name not in used and getattr(sae, name) is not none]
    if others:
        raise ValueError(f"a {sae.architecture} SAE must have what it uses alone; got also {', '.join(others)}; name its architecture.")
    for name in ("b_dec_first", "by_decoder_norm", "heads"):
        if not isinstance(getattr(sae, name), bool):
            raise ValueError(f"{name} of an SAE must be True or False; got {quoted(getattr(sae, name), 60)}; give one.")
    if not isinstance(sae.hook_name, str | None):
        raise ValueError(f"hook_name of an SAE must be a site's name; got {quoted(sae.hook_name, 60)}; leave it out for none.")
    if sae.architecture == "topk" and not (type(sae.k) is int and 1 <= sae.k <= F):
        raise ValueError(f"k of a topk SAE must be a number of features, 1 ... {F:,}; got {quoted(sae.k, 60)}; give such a one.")


def directions(sae: SAE, features: np.ndarray | jax.Array) -> jax.Array:  # [n, d_in] float32
    """What each of some features writes at an activation of 1, before a normalisation is undone."""
    rows = sae.w_dec[features].astype(jnp.float32)
    return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True) if sae.by_decoder_norm else rows


def scale_of(sae: SAE, x: jax.Array) -> jax.Array:  # [..., 1] float32
    """What a normalisation multiplies by when it is undone."""
    return _scale(sae, flat(sae, x))


def flat(sae: SAE, x: jax.Array) -> jax.Array:  # [..., d_in] float32
    """A value as the SAE reads it. Raises ValueError where it is of another width."""
    shape = tuple(getattr(x, "shape", ()))
    own = (*shape[:-2], shape[-2] * shape[-1]) if sae.heads and len(shape) > 1 else shape
    if not own or own[-1] != sae.d_in:
        what = f"[..., N, H] with N x H = {sae.d_in}" if sae.heads else f"[..., {sae.d_in}]"
        trained = f", for which it was trained: {sae.hook_name}" if sae.hook_name else ""
        raise ValueError(
            f"an SAE reads values as wide as itself, {what}; got {shape or type(x).__name__}; take one of this model and site{trained}."
        )
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"an SAE reads real numbers; got {x.dtype}; pass a value as capture keeps it.")
    return jnp.asarray(x).astype(jnp.float32).reshape(own)


def features_of(sae: SAE, features: int | Sequence[int]) -> np.ndarray:
    """Features as an array of ids. Raises ValueError where they are none of the SAE's."""
    try:
        ids = np.atleast_1d(np.asarray(features))
    except ValueError:  # rows of different lengths
        ids = np.zeros(0)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu" or not ((ids >= 0) & (ids < sae.d_sae)).all():
        raise ValueError(f"features must be some of 0 ... {sae.d_sae - 1:,}; got {quoted(features, 60)}; pass one or a list of them.")
    return ids


def _in_blocks(fn: Callable[[jax.Array], jax.Array], sae: SAE, x: jax.Array) -> jax.Array:
    """fn([rows, d_in]) of [..., d_in], some rows at a time."""
    rows = x.reshape(-1, sae.d_in)
    most = max(1, _AT_ONCE // sae.d_sae)
    y = fn(rows) if len(rows) <= most else jax.lax.map(lambda row: fn(row[None])[0], rows, batch_size=most)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _encoded(sae: SAE, x: jax.Array, only: np.ndarray | None = None) -> jax.Array:
    """Activations [rows, d_sae], or of some features, of [rows, d_in]."""
    if sae.architecture == "topk":
        values, ids = _top(sae, x)
        features = jnp.put_along_axis(jnp.zeros((len(x), sae.d_sae), jnp.float32), ids, values, axis=-1, inplace=False)
        return features if only is None else features[:, only]
    part = lambda weight: weight if only is None else weight[..., only]
    pre = _product(_normalised(sae, x), part(sae.w_enc))
    bias = lambda weight: _row(part(weight), pre)
    if sae.architecture == "gated":
        return jnp.where(pre + bias(sae.b_enc) > 0, jax.nn.relu(pre * jnp.exp(bias(sae.r_mag)) + bias(sae.b_mag)), 0)
    pre = pre + bias(sae.b_enc)
    if sae.architecture == "jumprelu":
        return jnp.where(pre > bias(sae.threshold), jax.nn.relu(pre), 0)
    return jax.nn.relu(pre)


def _kept(sae: SAE, x: jax.Array) -> jax.Array:
    """What the features that a topk keeps write, [rows, d_in], one of each row after the other."""

    def step(total, one):
        value, i = one
        return total + value[:, None] * directions(sae, i), None

    values, ids = _top(sae, x)
    return jax.lax.scan(step, jnp.zeros((len(x), sae.d_in), jnp.float32), (values.T, ids.T))[0]


def _top(sae: SAE, x: jax.Array) -> tuple[jax.Array, jax.Array]:  # [..., k] float32 and int32
    """The activations that a topk keeps, and which they are."""
    pre = _product(_normalised(sae, x), sae.w_enc)
    pre = pre + _row(sae.b_enc, pre)
    if sae.by_decoder_norm:
        pre = pre * _row(jnp.linalg.norm(sae.w_dec.astype(jnp.float32), axis=-1), pre)
    values, ids = jax.lax.top_k(pre, sae.k)
    return jax.nn.relu(values), ids


def _scale(sae: SAE, x: jax.Array) -> jax.Array:
    if sae.normalisation == "constant_norm_rescale":
        return jnp.linalg.norm(x, axis=-1, keepdims=True) / math.sqrt(sae.d_in)
    if sae.normalisation == "layer_norm":
        return jnp.std(x, -1, keepdims=True, ddof=1)
    return jnp.ones((*x.shape[:-1], 1), jnp.float32)


def _normalised(sae: SAE, x: jax.Array) -> jax.Array:
    if sae.normalisation == "constant_norm_rescale":
        norm = _scale(sae, x)
        x = x / jnp.where(norm > 0, norm, 1)
    elif sae.normalisation == "layer_norm":
        x = (x - jnp.mean(x, -1, keepdims=True)) / (_scale(sae, x) + _EPS)
    return x - _row(sae.b_dec, x) if sae.b_dec_first else x


def _written(sae: SAE, total: jax.Array, x: jax.Array | None) -> jax.Array:
    """What a decoder's product becomes: its bias, what a normalisation took away, the shape that was read."""
    total = total + _row(sae.b_dec, total)
    if x is None:
        return total
    if sae.normalisation != "none":
        total = total * scale_of(sae, x)
    if sae.normalisation == "layer_norm":
        total = total + jnp.mean(flat(sae, x), -1, keepdims=True)
    return total.reshape(x.shape)


def _weighed(sae: SAE, features: jax.Array) -> jax.Array:
    if not sae.by_decoder_norm:
        return features
    return features / _row(jnp.linalg.norm(sae.w_dec.astype(jnp.float32), axis=-1), features)


def _row(weight: jax.Array, like: jax.Array) -> jax.Array:
    """A vector beside an array of more dimensions."""
    return weight.astype(jnp.float32).reshape((1,) * (like.ndim - 1) + (-1,))


def _product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [..., in] @ w [in, out] -> [..., out] float32, in w's dtype."""
    return jnp.matmul(x.astype(w.dtype), w, precision="highest", preferred_element_type=jnp.float32)
