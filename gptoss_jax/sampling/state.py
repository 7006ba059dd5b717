"""The settings of the rows of a batch as arrays, which `draw.sample` draws by: made on the host from each row's `Sampling`."""

from collections.abc import Sequence
import dataclasses
import math
import secrets

import flax.struct
import jax
import numpy as np

from gptoss_jax.parallel import processes, sharding
from gptoss_jax.parallel.sharding import Partition, Place
from gptoss_jax.sampling.options import MAX_GIVEN, Sampling


@flax.struct.dataclass
class SamplingState:
    """The settings of the rows of a batch, and what their penalties must remember."""

    temperature: jax.Array  # [B] f32; 0: the most probable token
    top_k: jax.Array  # [B] int32, 1 to V; V keeps all
    top_p: jax.Array  # [B] f32; 1 keeps all
    log_min_p: jax.Array  # [B] f32; -inf keeps all
    presence_penalty: jax.Array  # [B] f32
    frequency_penalty: jax.Array  # [B] f32
    repetition_penalty: jax.Array  # [B] f32; 1 is off
    bias_ids: jax.Array  # [B, slots] int32, padded with V
    bias_values: jax.Array  # [B, slots] f32
    stop_ids: jax.Array  # [B, slots] int32, padded with -1
    seed: jax.Array  # [B, 2] uint32: high and low half, which is what jax.random.key(seed) holds
    ranked: jax.Array  # [B] bool: the most probable tokens are to be reported
    given_ids: jax.Array  # [B, MAX_GIVEN] int32: tokens whose log-probabilities are to be reported, padded with -1
    processed: jax.Array  # [B] bool: log-probabilities under the distribution that is drawn from are to be reported
    counts: jax.Array  # [B, V] int32: times that each token was generated
    in_prompt: jax.Array  # [B, V] bool; all False where the repetition penalty is off


def state_axes() -> SamplingState:
    """The logical axes of a state's arrays, in a tree like it."""
    axes = dict.fromkeys((field.name for field in dataclasses.fields(SamplingState)), ("batch",))
    axes |= dict.fromkeys(("bias_ids", "bias_values", "stop_ids", "seed", "given_ids"), ("batch", None))
    return SamplingState(**axes | dict.fromkeys(("counts", "in_prompt"), ("batch", "vocab")))


def stack(
    samplings: Sequence[Sampling],
    *,
    vocab_size: int,
    eos_token_ids: Sequence[int] = (),
    prompts: Sequence[Sequence[int]] | None = None,
    slots: int = 16,
    partition: Place = None,
) -> SamplingState:
    """One `SamplingState` for a batch in which row i follows `samplings[i]`.

    Args:
        samplings: One per row.
        vocab_size: V, the width of the logits.
        eos_token_ids: The model's own stop tokens, which end every row without `ignore_eos`.
        prompts: Each row's prompt tokens, which the repetition penalty counts as seen; needed where a row uses it.
        slots: Least room for biases and for stop tokens in a row. It grows to the next power of two that fits, and another
            room is another compiled program.
        partition: How the state lies on a mesh, the params' own; or the device where it lies.

    Raises:
        ValueError: A token id is outside the vocabulary, or a row uses the repetition penalty and `prompts` is missing.
    """
    seeds = fresh_seeds(samplings, partition)
    state = columns(samplings, seeds, vocab_size=vocab_size, eos_token_ids=eos_token_ids, prompts=prompts, slots=slots)
    return jax.tree.map(lambda value, axes: sharding.put(value, partition, axes), state, state_axes())


def fresh_seeds(samplings: Sequence[Sampling], partition: Place = None) -> list[int]:
    """The seed of each, a fresh one where it names none; the same in all processes."""
    seeds = [secrets.randbits(63) if s.seed is None else s.seed for s in samplings]
    if isinstance(partition, Partition) and partition.processes > 1 and any(s.seed is None for s in samplings):
        seeds = processes.broadcast(np.array(seeds, np.uint64)).tolist()
    return seeds


def columns(
    samplings: Sequence[Sampling],
    seeds: Sequence[int],
    *,
    vocab_size: int,
    eos_token_ids: Sequence[int] = (),
    prompts: Sequence[Sequence[int]] | None = None,
    slots: int = 16,
) -> SamplingState:
    """As `stack`, in NumPy arrays on the host, with these seeds."""
    for sampling in samplings:
        sampling.validate_for(vocab_size)
    in_prompt = np.zeros((len(samplings), vocab_size), bool)
    for row, sampling in enumerate(samplings):
        if sampling.repetition_penalty == 1:
            continue
        if prompts is None:
            raise ValueError(f"repetition_penalty needs the prompt's tokens; got none for row {row}; pass prompts.")
        in_prompt[row, np.asarray(prompts[row], np.int32)] = True
    stops = [s.stop_token_ids + (() if s.ignore_eos else tuple(eos_token_ids)) for s in samplings]

    def column(values, dtype=np.float32):
        return np.array(list(values), dtype)

    return SamplingState(
        temperature=column(0.0 if s.greedy else s.temperature for s in samplings),
        top_k=column((min(s.top_k or vocab_size, vocab_size) for s in samplings), np.int32),
        top_p=column(s.top_p or 1.0 for s in samplings),
        log_min_p=column(math.log(s.min_p) if s.min_p else -math.inf for s in samplings),
        presence_penalty=column(s.presence_penalty for s in samplings),
        frequency_penalty=column(s.frequency_penalty for s in samplings),
        repetition_penalty=column(s.repetition_penalty for s in samplings),
        bias_ids=_padded([[token for token, _ in s.logit_bias] for s in samplings], vocab_size, np.int32, slots),
        bias_values=_padded([[value for _, value in s.logit_bias] for s in samplings], 0, np.float32, slots),
        stop_ids=_padded(stops, -1, np.int32, slots),
        seed=column(((seed >> 32, seed & 0xFFFFFFFF) for seed in seeds), np.uint32),
        ranked=column((s.ranked for s in samplings), bool),
        given_ids=_padded([s.logprob_token_ids for s in samplings], -1, np.int32, MAX_GIVEN),
        processed=column((s.processed_logprobs is not None for s in samplings), bool),
        counts=np.zeros((len(samplings), vocab_size), np.int32),
        in_prompt=in_prompt,
    )


def _padded(rows, fill, dtype, slots: int) -> np.ndarray:
    longest = max((len(row) for row in rows), default=0)
    width = slots if longest <= slots else 1 << (longest - 1).bit_length()
    out = np.full((len(rows), width), fill, dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
