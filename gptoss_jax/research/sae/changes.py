"""Changes for `patch` that go through an SAE's features: what they leave alone stays as it is, to the bit."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.model import inputs
from gptoss_jax.model.hooks import Change
from gptoss_jax.quoting import quoted
from gptoss_jax.research.sae import autoencoder
from gptoss_jax.research.sae.autoencoder import SAE


def spliced(sae: SAE, change: Callable[[jax.Array], jax.Array] | None = None, *, error: bool = False) -> Change:
    """A change that puts what the SAE makes of a value in its place.

    Args:
      change: what becomes of the features [..., d_sae] before they are decoded; None leaves them.
      error: what the SAE does not explain of the value is kept: only what `change` changes is seen in it.

    `change` is given the features of all positions at once. Of an SAE of many, `clamp` and `steer` hold those they name.
    """
    autoencoder.check(sae)
    if change is not None and not callable(change):
        raise ValueError(f"change must be a function of features; got {quoted(change, 60)}; see clamp for a constant.")

    def through(value: jax.Array) -> jax.Array:
        if change is None:
            return value if error else autoencoder.reconstruct(sae, value).astype(value.dtype)
        features = autoencoder.encode(sae, value)
        changed = change(features)
        if getattr(changed, "shape", None) != features.shape:
            got = getattr(changed, "shape", type(changed).__name__)
            raise ValueError(f"a change of features must return as many, {features.shape}; got {got}; change some with .at[].set.")
        if not error:
            return autoencoder.decode(sae, changed, value).astype(value.dtype)
        return value + _moved(sae, value, changed - features, np.arange(sae.d_sae))

    return through


def clamp(sae: SAE, features: int | Sequence[int], to: jax.typing.ArrayLike, *, at: Any = ...) -> Change:
    """A change that sets the activations of some features, wherever they stood; 0 ablates them. What else the value holds stays.

    Args:
      features: one or several.
      to: an activation for all, or one for each.
      at: indexes where, such as `np.s_[:, -1]`.
    """
    ids, to = _asked(sae, features, to, "to")

    def change(value: jax.Array) -> jax.Array:
        now = autoencoder.encode(sae, value, only=ids)
        return _moved_at(sae, value, _beside(to, now) - now, ids, at)

    return change


def steer(sae: SAE, features: int | Sequence[int], by: jax.typing.ArrayLike, *, at: Any = ...) -> Change:
    """A change that adds what some features write, as if each were that much more active; nothing is encoded.

    Args:
      features: one or several.
      by: an activation for all, or one for each; negative takes away.
      at: indexes where, such as `np.s_[:, -1]`.
    """
    ids, by = _asked(sae, features, by, "by")

    def change(value: jax.Array) -> jax.Array:
        flat = autoencoder.flat(sae, value)
        more = jnp.broadcast_to(_beside(by, flat), (*flat.shape[:-1], len(ids)))
        return _moved_at(sae, value, more, ids, at)

    return change


def _asked(sae: SAE, features: int | Sequence[int], amount: jax.typing.ArrayLike, name: str) -> tuple[np.ndarray, jax.Array]:
    """Ids, and an amount for each."""
    autoencoder.check(sae)
    ids = autoencoder.features_of(sae, features)
    if len(set(ids.tolist())) < len(ids):
        raise ValueError(f"features must be named once each; got {quoted(ids.tolist(), 60)}; pass one amount for each.")
    try:
        amount = jnp.asarray(amount, jnp.float32)
        amount = jnp.broadcast_to(amount, ids.shape) if amount.ndim == 0 else amount.reshape(ids.shape)
        known = not isinstance(amount, jax.core.Tracer)
        if known and not np.isfinite(amount).all():
            raise ValueError("not a finite number")
    except (TypeError, ValueError) as error:
        must = f"{name} must be a finite activation, or one for each of {len(ids)} features"
        raise ValueError(f"{must}; got {quoted(amount, 60)}; pass a number.") from error
    return ids, amount


def _beside(amount: jax.Array, value: jax.Array) -> jax.Array:
    return amount.reshape((1,) * (value.ndim - 1) + (-1,))


def _moved(sae: SAE, value: jax.Array, more: jax.Array, ids: np.ndarray) -> jax.Array:
    """What is added to a value where features are `more` [..., n] active."""
    rows = autoencoder.directions(sae, ids)
    moved = jnp.matmul(more, rows, precision="highest") * autoencoder.scale_of(sae, value)
    return moved.reshape(value.shape).astype(value.dtype)


def _moved_at(sae: SAE, value: jax.Array, more: jax.Array, ids: np.ndarray, at: Any) -> jax.Array:
    moved = _moved(sae, value, more, ids)
    try:
        inputs.check_index(value.shape, at)
        return value.at[at].add(moved[at])
    except (TypeError, IndexError, ValueError) as error:
        raise ValueError(f"at must index a value {value.shape}; got {quoted(at, 40)}; pass np.s_[:, -1], say.") from error
