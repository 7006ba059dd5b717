"""What is reported of a step's tokens beside themselves: log-probabilities, of those drawn, of the most probable, of given ones.

On a mesh each device looks at its part of the vocabulary; parts are never gathered.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from gptoss_jax.parallel.sharding import Partition, constrain, gathered, local
from gptoss_jax.sampling.options import MAX_GIVEN


@flax.struct.dataclass
class Processed:
    """Log-probabilities under the distribution that tokens are drawn from: after masks, bias, penalties, temperature and filters.

    That is the softmax over the tokens that these leave; the others have -inf. Where the most probable token is always taken it has 0.
    """

    logprobs: jax.Array  # [B] f32 of the step's tokens
    top_tokens: jax.Array  # [B, n] int32, most probable first
    top_logprobs: jax.Array  # [B, n] f32


@flax.struct.dataclass
class Sampled:
    """The tokens of one step. Log-probabilities are natural logs under the model's own distribution, but for those that are processed."""

    tokens: jax.Array  # [B] int32
    logprobs: jax.Array  # [B] f32
    top_tokens: jax.Array  # [B, n] int32, most probable first
    top_logprobs: jax.Array  # [B, n] f32
    given_logprobs: jax.Array | None = None  # [B, g] f32 of given tokens
    processed: Processed | None = None


def room(rows: int, steps: int, count: int) -> Sampled:
    """Zeros [rows, steps, ...] for what so many steps report, `count` of the most probable tokens among it."""
    column = lambda dtype, *shape: jnp.zeros((rows, steps, *shape), dtype)
    most = lambda: (column(jnp.int32, count), column(jnp.float32, count))
    processed = Processed(column(jnp.float32), *most())
    return Sampled(column(jnp.int32), column(jnp.float32), *most(), column(jnp.float32, MAX_GIVEN), processed)


def most_probable(
    logits: jax.Array,  # [B, V] f32
    log_total: jax.Array,  # [B, 1] f32
    count: int,
    partition: Partition | None,
) -> tuple[jax.Array, jax.Array]:  # [B, count] f32 and int32
    """The highest log-probabilities of each row and their tokens, of equals the lowest ids first. `log_total`: logits' logsumexp."""

    def top(logits):
        values, tokens = jax.lax.top_k(logits, min(count, logits.shape[1]))
        if partition is None or not count:
            return values, tokens
        tokens += partition.index("vocab") * logits.shape[1]
        values, tokens = (gathered(partition, x, "vocab") for x in (values, tokens))  # the best of each part, by ascending ids
        values, place = jax.lax.top_k(values, count)
        return values, jnp.take_along_axis(tokens, place, 1)

    rows = ("batch", None)
    values, tokens = local(partition, top, [("batch", "vocab")], (rows, rows))(logits)
    return values - log_total, tokens


def given_logprobs(
    logits: jax.Array,  # [B, V] f32
    log_total: jax.Array,  # [B, 1] f32
    ids: jax.Array,  # [B, g] int32, padded with -1
) -> jax.Array:  # [B, g] f32
    """The log-probabilities of given tokens of each row; what is padding has that of token 0."""
    return jnp.take_along_axis(logits, jnp.maximum(ids, 0), axis=-1) - log_total


def processed(
    left: jax.Array,  # [B, V] f32
    tokens: jax.Array,  # [B] int32
    count: int,
    partition: Partition | None,
) -> Processed:
    """What is said of the distribution that tokens are drawn from, given as log-weights: -inf for those that cannot be drawn."""
    log_total = jax.nn.logsumexp(left, axis=-1, keepdims=True)
    best, best_tokens = most_probable(left, log_total, count, partition)
    return Processed((jnp.take_along_axis(left, tokens[:, None], axis=-1) - log_total)[:, 0], best_tokens, best)


def wanted(partition: Partition | None, when: jax.Array, make: Callable):
    """A tree of numbers of the rows, [B, ...], which are made where somebody asks for them; zeros where nobody does.

    Each device has them whole but for the rows. That is said in both branches: else XLA gathers what they are made of.
    """
    whole = lambda found: jax.tree.map(lambda x: constrain(partition, x, ("batch", *(None,) * (x.ndim - 1))), found)
    nothing = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(make))
    return jax.lax.cond(when, lambda: whole(make()), lambda: whole(nothing()))
