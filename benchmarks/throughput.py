"""Offline throughput: how long many requests take until the last one is answered, as vLLM's benchmark_throughput counts it.

    python -m benchmarks.throughput --checkpoint=DIR --requests=64 --input_len=32-512 --output_len=16-256 --slots=64
    python -m benchmarks.throughput --checkpoint=DIR --peer_python=/path/to/python  # one that has torch and transformers
    python -m benchmarks.throughput --checkpoint=DIR --shared_prefix=1000 --input_len=30 --output_len=4 --reuse=both

Prompts are random ids; lengths of prompts and answers are uniform, by --seed; --shared_prefix tokens are the same in all prompts and come
first. Decoding is greedy, through end-of-turn tokens. The time goes from the first request to the last token; compiling and loading come
before. Each run has an engine of its own, so that no prefix is known from the run before. With a finite --rate, requests come one by one,
after exponential waits, each in a thread; the time then holds these waits.

The peer is Hugging Face transformers' `generate` on padded batches of --peer_batch rows, in the order given and, for it to be at its best,
sorted by the length of the answers (--peer_order). A batch runs to its longest answer; only tokens that were asked for count. Which experts
implementation is quickest is tried before. Every run of the peer follows one of ours, on the same requests and cores; ratios are those of
such pairs, and the setting that counts is the one with the least ratio. Prints a line per run, then JSON.
"""

from concurrent.futures import ThreadPoolExecutor
import dataclasses
import json
import os
from pathlib import Path
import statistics
import subprocess
import time

from absl import app, flags
import numpy as np

_PEER = Path(__file__).parent / "peers" / "transformers_throughput.py"
_PAUSE = 0.5  # seconds between runs: worker threads of the side that just ran spin for a while before they sleep


@dataclasses.dataclass(frozen=True)
class Work:
    """What is asked: prompts, and how many tokens each one's answer has."""

    prompts: list[list[int]]
    new: list[int]

    @property
    def context(self) -> int:
        return max(len(prompt) + new for prompt, new in zip(self.prompts, self.new, strict=True))


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the engine; `tokens` are the answers, in the order of the prompts."""

    seconds: float
    tokens: list[list[int]]
    occupancy: float
    computed: int
    reused: int
    preemptions: int


def draw(count: int, input_len: tuple[int, int], output_len: tuple[int, int], shared: int, vocab_size: int, seed: int) -> Work:
    """Requests with uniform lengths, both bounds included; every prompt begins with the same `shared` tokens."""
    rng = np.random.default_rng(seed)
    prefix = rng.integers(0, vocab_size, shared).tolist()
    own = rng.integers(input_len[0], input_len[1], count, endpoint=True)
    new = rng.integers(output_len[0], output_len[1], count, endpoint=True)
    return Work([prefix + rng.integers(0, vocab_size, n).tolist() for n in own], new.tolist())


def measure(
    model, work: Work, *, slots: int, chunk: int, reuse: bool, context: int | None = None, rate: float = float("inf"), seed: int = 0
) -> Run:
    """One run of a new engine, whose programs are compiled before.

    Args:
      model: has `params` and `config`.
      slots, chunk, reuse, context: of the engine; the context is what the requests need, unless it is given.
      rate: requests a second; they all are there at once where it is infinite.
      seed: of the waits between requests.
    """
    from gptoss_jax.engine.engine import Engine
    from gptoss_jax.engine.requests import Request
    from gptoss_jax.sampling.options import Sampling

    options = {"slots": slots, "context": context or work.context, "chunk": chunk, "prefix_reuse": reuse}
    engine = Engine(model.params, model.config, eos_token_ids=(), **options)
    engine.prepare()
    sampling = lambda new: Sampling(temperature=0, max_tokens=new, ignore_eos=True)
    requests = [Request(prompt, sampling(new)) for prompt, new in zip(work.prompts, work.new, strict=True)]
    tokens = {id(request): [] for request in requests}

    def take(some: list[Request]) -> None:
        for piece in engine.run(some):
            tokens[id(piece.request)] += piece.tokens

    def take_at(moment: float, request: Request) -> None:
        time.sleep(max(0.0, moment - time.perf_counter()))
        take([request])

    began = time.perf_counter()
    if rate == float("inf"):
        take(requests)
    else:  # not one iterator that waits: the engine would stand still with it
        moments = began + np.random.default_rng(seed).exponential(1 / rate, len(requests)).cumsum()
        with ThreadPoolExecutor(len(requests)) as pool:
            list(pool.map(take_at, moments, requests))
    seconds = time.perf_counter() - began
    if [len(tokens[id(request)]) for request in requests] != work.new:
        raise RuntimeError("every request must get the tokens that it asked for; some got more or fewer.")
    stats = engine.stats
    answers = [tokens[id(request)] for request in requests]
    return Run(seconds, answers, stats.occupancy, stats.computed, stats.reused, stats.preemptions)


def rates(work: Work, seconds: float) -> dict[str, float]:
    """Tokens and requests a second; padding and what nobody asked for do not count."""
    new, total = sum(work.new), sum(work.new) + sum(map(len, work.prompts))
    figures = {"output_tokens_per_second": new, "total_tokens_per_second": total, "requests_per_second": len(work.new)}
    return {"seconds": seconds} | {name: count / seconds for name, count in figures.items()}


def open_peer(python: str, checkpoint: Path, threads: int):
    """benchmarks/peers/transformers_throughput.py in a process of its own, which has been asked nothing yet."""
    from benchmarks import decode

    class Peer(decode.Peer):
        def __init__(self):
            command = [python, str(_PEER), f"--checkpoint={checkpoint}", f"--threads={threads}"]
            environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._process = subprocess.Popen(command, text=True, env=environment, **pipes)
            self.versions = self._read()

        def measure(self, work: Work, rows: int, order: str) -> dict:
            """Seconds of a run, how many steps of a row it took, and the experts implementation."""
            self._process.stdin.write(json.dumps(dataclasses.asdict(work) | {"rows": rows, "order": order}) + "\n")
            self._process.stdin.flush()
            return self._read()

    return Peer()


def compare(model, work: Work, peer, settings: list[tuple[int, str]], repeats: int, **options) -> list[dict]:
    """A result for each of the peer's settings, from runs in turn: ours, the peer's, ours, and so on; one with no peer."""
    show = lambda name, figures, more="": print(
        f"{name:24} {figures['seconds']:8.1f} s {figures['output_tokens_per_second']:9.1f} {figures['total_tokens_per_second']:9.1f}"
        f" {figures['requests_per_second']:8.2f}  {more}",
        flush=True,
    )
    print(f"{'':24} {'':8}   {'output/s':>9} {'total/s':>9} {'req./s':>8}")
    first = Work(work.prompts[:2], [2] * len(work.prompts[:2]))
    measure(model, first, context=work.context, **options)  # warms up, as the peer's trials do
    ours, theirs = {}, {}
    for _ in range(repeats):
        for setting in settings or [None]:
            time.sleep(_PAUSE)
            run = measure(model, work, **options)
            ours.setdefault(setting, []).append(run)
            about = f"occupancy {run.occupancy:.3f}, prompt tokens computed {run.computed:,}, reused {run.reused:,}"
            show(f"ours, {options['slots']} slots", rates(work, run.seconds), about)
            if setting is not None:
                time.sleep(_PAUSE)
                theirs.setdefault(setting, []).append(peer.measure(work, *setting))
                last = theirs[setting][-1]
                more = f"ratio {last['seconds'] / run.seconds:.2f}; {last['experts']}, {last['row_steps']:,} steps of rows"
                show(f"peer, {setting[0]} rows, {setting[1]}", rates(work, last["seconds"]), more)
    results = []
    for setting, runs in ours.items():
        result = rates(work, statistics.median(run.seconds for run in runs))
        result |= {name: getattr(runs[-1], name) for name in ("occupancy", "computed", "reused", "preemptions")}
        if setting is not None:
            peers = [run["seconds"] for run in theirs[setting]]
            ratios = [b / a.seconds for a, b in zip(runs, peers, strict=True)]
            result |= {f"peer_{name}": value for name, value in rates(work, statistics.median(peers)).items()}
            result |= {"ratio": statistics.median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios)}
            result |= {"peer_batch": setting[0], "peer_order": setting[1], "peer_experts": theirs[setting][-1]["experts"]}
        results.append(result)
    return results


def compare_reuse(model, work: Work, **options) -> dict:
    """Prompt tokens that are computed with and without kept prefixes, and the time of both.

    Raises:
      RuntimeError: the answers differ.
    """
    without, kept = (measure(model, work, reuse=reuse, **options) for reuse in (False, True))
    if without.tokens != kept.tokens:
        raise RuntimeError("answers must not depend on whether prefixes are kept; some differ.")
    result = {"computed_without": without.computed, "computed": kept.computed, "reused": kept.reused}
    result |= {"computed_ratio": without.computed / kept.computed, "seconds_without": without.seconds} | rates(work, kept.seconds)
    print(f"prompt tokens computed: {without.computed:,} without kept prefixes, {kept.computed:,} with them", end="")
    print(f" ({result['computed_ratio']:.1f} times less); reused {kept.reused:,}; the same answers")
    print(
        f"{without.seconds:.1f} s without, {kept.seconds:.1f} s with them ({without.seconds / kept.seconds:.2f} times faster)", flush=True
    )
    return result


def span(text: str) -> tuple[int, int]:
    """Bounds of "32-512", or of "32", which is both.

    Raises:
      ValueError: the text is neither.
    """
    low, _, high = text.partition("-")
    bounds = int(low), int(high or low)
    if not 1 <= bounds[0] <= bounds[1]:
        raise ValueError(f"lengths must be like 32-512, at least 1; got {text!r}.")
    return bounds


def define_flags(to: flags.FlagValues) -> None:
    """Adds this program's flags to a set of them."""
    from checkpoints.synthesize import PRESETS

    flags.DEFINE_string("checkpoint", None, "Checkpoint directory. ['nano', the bundled one]", to)
    flags.DEFINE_enum("preset", None, list(PRESETS), "Random weights of this shape instead; without the peer.", to)
    flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of the checkpoint's weights.", to)
    flags.DEFINE_string("experts", "auto", "Form of the experts; see gptoss_jax.load.", to)
    flags.DEFINE_integer("requests", 64, "How many.", lower_bound=1, flag_values=to)
    flags.DEFINE_string("input_len", "32-512", "Tokens of a prompt, besides those that are shared.", to)
    flags.DEFINE_string("output_len", "16-256", "Tokens of an answer.", to)
    flags.DEFINE_integer("shared_prefix", 0, "Tokens that all prompts begin with.", lower_bound=0, flag_values=to)
    flags.DEFINE_integer("seed", 0, "Of lengths, prompts and waits.", flag_values=to)
    flags.DEFINE_float("rate", float("inf"), "Requests a second.", lower_bound=1e-6, flag_values=to)
    flags.DEFINE_integer("slots", 64, "Requests that decode side by side.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("chunk", 512, "Prompt tokens a dispatch.", lower_bound=1, flag_values=to)
    flags.DEFINE_enum("reuse", "on", ["on", "off", "both"], "Keep prefixes; 'both' compares, and checks that answers are the same.", to)
    flags.DEFINE_integer("repeats", 1, "Runs of each side for every setting of the peer.", lower_bound=1, flag_values=to)
    flags.DEFINE_string("peer_python", None, "A Python with torch, transformers and absl-py; the peer does not run without.", to)
    flags.DEFINE_list("peer_batch", ["8", "16"], "Rows of the peer's batches, each tried.", to)
    flags.DEFINE_list("peer_order", ["sorted", "given"], "Orders of the peer's requests, each tried.", to)
    flags.DEFINE_integer("threads", None, "CPU cores for either side [all this process may use].", lower_bound=1, flag_values=to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if given.preset and (given.checkpoint or given.peer_python):
        raise app.UsageError("with --preset, weights are random: give neither --checkpoint nor --peer_python")
    if given.peer_python and (given.reuse == "both" or given.rate != float("inf")):
        raise app.UsageError("the peer keeps no prefixes and takes all requests at once: give neither --reuse=both nor --rate beside it")
    if given.threads:  # before JAX counts the cores to make its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-given.threads :])
    threads = len(os.sched_getaffinity(0))

    from benchmarks import device, random_model
    from checkpoints.synthesize import PRESETS
    from gptoss_jax.weights import loading

    if given.preset:
        config = PRESETS[given.preset]
        params = random_model.params(config, "packed" if given.experts == "auto" else given.experts)
        model = loading.Model(config, params, None)
    else:
        model = loading.load(given.checkpoint or "nano", dtype=given.dtype, experts=given.experts, progress=False)
    lengths = span(given.input_len), span(given.output_len)
    work = draw(given.requests, *lengths, given.shared_prefix, model.config.vocab_size, given.seed)
    options = {"slots": given.slots, "chunk": given.chunk, "rate": given.rate, "seed": given.seed}
    about = device.about() | {"threads": threads, "requests": given.requests, "input_len": given.input_len, "output_len": given.output_len}
    about |= {"shared_prefix": given.shared_prefix, "slots": given.slots, "chunk": given.chunk, "rate": str(given.rate)}
    about |= {"prompt_tokens": sum(map(len, work.prompts)), "output_tokens": sum(work.new), "context": work.context}
    print(f"{model!r}\n{', '.join(f'{name} {value}' for name, value in about.items())}", flush=True)
    if given.reuse == "both":
        results = [compare_reuse(model, work, **options)]
    else:
        peer, settings = None, []
        if given.peer_python:
            peer = open_peer(given.peer_python, loading.locate.checkpoint(given.checkpoint or "nano"), threads)
            settings = [(int(rows), order) for rows in given.peer_batch for order in given.peer_order]
            about["peer"] = peer.versions
            print(f"beside {peer.versions}", flush=True)
        results = compare(model, work, peer, settings, given.repeats, reuse=given.reuse == "on", **options)
        if peer:
            peer.close()
            results.sort(key=lambda result: result["ratio"])
            best = results[0]
            print(f"ratio {best['ratio']:.2f} ({best['ratio_least']:.2f}-{best['ratio_most']:.2f}) to the peer's best: ", end="")
            print(f"{best['peer_batch']} rows, {best['peer_order']}, {best['peer_experts']}")
    for result in results:
        print(json.dumps(about | result))
    return 0


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
