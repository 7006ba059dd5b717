"""Decode tokens a second: of the engine on a checkpoint, or of the whole model's steps on random weights of a true shape.

    python -m benchmarks.decode --checkpoint=DIR --batch=1,8 --prompt=64 --new=64
    python -m benchmarks.decode --checkpoint=DIR --peer_python=/path/to/python     # one that has torch and transformers
    python -m benchmarks.decode --preset=gpt-oss-20b --batch=1,64 --context=1024   # on a GPU

Greedy, through end-of-turn tokens. On a checkpoint, a run's time goes from the first token, which the prompt's dispatch draws, to the last
one; the engine's runs and the peer's alternate, on the same prompts and the same number of threads, so that a slow minute of the machine
slows both; the ratio is the median of the pairs' ratios. Prints a table, and a JSON line per batch.

With --preset, weights and the keys and values already in the cache are drawn on the device. Every run is one dispatch of --new steps, each
token the next step's input, up to the tokens' arrival on the host; the median of --repeats counts. First, though, logits are checked
(benchmarks/numerics.py), and what is wrong gets no speed. In the table: ms a step; the floor at the copy bandwidth and matrix rate measured
just before; outside, the part of the time in which the device had nothing to do; experts, how many different ones a layer read at the end,
beside what uniform routing, which the floor counts with, would read. The peer runs before, in a process of its own.
"""

from collections.abc import Callable
import functools
import json
import os
from pathlib import Path
import statistics
import subprocess
import time

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import device, numerics, random_model, whole_model
from benchmarks.whole_model import Benchmark, Point, Times
from gptoss_jax.config import Config
from gptoss_jax.engine.device import decode
from gptoss_jax.engine.device.state import State, plain_orders
from gptoss_jax.engine.engine import Engine
from gptoss_jax.engine.requests import Request
from gptoss_jax.model.params import Params
from gptoss_jax.model.transformer import prefill
from gptoss_jax.plan import floor
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.weights import loading

_PRESET_BATCHES, _TOKENS = (1, 4, 16, 64, 256), 1024
_CHECKPOINT_BATCHES, _PROMPT = (1, 8), 64
_PEER = Path(__file__).parent / "peers" / "transformers_decode.py"
_PAUSE = 0.5  # seconds between runs: worker threads of the side that just ran spin for a while before they sleep


def measure_engine(engine: Engine, prompts: list[list[int]], new: int) -> float:
    """Decode tokens a second of one run."""
    sampling = Sampling(temperature=0, max_tokens=new + 1, ignore_eos=True)
    first, tokens = None, 0
    for piece in engine.run([Request(prompt, sampling) for prompt in prompts]):
        first = first or time.perf_counter()
        tokens += len(piece.tokens)
    if tokens != len(prompts) * (new + 1):
        raise RuntimeError(f"every prompt must get {new + 1} tokens; got {tokens} for {len(prompts)}.")
    return len(prompts) * new / (time.perf_counter() - first)


class Peer:
    """benchmarks/peers/transformers_decode.py in a process of its own, asked for one run at a time."""

    def __init__(self, python: str, checkpoint: Path, threads: int):
        command = [python, str(_PEER), f"--checkpoint={checkpoint}", f"--threads={threads}", "--serve"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.versions = self._read()

    def measure(self, prompts: list[list[int]], new: int) -> dict:
        """One run's figures: tokens_per_second, and the settings that were quickest."""
        self._process.stdin.write(json.dumps({"tokens": prompts, "new": new}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended with status {self._process.wait()}; its message is above.")
        return json.loads(line)


def compare(ours: Callable[[], float], peer: Callable[[], dict] | None, repeats: int) -> dict:
    """Medians over alternating runs, after one of each that does not count (it compiles, and picks the peer's settings)."""
    ours()
    settings = peer() if peer else {}
    rates, peer_rates = [], []
    for _ in range(repeats):
        time.sleep(_PAUSE)
        rates.append(ours())
        if peer:
            time.sleep(_PAUSE)
            peer_rates.append(peer()["tokens_per_second"])
    result = {"tokens_per_second": statistics.median(rates)}
    if peer:
        ratios = [a / b for a, b in zip(rates, peer_rates, strict=True)]
        result |= {"peer_tokens_per_second": statistics.median(peer_rates), "ratio": statistics.median(ratios)}
        result |= {"ratio_least": min(ratios), "ratio_most": max(ratios), "peer": f"{settings['experts']}, {settings['loop']}"}
    return result


def measure_steps(params: Params, config: Config, point: Point, *, steps: int, repeats: int) -> Times:
    """Times of runs of decode steps, each run one dispatch that begins with `point.length` tokens in every row's cache."""
    cache = random_model.full_cache(config, point.batch, point.length, steps)
    state = random_model.state(config, cache, steps)
    orders = plain_orders(point.batch, steps, steps=steps, vocab_size=config.vocab_size)

    def rewound(state):
        start = jnp.full(point.batch, point.length, jnp.int32)
        fresh = {"remaining": jnp.full(point.batch, steps, jnp.int32), "done": jnp.zeros(point.batch, bool)}
        return jax.block_until_ready(state.replace(cache=state.cache.replace(length=start), **fresh))

    def run(state):
        began = time.perf_counter()
        state, chunk = decode.decode_chunk(params, config, state, orders, steps=steps)
        chunk = jax.device_get(chunk)
        taken = time.perf_counter() - began
        if np.any(chunk.count != steps) or not np.all(np.isfinite(chunk.sampled.logprobs)):
            raise RuntimeError(f"every row must get {steps} tokens of finite log-probability; got {chunk.count} tokens.")
        return state, taken

    seconds = []
    for _ in range(repeats + 2):  # the first compiles, the second may record what will be replayed
        state, taken = run(rewound(state))
        seconds.append(taken)
    experts, state = count_experts(params, config, state)
    state = rewound(state)
    busy = device.busy_seconds(lambda: decode.decode_chunk(params, config, state, orders, steps=steps))
    more = {"experts": experts, "uniform_experts": floor.expected_experts(config, point.batch)}
    return Times(seconds[2:], steps, point.batch * steps, busy, more)


def count_experts(params: Params, config: Config, state: State) -> tuple[float, State]:
    """How many different experts of a layer the rows' newest tokens are routed to, the mean over layers."""

    @functools.partial(jax.jit, donate_argnums=1)
    def choices(params, cache, tokens):
        chosen = {}
        every = jnp.ones(len(tokens), jnp.int32)
        hook = lambda name, value: chosen.setdefault(name, value) if name.endswith("moe.experts") else value
        _, cache = prefill(params, config, cache, tokens[:, None], every, hook=hook)
        return jnp.stack(list(chosen.values())), cache

    chosen, cache = choices(params, state.cache, state.token)
    return float(np.mean([len(np.unique(layer)) for layer in np.asarray(chosen)])), state.replace(cache=cache)


def whole(given: flags.FlagValues) -> int:
    """The benchmark on random weights. Returns the exit status."""
    points = [Point(batch, given.context or _TOKENS) for batch in _batches(given)]
    peer = {}
    if given.peer_python:
        arguments = [f"--batch={','.join(str(point.batch) for point in points)}", f"--prompt={points[0].length}", f"--new={given.new}"]
        arguments.append(f"--repeats={given.repeats}")
        peer = whole_model.run_peer(given.peer_python, _PEER.name, given.preset, arguments, "prompt")
    left_out = whole_model.without(given)
    benchmark = Benchmark(
        name="decode",
        length="context",
        check=lambda config, form, point: numerics.decode_check(config, form, point.batch, point.length, left_out),
        measure=functools.partial(measure_steps, steps=given.new, repeats=given.repeats),
        floor=lambda config, point, ceilings: floor.decode_seconds(config, point.batch, point.length, given.new, ceilings),
    )
    return whole_model.run(benchmark, given.preset, given.experts, points, peer, left_out)


def engine(given: flags.FlagValues, threads: int) -> None:
    """The benchmark on a checkpoint."""
    model = loading.load(given.checkpoint or "nano", experts=given.experts)
    peer = Peer(given.peer_python, loading.locate.checkpoint(given.checkpoint or "nano"), threads) if given.peer_python else None
    length, new = given.prompt or _PROMPT, given.new
    context = given.context or length + new + 1
    print(f"{model!r}\n{threads} threads, prompt {length}, {new} steps, context {context}, {device.about()}")
    print(f"beside {peer.versions}" if peer else "no peer", flush=True)
    print(f"{'batch':>5} {'tokens/s':>10} {'peer':>10} {'ratio':>7}  least  most  peer's settings")
    results = []
    for batch in _batches(given):
        runner = Engine(model.params, model.config, eos_token_ids=(), slots=batch, context=context)
        prompts = np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, length)).tolist()
        ask = (lambda prompts=prompts: peer.measure(prompts, new)) if peer else None
        result = compare(lambda: measure_engine(runner, prompts, new), ask, given.repeats)  # noqa: B023
        columns = f"{batch:5} {result['tokens_per_second']:10.1f}"
        if peer:
            columns += f" {result['peer_tokens_per_second']:10.1f} {result['ratio']:7.2f}"
            columns += f" {result['ratio_least']:6.2f} {result['ratio_most']:5.2f}  {result['peer']}"
        print(columns, flush=True)
        where = device.about() | {"threads": threads, "prompt": length, "new": new, "context": context}
        results.append({"batch": batch} | where | result)
    for result in results:
        print(json.dumps(result))
    if peer:
        peer.close()


def _batches(given: flags.FlagValues) -> list[int]:
    return [int(batch) for batch in given.batch or (_PRESET_BATCHES if given.preset else _CHECKPOINT_BATCHES)]


def define_flags(to: flags.FlagValues) -> None:
    """Adds this program's flags to a set of them."""
    whole_model.define_flags(to)
    flags.DEFINE_string("checkpoint", None, "Checkpoint directory; the default is 'nano', the bundled one.", to)
    flags.DEFINE_list("batch", None, f"Numbers of rows. [{_CHECKPOINT_BATCHES}; with --preset {_PRESET_BATCHES}]", to)
    flags.DEFINE_integer("prompt", None, f"Tokens of each prompt, without --preset. [{_PROMPT}]", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("new", 64, "Decode steps a run.", lower_bound=1, flag_values=to)
    context = f"Positions the engine's cache has room for [what a run needs]; with --preset, tokens already in the cache [{_TOKENS}]."
    flags.DEFINE_integer("context", None, context, lower_bound=1, flag_values=to)
    flags.DEFINE_integer("threads", None, "CPU cores for either side [all this process may use].", lower_bound=1, flag_values=to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if given.preset and (given.checkpoint or given.prompt):
        raise app.UsageError("with --preset, weights and the cache are random: give neither --checkpoint nor --prompt")
    if given.threads:  # before JAX counts the cores to make its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-given.threads :])
    if given.preset:
        return whole(given)
    engine(given, len(os.sched_getaffinity(0)))
    return 0


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
