"""Decode tokens a second of the engine on one checkpoint, beside Hugging Face transformers where an interpreter has it.

    python -m benchmarks.decode --checkpoint=DIR --batch=1,8 --prompt=64 --new=64
    python -m benchmarks.decode --checkpoint=DIR --peer_python=/path/to/python     # one that has torch and transformers

Greedy, through end-of-turn tokens. A run's time goes from the first token, which the prompt's dispatch draws, to the last one.
The engine's runs and the peer's alternate, on the same prompts and the same number of threads, so that a slow minute of the
machine slows both; the ratio is the median of the pairs' ratios. Prints a table, then a JSON line per batch.
"""

from collections.abc import Callable
import json
import os
from pathlib import Path
import statistics
import subprocess
import time

from absl import app, flags
import jax
import numpy as np

from gptoss_jax import weights
from gptoss_jax.engine import Engine, Request
from gptoss_jax.sampling import Sampling

_CHECKPOINT = flags.DEFINE_string("checkpoint", "nano", "Checkpoint directory, or 'nano', the bundled one.")
_BATCH = flags.DEFINE_list("batch", ["1", "8"], "Numbers of rows.")
_PROMPT = flags.DEFINE_integer("prompt", 64, "Tokens of each prompt.", lower_bound=1)
_NEW = flags.DEFINE_integer("new", 64, "Decode steps a run.", lower_bound=1)
_CONTEXT = flags.DEFINE_integer("context", None, "Positions that the engine's cache has room for; the default is what a run needs.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Runs of each side.", lower_bound=1)
_THREADS = flags.DEFINE_integer("threads", None, "CPU cores for either side; the default is all that this process may use.", lower_bound=1)
_EXPERTS = flags.DEFINE_enum("experts", "auto", ["auto", "packed", "stacked", "split"], "How the engine holds expert weights.")
_PEER_PYTHON = flags.DEFINE_string("peer_python", None, "Interpreter with torch and transformers to measure beside.")

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


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _THREADS.value:  # before JAX counts the cores to make its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-_THREADS.value :])
    threads = len(os.sched_getaffinity(0))
    model = weights.load(_CHECKPOINT.value, experts=_EXPERTS.value)
    peer = None
    if _PEER_PYTHON.value:
        peer = Peer(_PEER_PYTHON.value, weights.locate.checkpoint(_CHECKPOINT.value), threads)
    context = _CONTEXT.value or _PROMPT.value + _NEW.value + 1
    print(f"{model!r}\n{threads} threads, prompt {_PROMPT.value}, {_NEW.value} steps, context {context}, jax {jax.__version__}")
    print(f"beside {peer.versions}" if peer else "no peer", flush=True)
    print(f"{'batch':>5} {'tokens/s':>10} {'peer':>10} {'ratio':>7}  least  most  peer's settings")
    results = []
    for batch in map(int, _BATCH.value):
        engine = Engine(model.params, model.config, eos_token_ids=(), slots=batch, context=context)
        prompts = np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, _PROMPT.value)).tolist()
        ask = (lambda prompts=prompts: peer.measure(prompts, _NEW.value)) if peer else None
        result = compare(lambda: measure_engine(engine, prompts, _NEW.value), ask, _REPEATS.value)  # noqa: B023
        columns = f"{batch:5} {result['tokens_per_second']:10.1f}"
        if peer:
            columns += f" {result['peer_tokens_per_second']:10.1f} {result['ratio']:7.2f}"
            columns += f" {result['ratio_least']:6.2f} {result['ratio_most']:5.2f}  {result['peer']}"
        print(columns, flush=True)
        results.append({"batch": batch, "threads": threads, "prompt": _PROMPT.value, "new": _NEW.value, "context": context} | result)
    for result in results:
        print(json.dumps(result))
    if peer:
        peer.close()


if __name__ == "__main__":
    app.run(main)
