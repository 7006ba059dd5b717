"""Stands in for an engine's programs: nothing is compiled, and what a row draws depends on all that its pages hold, and on the weights.

A page keeps the weights that wrote each position, so that a token drawn over keys of other weights, or over another's page, is another.
"""

import functools
import threading
import zlib

import numpy as np
from small_model import small_model

from gptoss_jax.engine import engine as engines
from gptoss_jax.engine.device.programs import Programs
from gptoss_jax.engine.device.state import Chunk
from gptoss_jax.engine.sizes import STEPS
from gptoss_jax.sampling.draw import Sampled

SLOTS, CONTEXT, PAGE = 3, 96, 16


class FakePrograms(Programs):
    """Programs whose weights are one number, `norm[0]`, and whose state is on the host."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.compiled = 0
        self.going, self.stands = threading.Event(), threading.Event()  # whether draws go on; whether one stands still
        self.going.set()
        self.stand_after: int | None = None  # so many draws
        self._mark = mark(self.params)

    @property
    def ready(self):
        return self._state is not None

    def _compile(self, progress):
        self.compiled += 1
        self.renew()

    def renew(self):
        self._state = {"pages": {}, "rows": [None] * self.sizes.slots}

    def drop(self):
        self._dropped, self._state = True, None

    def swap(self, new, version):
        version = super().swap(new, version)
        self._mark = mark(self.params)
        return version

    def read(self, tokens, count, start, full_table, ring_table, adapter):
        for row in np.flatnonzero(count):
            page = self._state["pages"][int(full_table[row, start[row] // self.sizes.page])] = {}
            page.update({i: (self._mark, int(token)) for i, token in enumerate(tokens[row, : count[row]])})

    def place(self, slot, sampling, seed, prompt, pauses, remaining, adapter=-1):
        row = {"length": len(prompt) - 1, "token": int(prompt[-1]), "left": remaining, "seed": seed, "waits": pauses is not None}
        self._state["rows"][slot] = row

    def draw(self, limit, full_table, ring_table, *, dropped, held, resumed, single, masked, allowed=None, forced=None):
        if self.stand_after is not None:
            if self.stand_after == 0:
                self.going.clear()
            self.stand_after = self.stand_after - 1 if self.stand_after else None
        if not self.going.is_set():
            self.stands.set()
            self.going.wait(60)
        rows, slots = self._state["rows"], self.sizes.slots
        tokens, count = np.zeros((slots, STEPS), np.int32), np.zeros(slots, np.int32)
        for slot, row in enumerate(rows):
            if dropped[slot]:
                rows[slot] = None
            if row is None or dropped[slot] or held[slot]:
                continue
            row["waits"] &= not resumed[slot]
            while count[slot] < limit and row["left"] > 0 and not row["waits"]:
                known = -1 if forced is None else int(forced[slot, count[slot]])
                tokens[slot, count[slot]] = self._step(row, full_table[slot], known)
                count[slot] += 1
                row["waits"] = bool(single[slot])
        done = np.array([row is None or row["left"] <= 0 for row in rows])
        waits = np.array([row is not None and row["waits"] for row in rows])
        no, none = np.zeros(slots, bool), np.zeros((slots, STEPS, 20))
        return Chunk(Sampled(tokens, tokens / 1000, none.astype(np.int32), none), count, done, no, waits, no)

    def _step(self, row, table, known):
        """The next token of a row, which the cache then has all before."""
        pages, at, size = self._state["pages"], row["length"], self.sizes.page
        pages.setdefault(int(table[at // size]), {})[at % size] = (self._mark, row["token"])
        seen = [pages[int(table[i // size])][i % size] for i in range(at + 1)]
        row["token"] = known if known >= 0 else token_after(seen, row["seed"])
        row["length"], row["left"] = at + 1, row["left"] - 1
        return row["token"]

    def fetch(self, results):
        return results


def mark(params):
    return float(np.asarray(params.norm)[0])


def token_after(seen, seed):
    return zlib.crc32(repr((seen, int(seed))).encode()) % 300


def continuation(weights, prompt, seed, count):
    """What weights of that mark draw, from nothing but the definition; as much as there is room for."""
    seen = [(float(weights), int(token)) for token in prompt]
    for _ in range(min(count, CONTEXT - len(prompt))):
        seen.append((float(weights), token_after(seen, seed)))
    return [token for _, token in seen[len(prompt) :]]


@functools.cache
def weights_of(number):
    """Parameters with that mark."""
    params = small_model().params
    return params.replace(norm=np.full(params.norm.shape, number, np.float32))


def make_fake(monkeypatch, **options):
    """An engine of such programs, its weights of mark 0."""
    monkeypatch.setattr(engines, "Programs", FakePrograms)
    model = small_model()
    options = {"slots": SLOTS, "context": CONTEXT, "chunk": 32, "page": PAGE} | options
    engine = engines.Engine(model.params, model.config, eos_token_ids=(319,), **options)
    engine.changes.update(weights_of(0), version=0)
    return engine
