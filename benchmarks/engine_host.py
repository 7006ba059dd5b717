"""What the engine's host side costs a request: everything but the device, in whose place arrays are made up.

    python -m benchmarks.engine_host --requests=2000

Requests, scheduling, pages, prefixes, orders, pieces and text are the real ones. Reported is the time a request, at tokens a request as
given, and how memory grew between the first and the last tenth of the requests.
"""

import time
from typing import Any

from absl import app, flags
import numpy as np

from benchmarks import child
import gptoss_jax as gj
from gptoss_jax.engine.device.programs import Programs
from gptoss_jax.engine.device.state import Chunk
from gptoss_jax.engine.sizes import STEPS
from gptoss_jax.sampling.draw import Sampled
from gptoss_jax.sampling.options import MAX_LOGPROBS


class NoDevice:
    """Stands in for an engine's `Programs`, which are never compiled: every token is the same, and rows end when their budget does."""

    def __init__(self, programs: Programs, slots: int):
        self._programs = programs
        self._left = np.zeros(slots, np.int64)
        self.eos_token_ids = ()
        shape = (slots, STEPS)
        self._sampled = Sampled(
            tokens=np.full(shape, 65, np.int32),
            logprobs=np.full(shape, -1.0, np.float32),
            top_tokens=np.zeros((*shape, MAX_LOGPROBS), np.int32),
            top_logprobs=np.zeros((*shape, MAX_LOGPROBS), np.float32),
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._programs, name)

    ready = True

    def prepare(self, *, progress: bool = False) -> None: ...

    def read(self, *blocks) -> None: ...

    def place(self, slot, sampling, seed, prompt, pauses, remaining, adapter) -> None:
        self._left[slot] = remaining

    def draw(self, limit, full_table, ring_table, *, dropped, held, resumed, single, masked, allowed, forced) -> Chunk:
        self._left[dropped] = 0
        count = np.minimum(np.where(held, 0, self._left), limit)
        self._left -= count
        no = np.zeros(len(count), bool)
        return Chunk(self._sampled, count, self._left == 0, no, no, no)

    def fetch(self, results):
        return results

    def now(self) -> float:
        return time.monotonic()


def define_flags(to: flags.FlagValues) -> None:
    flags.DEFINE_integer("requests", 2000, "How many.", lower_bound=20, flag_values=to)
    flags.DEFINE_integer("slots", 64, "Of the engine.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("tokens", 128, "Of each answer.", lower_bound=1, flag_values=to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    llm = gj.LLM("nano", slots=given.slots, context=1024)
    llm.engine.programs = llm.engine._rounds.programs = llm.engine._rounds._steps.programs = NoDevice(llm.engine.programs, given.slots)
    sampling = gj.Sampling(max_tokens=given.tokens, seed=1, ignore_eos=True)
    rng = np.random.default_rng(0)
    questions = (f"What is {a} + {b}?" for a, b in rng.integers(10, 99, (given.requests, 2)).tolist())
    began, first, done = time.perf_counter(), 0.0, 0
    for outcome in llm.run(gj.Task(messages=question, sampling=sampling) for question in questions):
        if outcome.error:
            raise RuntimeError(outcome.error)
        done += 1
        if done == given.requests // 10:
            first = child.peak_gb()
    seconds = time.perf_counter() - began
    print(
        f"{done:,} requests of {given.tokens} tokens in {given.slots} slots: {1e3 * seconds / done:.2f} ms of the host a request; "
        f"peak memory {child.peak_gb():.3f} GB, {1e3 * (child.peak_gb() - first):.1f} MB of it since the first tenth"
    )
    return 0


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
