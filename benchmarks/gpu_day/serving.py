"""The engine as a server's benchmark sees it: requests at once, of random ids, on random weights of a true shape.

    python -m benchmarks.gpu_day.serving --preset=gpt-oss-20b --concurrency=1,16,64 --input_len=1024 --output_len=128

Columns are those of `vllm bench`. TTFT: from asking to a request's first token. TPOT: from there to its last one, by token. Tokens of a
dispatch arrive together. Each concurrency has --repeats rounds, after one that does not count; percentiles are over the requests of all. A
JSON line each.
"""

from collections.abc import Sequence
import json
import time

from absl import app, flags
import numpy as np

from benchmarks import device, random_model, whole_model
from checkpoints.synthesize import PRESETS
from gptoss_jax.engine.engine import Engine
from gptoss_jax.engine.requests import Request
from gptoss_jax.sampling.options import Sampling

_PERCENTILES = (50, 99)


def figures(rounds: Sequence[Sequence[Sequence[float]]], seconds: Sequence[float], input_len: int) -> dict[str, float]:
    """Of rounds of requests, each the moments at which its tokens came, counted from the round's start, and the rounds' seconds."""
    requests = [moments for each in rounds for moments in each]
    first = np.array([moments[0] for moments in requests])
    each = np.array([(moments[-1] - moments[0]) / max(1, len(moments) - 1) for moments in requests])
    tokens, total = sum(map(len, requests)), sum(seconds)
    found = {"requests": len(requests), "seconds": total, "requests_per_second": len(requests) / total}
    found |= {"output_tokens_per_second": tokens / total, "total_tokens_per_second": (tokens + input_len * len(requests)) / total}
    for name, values in (("ttft_ms", first), ("tpot_ms", each)):
        found[f"mean_{name}"] = float(1e3 * values.mean())
        found |= {f"p{p}_{name}": float(1e3 * np.percentile(values, p)) for p in _PERCENTILES}
    return found


def one_round(engine: Engine, prompts: list[list[int]], new: int) -> tuple[list[list[float]], float]:
    """Moments of each request's tokens, and the seconds of all."""
    requests = [Request(prompt, Sampling(temperature=0, max_tokens=new, ignore_eos=True)) for prompt in prompts]
    moments: dict[int, list[float]] = {id(request): [] for request in requests}
    began = time.perf_counter()
    for piece in engine.run(requests):
        moments[id(piece.request)] += [time.perf_counter() - began] * len(piece.tokens)
    seconds = time.perf_counter() - began
    found = [moments[id(request)] for request in requests]
    if any(len(each) != new for each in found):
        raise RuntimeError(f"every request must get {new} tokens; got {sorted({len(each) for each in found})}.")
    return found, seconds


def define_flags(to: flags.FlagValues) -> None:
    """Adds this program's flags to a set of them."""
    flags.DEFINE_enum("preset", None, list(PRESETS), "Geometry of a model with random weights.", required=True, flag_values=to)
    flags.DEFINE_list("concurrency", ["1", "16", "64"], "Requests at once, and slots.", to)
    flags.DEFINE_integer("input_len", 1024, "Tokens of a prompt.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("output_len", 128, "Tokens of an answer.", lower_bound=2, flag_values=to)
    flags.DEFINE_integer("repeats", 2, "Rounds that count.", lower_bound=1, flag_values=to)
    whole_model.define_without(to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    config, without = PRESETS[given.preset], whole_model.without(given)
    form = random_model.form_here(config, without)
    params = random_model.params(config, form, 0, without)
    where = {"benchmark": "serving", "preset": given.preset, "experts_form": form, "without": ",".join(without)} | device.about()
    rng = np.random.default_rng(0)
    for concurrency in map(int, given.concurrency):
        context = given.input_len + given.output_len
        options = {"eos_token_ids": (), "slots": concurrency, "context": context, "prefix_reuse": False}
        engine = Engine(params, config, **options)
        engine.prepare()
        draw = lambda: rng.integers(0, config.vocab_size, (concurrency, given.input_len)).tolist()  # noqa: B023
        one_round(engine, draw(), given.output_len)
        rounds = [one_round(engine, draw(), given.output_len) for _ in range(given.repeats)]
        asked = {"concurrency": concurrency, "input_len": given.input_len, "output_len": given.output_len}
        found = figures([each for each, _ in rounds], [seconds for _, seconds in rounds], given.input_len)
        print(json.dumps(where | asked | found), flush=True)
        del engine
    return 0


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
