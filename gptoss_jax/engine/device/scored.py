"""What the model says of given tokens, in pieces of sequences that a dispatch reads. Token ids in, log-probabilities out."""

import functools

import jax
import jax.numpy as jnp

from gptoss_jax.config import Config
from gptoss_jax.engine.device.state import Blocks
from gptoss_jax.model import beside
from gptoss_jax.model.cache import Cache
from gptoss_jax.model.params import Params
from gptoss_jax.model.transformer import extend, unembed
from gptoss_jax.parallel.sharding import constrain
from gptoss_jax.sampling.reported import Sampled, given_logprobs, most_probable

SCORED_LOGITS = 1 << 26  # elements of logits alive at a time while tokens are scored: 256 MB in float32


@functools.partial(jax.jit, static_argnames=("config", "top_logprobs"), donate_argnames=("cache",))
def score(
    params: Params,
    config: Config,
    cache: Cache,
    blocks: Blocks,
    targets: jax.Array,  # [P, T] int32
    *,
    top_logprobs: int = 0,
    given: jax.Array | None = None,  # [g] int32
) -> tuple[Cache, Sampled]:
    """The cache with pieces of sequences in it, and what the model says of the token that follows each position.

    Args:
      cache: whose pages are used; its tables and lengths are not.
      blocks: the pieces. A piece sees those before it in its sequence, which may be in the same dispatch.
      targets: the tokens that follow.
      top_logprobs: static; how many of the most probable tokens to report.
      given: token ids, padded with -1, whose log-probabilities at each position are reported too.

    Returns:
      The cache, and of each position the target with its log-probability: leaves [P, T, ...], on a mesh whole on every device.
    """
    params = beside.take(params, blocks.adapter)
    view = cache.replace(full_table=blocks.full_table, ring_table=blocks.ring_table, length=blocks.start)
    x, view = extend(params, config, view, blocks.tokens, blocks.count)
    (P, T, _), V = x.shape, config.vocab_size
    most = max(1, SCORED_LOGITS // (P * V))
    size = max(n for n in range(1, T + 1) if T % n == 0 and n <= most)  # positions of each row at a time

    def part(piece):
        x, targets = piece
        logits = unembed(params, config, x).reshape(P * size, V)
        log_total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        best, best_tokens = most_probable(logits, log_total, top_logprobs, params.partition)
        chosen = jnp.take_along_axis(logits, targets.reshape(-1, 1), axis=-1) - log_total
        others = None if given is None else given_logprobs(logits, log_total, jnp.broadcast_to(given, (len(logits), len(given))))
        return Sampled(targets.reshape(-1), chosen[:, 0], best_tokens, best, others)

    cut = lambda all: jnp.moveaxis(all.reshape(P, T // size, size, *all.shape[2:]), 1, 0)
    join = lambda parts: jnp.moveaxis(parts.reshape(T // size, P, size, *parts.shape[2:]), 0, 1).reshape(P, T, *parts.shape[2:])
    scored = jax.tree.map(join, jax.lax.map(part, (cut(x), cut(targets))))
    return cache.replace(k=view.k, v=view.v), jax.tree.map(lambda all: constrain(params.partition, all), scored)
