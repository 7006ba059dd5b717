"""Memory and speed of a checkpoint that barely fits: load it with packed experts, feed a prompt, decode some tokens.

    python -m checkpoints.synthesize --preset=gpt-oss-20b --out=DIR
    python -m benchmarks.large --checkpoint=DIR

Runs in a process of its own, so that its peak resident memory is that of this work alone. Every shape is dispatched once before
it is timed; compilation counts towards the peak.
"""

import json
import os
import time

from absl import app, flags
import jax
import numpy as np

from benchmarks import child
from gptoss_jax.engine.device import decode
from gptoss_jax.engine.device.state import Blocks, init_state, make_rows, plain_orders
from gptoss_jax.model.cache import init_cache
from gptoss_jax.sampling import state as sampling_state
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.weights import loading

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Checkpoint directory.", required=True)
_EXPERTS = flags.DEFINE_enum("experts", "packed", ["auto", "packed", "tiled", "stacked", "split"], "How expert weights are held.")
_PROMPT = flags.DEFINE_integer("prompt", 256, "Tokens of the prompt, one dispatch.", lower_bound=1)
_NEW = flags.DEFINE_integer("new", 8, "Tokens decoded after it.", lower_bound=1)
_CONTEXT = flags.DEFINE_integer("context", 8192, "Positions that the cache has room for.", lower_bound=1)


def measure() -> dict:
    began = time.perf_counter()
    model = loading.load(_CHECKPOINT.value, experts=_EXPERTS.value, progress=False)
    load_seconds, load_peak = time.perf_counter() - began, child.peak_gb()
    params, config = model.params, model.config
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, (1, _PROMPT.value)).astype(np.int32)
    count, orders = np.full(1, _PROMPT.value, np.int32), plain_orders(1, _NEW.value, steps=_NEW.value, vocab_size=config.vocab_size)

    def start():
        options = Sampling(temperature=0, max_tokens=_NEW.value + 1, ignore_eos=True)
        state = sampling_state.stack([options], vocab_size=config.vocab_size)
        cache = init_cache(config, 1, _CONTEXT.value, chunk=_PROMPT.value, dtype=params.embedding.dtype)
        rows = make_rows(jax.device_get(state), _PROMPT.value, 0, _NEW.value)
        return decode.place(init_state(cache, state), np.zeros(1, np.int32), rows)

    def prefill(state):
        tables = (np.array(state.cache.full_table), np.array(state.cache.ring_table))
        blocks = Blocks(prompt, count, np.zeros(1, np.int32), *tables)
        return jax.block_until_ready(decode.read(params, config, state, blocks))[0]

    def steps(state):
        return jax.block_until_ready(decode.decode_chunk(params, config, state, orders, steps=_NEW.value))[1]

    steps(prefill(start()))
    state, prefill_seconds = _timed(prefill, start())
    chunk, decode_seconds = _timed(steps, state)
    if int(chunk.count[0]) != _NEW.value:
        raise RuntimeError(f"{_NEW.value} tokens must be decoded; got {int(chunk.count[0])}.")
    return {
        "parameter_gb": sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 1e9,
        "peak_gb_after_load": load_peak,
        "peak_gb": child.peak_gb(),
        "load_seconds": load_seconds,
        "prefill_tokens_per_second": _PROMPT.value / prefill_seconds,
        "seconds_per_token": decode_seconds / _NEW.value,
    }


def _timed(f, x):
    began = time.perf_counter()
    return f(x), time.perf_counter() - began


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if child.CHILD.value:
        print(json.dumps(measure()))
        return
    result = child.result("benchmarks.large")
    print(f"{_CHECKPOINT.value}: experts {_EXPERTS.value}, {len(os.sched_getaffinity(0))} threads, context {_CONTEXT.value:,}")
    print(f"resident memory  {result['peak_gb']:6.2f} GB at most, {result['parameter_gb']:.2f} GB of it parameters")
    print(f"load             {result['load_seconds']:6.1f} s, up to {result['peak_gb_after_load']:.2f} GB")
    print(f"prompt           {result['prefill_tokens_per_second']:6.1f} tokens/s ({_PROMPT.value} tokens)")
    print(f"decode           {result['seconds_per_token']:6.2f} s a token ({_NEW.value} tokens)")
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
