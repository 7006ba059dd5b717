"""Prompt tokens a second of the whole model on random weights of a true shape, made on the device.

    python -m benchmarks.prefill --preset=gpt-oss-20b --prompt=1024,8192 --chunk=8192

A run is a prompt of random ids, in dispatches of --chunk tokens, up to the arrival of the first drawn token on the host. As in
benchmarks/decode.py: logits are checked first, what is wrong gets no speed; the floor is at the copy bandwidth and the matrix rate measured
just before; a peer runs before, in a process of its own.
"""

import functools
import time

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import device, numerics, random_model, whole_model
from benchmarks.whole_model import Benchmark, Point, Times
from gptoss_jax.config import Config
from gptoss_jax.engine.device import decode
from gptoss_jax.engine.device.state import Blocks, plain_orders
from gptoss_jax.model.cache import init_cache
from gptoss_jax.model.params import Params
from gptoss_jax.plan import floor

_PEER = "transformers_prefill.py"


def measure_prompt(params: Params, config: Config, point: Point, *, chunk: int, repeats: int) -> Times:
    """Times of runs of a prompt of `point.length` tokens a row."""
    chunk = min(chunk, point.length)
    tokens = random_model.tokens(config, point.batch, point.length, seed=5)
    parts = [jax.block_until_ready(tokens[:, start : start + chunk]) for start in range(0, point.length, chunk)]
    counts = [jnp.full(point.batch, part.shape[1], jnp.int32) for part in parts]
    starts = [jnp.full(point.batch, start, jnp.int32) for start in range(0, point.length, chunk)]
    state = random_model.state(config, init_cache(config, point.batch, point.length + 1, chunk=chunk), 2)
    tables = (np.array(state.cache.full_table), np.array(state.cache.ring_table))  # the state's own are donated
    one = plain_orders(point.batch, 1, steps=1, vocab_size=config.vocab_size)

    def rewound(state):
        fresh = {"remaining": jnp.full(point.batch, 2, jnp.int32), "done": jnp.zeros(point.batch, bool)}
        length = jnp.full(point.batch, point.length, jnp.int32)  # of what will be read; the newest token comes behind
        return jax.block_until_ready(state.replace(cache=state.cache.replace(length=length), **fresh))

    def fed(state):
        for part, count, start in zip(parts, counts, starts, strict=True):
            state, _ = decode.read(params, config, state, Blocks(part, count, start, *tables))
        return decode.decode_chunk(params, config, state, one, steps=1)

    seconds = []
    for _ in range(repeats + 2):  # the first compiles, the second may record what will be replayed
        state = rewound(state)
        began = time.perf_counter()
        state, drawn = fed(state)
        drawn = jax.device_get(drawn)
        seconds.append(time.perf_counter() - began)
        if not np.all(np.isfinite(drawn.sampled.logprobs)):
            raise RuntimeError("the first token's log-probability is not finite.")
    state = rewound(state)
    return Times(seconds[2:], 1, point.batch * point.length, device.busy_seconds(lambda: fed(state)))


def define_flags(to: flags.FlagValues) -> None:
    """Adds this program's flags to a set of them."""
    whole_model.define_flags(to)
    flags.DEFINE_list("prompt", ["1024", "8192"], "Tokens of each prompt.", to)
    flags.DEFINE_integer("chunk", 8192, "Most prompt tokens a dispatch.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("batch", 1, "Prompts side by side.", lower_bound=1, flag_values=to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if not given.preset:
        raise app.UsageError("give --preset, the geometry of the model")
    points = [Point(given.batch, int(length)) for length in given.prompt]
    peer = {}
    if given.peer_python:
        arguments = [f"--batch={given.batch}", f"--prompt={','.join(given.prompt)}", f"--repeats={given.repeats}"]
        peer = whole_model.run_peer(given.peer_python, _PEER, given.preset, arguments, "prompt")
    left_out = whole_model.without(given)
    benchmark = Benchmark(
        name="prefill",
        length="prompt",
        check=lambda config, form, point: numerics.prefill_check(
            config, form, point.batch, point.length, min(given.chunk, point.length), left_out
        ),
        measure=functools.partial(measure_prompt, chunk=given.chunk, repeats=given.repeats),
        floor=lambda config, point, ceilings: floor.prefill_seconds(config, point.batch, point.length, given.chunk, ceilings),
    )
    return whole_model.run(benchmark, given.preset, given.experts, points, peer, left_out)


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
