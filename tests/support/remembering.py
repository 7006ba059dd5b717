"""A device that remembers: its pages hold tokens, and what a token is routed to, and what follows it, depends on all before it there.

It also depends on the version of the weights.
"""

import hashlib
from types import SimpleNamespace

import numpy as np

from gptoss_jax.engine.device.state import Chunk
from gptoss_jax.engine.sizes import STEPS, Sizes
from gptoss_jax.sampling.draw import Sampled

LAYERS, ACTIVE, EXPERTS, VOCABULARY = 2, 3, 32, 5


def experts_of(tokens, version: int = 0) -> np.ndarray:
    """Experts [len(tokens), L, A] of a sequence."""
    return np.array([_routed(tokens[: i + 1], version) for i in range(len(tokens))], np.uint8).reshape(-1, LAYERS, ACTIVE)


def following(tokens, version: int = 0) -> int:
    """The token that comes after a sequence."""
    return _digest(tokens, version)[-1] % VOCABULARY


def _routed(tokens, version: int) -> list[int]:
    return [byte % EXPERTS for byte in _digest(tokens, version)[: LAYERS * ACTIVE]]


def _digest(tokens, version: int) -> bytes:
    return hashlib.blake2b(np.asarray(tokens, np.int32).tobytes() + bytes([version]), digest_size=16).digest()


class Remembering:
    """Stands in for `Programs`, with routes. What a dispatch has found can be looked at by `fetch` alone."""

    partition, routed, ready, version, eos_token_ids = None, True, True, 0, ()

    def __init__(self, sizes: Sizes):
        self.config, self._page = SimpleNamespace(vocab_size=VOCABULARY), sizes.page
        self._memory = np.full((sizes.full_pages, sizes.page), -1, np.int32)
        self._length, self._token, self._left = (np.zeros(sizes.slots, np.int64) for _ in range(3))
        self._time = 0.0

    def read(self, tokens, count, start, full, ring, adapter):
        for row, end in enumerate(start + count):
            for position in range(start[row], end):
                self._write(full[row], position, tokens[row, position - start[row]])
        experts = np.zeros((*tokens.shape, LAYERS, ACTIVE), np.uint8)
        for row in np.flatnonzero(count):
            experts[row, : count[row]] = experts_of(self._seen(full[row], start[row] + count[row]), self.version)[start[row] :]
        return [experts]

    def place(self, slot, sampling, seed, prompt, pauses, remaining, adapter) -> None:
        self._length[slot], self._token[slot], self._left[slot] = len(prompt) - 1, prompt[-1], remaining

    def draw(self, limit, full, ring, *, dropped, held, resumed, single, masked, allowed, forced):
        slots = len(self._left)
        self._left[dropped] = 0
        tokens, count = np.zeros((slots, STEPS), np.int32), np.zeros(slots, np.int32)
        routes = np.zeros((slots, STEPS, LAYERS, ACTIVE), np.uint8)
        for slot in np.flatnonzero(np.where(held, 0, self._left)):
            for i in range(min(limit, self._left[slot])):
                self._write(full[slot], self._length[slot], self._token[slot])
                self._length[slot] += 1
                seen = self._seen(full[slot], self._length[slot])
                known = -1 if forced is None else forced[slot, i]
                routes[slot, i] = experts_of(seen, self.version)[-1]
                self._token[slot] = tokens[slot, i] = following(seen, self.version) if known < 0 else known
                count[slot] += 1
        self._left -= count
        no, zeros = np.zeros(slots, bool), np.zeros((slots, STEPS), np.float32)
        none = np.zeros((slots, STEPS, 0))
        return Chunk(Sampled(tokens, zeros, none, none), count, self._left == 0, no, no, no, routes)

    def fetch(self, results):
        chunk, experts = results
        return chunk, [one for [one] in experts]

    def swap(self, weights, version: int) -> int:
        self.version = version
        return version

    def now(self) -> float:
        self._time += 0.001
        return self._time

    def _write(self, table, position, token) -> None:
        self._memory[table[position // self._page], position % self._page] = token

    def _seen(self, table, length) -> np.ndarray:
        return self._memory[table].reshape(-1)[:length]
