"""What a run is asked: numbers for each row, of the logits behind some of its tokens. Their ids are data, not part of a program."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.quoting import quoted

Metric = Callable[[jax.Array], jax.Array]


def logit_difference(right: jax.typing.ArrayLike, wrong: jax.typing.ArrayLike) -> Metric:
    """The logit of one token minus that of another, for each row.

    Args:
      right, wrong: ids, of all rows or [B].
    """
    return jax.tree_util.Partial(_difference, _ids("right", right, 1), _ids("wrong", wrong, 1))


def log_probability(answer: jax.typing.ArrayLike) -> Metric:
    """The natural-log probability of an answer, for each row.

    Args:
      answer: the id of a token, or [B] of one for each row. Of P tokens [P], or [B, P]: prompts then end with the answer less its last
        token, and `at` is range(-P, 0).
    """
    return jax.tree_util.Partial(_log_probability, _ids("answer", answer, 2))


def as_partial(metric: Metric, config: Config) -> jax.tree_util.Partial:
    """A metric as jit takes it: what it is made with is data. Raises ValueError where it is no function, or asks for ids of no token."""
    if not callable(metric):
        raise ValueError(f"metric must be a function of logits; got {quoted(metric, 60)}; pass logit_difference(right, wrong), say.")
    if isinstance(metric, jax.tree_util.Partial) and metric.func in (_difference, _log_probability):
        for ids in metric.args:
            if (outside := ids[(ids < 0) | (ids >= config.vocab_size)]).size:
                raise ValueError(
                    f"a metric's ids must lie in 0 ... {config.vocab_size - 1:,}; got {int(outside.flat[0]):,}; pass those of the model's "
                    "tokenizer."
                )
    return metric if isinstance(metric, jax.tree_util.Partial) else jax.tree_util.Partial(metric)


def measured(metric: Metric, logits: jax.Array) -> jax.Array:  # [B] or [1] float32
    """The metric of one run's logits. Raises ValueError where it is of another shape."""
    value = metric(logits)
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape not in ((), logits.shape[:1]) or not jnp.issubdtype(dtype, jnp.floating):
        got = quoted(value, 60) if dtype is None else f"{dtype}{shape}"
        raise ValueError(f"a metric must give a real number, or one for each of the {len(logits)} rows; got {got}; take its mean, say.")
    return jnp.atleast_1d(value).astype(jnp.float32)


def _ids(name: str, ids: object, most: int) -> np.ndarray:
    try:
        found = np.asarray(ids)
    except Exception:  # of a ragged list, or of an array that was given away
        found = np.asarray(None)
    if found.dtype.kind not in "iu" or found.ndim > most or not found.size:
        raise ValueError(f"{name} must be the id of a token, or ids by row; got {quoted(ids, 60)}; pass tokenizer.encode(text)[0], say.")
    return found.astype(np.int32) if abs(found.astype(np.float64)).max() < 2**31 else np.full_like(found, -1, np.int32)


def _difference(right: jax.Array, wrong: jax.Array, logits: jax.Array) -> jax.Array:
    if logits.ndim != 2:
        raise ValueError(f"logit_difference takes the logits behind one token; got {logits.shape}; pass one position as at.")
    return _of("right", logits, right) - _of("wrong", logits, wrong)


def _log_probability(answer: jax.Array, logits: jax.Array) -> jax.Array:
    each = _of("answer", logits, answer) - jax.nn.logsumexp(logits, -1)
    return each if each.ndim == 1 else jnp.sum(each, 1)


def _of(name: str, logits: jax.Array, ids: jax.Array) -> jax.Array:
    """[B, V] or [B, P, V] and ids that are as many, or the same for all rows -> [B] or [B, P]."""
    if ids.ndim > logits.ndim - 1 or any(n not in (1, have) for n, have in zip(ids.shape[::-1], logits.shape[-2::-1], strict=False)):
        raise ValueError(f"{name} must be one id for each of the logits, {logits.shape[:-1]}; got {ids.shape}; pass such ids, or other at.")
    return jnp.take_along_axis(logits, jnp.broadcast_to(ids, logits.shape[:-1])[..., None], -1)[..., 0]
