"""Packed training batches of nano's conversations, made in a process of their own.

Batch number i depends on the seed and i alone, so that a resumed run sees what an uninterrupted one would have seen.
"""

from collections.abc import Iterator
import multiprocessing
import os
import random
from typing import NamedTuple

import numpy as np

from checkpoints import nano_conversations
from gptoss_jax.tokenizer import SentencePiece, Tokenizer


class Batch(NamedTuple):
    """Rows packed with conversations; all [rows, length]."""

    tokens: np.ndarray  # int32
    segments: np.ndarray  # int32, 0 is padding
    weights: np.ndarray  # float32, 1 where the next token is the assistant's to say


def batch(tokenizer: Tokenizer, seed: int, index: int, rows: int, length: int, split: str = "train") -> Batch:
    """Batch number `index`: conversations go where they fit most tightly, until sixteen in a row fit nowhere."""
    rng = random.Random(f"{seed} {split} {index}")
    packed = Batch(*(np.zeros((rows, length), kind) for kind in (np.int32, np.int32, np.float32)))
    used, count, misses = np.zeros(rows, int), np.zeros(rows, int), 0
    while misses < 16:
        example = nano_conversations.sample(rng, split)
        prompt, completion = tokenizer.encode_with_control(example.prompt), tokenizer.encode_with_control(example.completion)
        size = len(prompt) + len(completion)
        room = np.flatnonzero(used + size <= length)
        if not len(room):
            misses += 1
            continue
        row = room[np.argmax(used[room])]
        start, end = used[row], used[row] + size
        packed.tokens[row, start:end] = prompt + completion
        packed.segments[row, start:end] = count[row] + 1
        packed.weights[row, start + len(prompt) - 1 : end - 1] = 1
        used[row] = end
        count[row] += 1
    return packed


def _produce(queue: multiprocessing.Queue, vocabulary: str, seed: int, first: int, rows: int, length: int) -> None:
    """Fills the queue with batches first, first + 1, ... until the parent ends."""
    tokenizer, parent, index = SentencePiece(vocabulary), os.getppid(), first
    while os.getppid() == parent:
        queue.put(batch(tokenizer, seed, index, rows, length))
        index += 1


def stream(vocabulary: str, seed: int, first: int, rows: int, length: int) -> Iterator[Batch]:
    """Batches first, first + 1, ... from another process, which ends with this one.

    Args:
      vocabulary: path of the SentencePiece model.
      seed: of the whole run.
      first: number of the first batch: the step a run goes on from.
      rows: rows of a batch.
      length: tokens of a row.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue(64)
    context.Process(target=_produce, args=(queue, vocabulary, seed, first, rows, length), daemon=True).start()
    while True:
        yield queue.get(timeout=120)
