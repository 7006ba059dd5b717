"""The log-probabilities of given tokens: whole batches through the cache, without drawing anything."""

from collections.abc import Iterator, Sequence

import numpy as np

from gptoss_jax import decode
from gptoss_jax.config import Config
from gptoss_jax.model.cache import init_cache
from gptoss_jax.model.params import Params

SMALLEST_CHUNK = 16  # tokens


def score(
    params: Params,
    config: Config,
    sequences: Sequence[Sequence[int]],
    *,
    slots: int,
    context: int,
    chunk: int,
    cache_dtype=None,
) -> list[np.ndarray]:
    """Natural-log probability of every token after the first of each sequence, under the model's own distribution.

    Sequences run in groups, shortest first. Every dispatch has one of a few shapes: rows and chunks are rounded up to powers of two.

    Args:
      params, config: the model.
      sequences: token ids that `requests.check_prompt` does not refuse, with room for none.
      slots: most sequences a group.
      context: tokens that a row of the cache holds.
      chunk: most tokens a dispatch.
      cache_dtype: of keys and values; None for the params' own.

    Returns:
      One float32 array [len(sequence) - 1] per sequence.
    """
    partition = params.partition
    replicas = 1 if partition is None else partition.parts("batch")
    scores: list[list[np.ndarray]] = [[] for _ in sequences]
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    chunk = min(chunk, context)
    for first in range(0, len(order), slots):
        group = order[first : first + slots]
        rows = min(slots, -(-_power_of_two(len(group)) // replicas) * replicas)  # which the mesh's replicas can share
        cache = init_cache(config, rows, context, chunk=chunk, dtype=cache_dtype or params.embedding.dtype, partition=partition)
        inputs = _chunks([sequences[i][:-1] for i in group], rows, chunk)
        targets = _chunks([sequences[i][1:] for i in group], rows, chunk)
        for (tokens, counts), (target, _) in zip(inputs, targets, strict=True):
            logprobs, cache = decode.score_chunk(params, config, cache, tokens, counts, target)
            for row, i in enumerate(group):
                scores[i].append(np.asarray(logprobs)[row, : counts[row]])
    return [np.concatenate(parts) if parts else np.zeros(0, np.float32) for parts in scores]


def _chunks(sequences: Sequence[Sequence[int]], rows: int, chunk: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rounds of (tokens [rows, T], how many of them count [rows]) until all are fed."""
    done, longest = 0, max(map(len, sequences), default=0)
    while done < longest:
        T = min(chunk, max(SMALLEST_CHUNK, _power_of_two(longest - done)))
        tokens, counts = np.zeros((rows, T), np.int32), np.zeros(rows, np.int32)
        for row, sequence in enumerate(sequences):
            part = np.asarray(sequence[done : done + T], np.int32)
            tokens[row, : len(part)], counts[row] = part, len(part)
        yield tokens, counts
        done += T


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
