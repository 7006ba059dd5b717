"""A load on any server that speaks OpenAI's protocol, as `vllm bench serve` makes it, with its columns: ours and any peer's alike.

    python -m benchmarks.serving --base_url=http://127.0.0.1:8000/v1 --num_prompts=200 --request_rate=8 --random_output_len=64
    python -m benchmarks.serving --base_url=... --endpoint=responses --max_concurrency=16 --goodput=ttft:500 --goodput=tpot:50
    python -m benchmarks.serving --base_url=... --dataset=ShareGPT_V3.json --seed=1 --json=out.json

Prompts are random words or those of a file. Requests come at --request_rate, after waits that are gamma distributed (--burstiness), or all
at once. --ignore_eos has answers run to their full length where the server knows the field. A chunk counts where it has text: a first one
that names a role only does not. Tokens are those that the server counts. Prints a table, then a line of JSON. Exits with 1 where a request
failed. A key for the server is taken from OPENAI_API_KEY.
"""

import asyncio
import json
import math
import os
from pathlib import Path
import sys
import time

from absl import app, flags

from benchmarks.load import asking, figures, work
from benchmarks.load.wire import Server


def define_flags(to: flags.FlagValues) -> None:
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    text("base_url", "http://127.0.0.1:8000/v1", "Where the server is, the version included.", flag_values=to)
    text("model", None, "What to ask for; by default the first that the server names.", flag_values=to)
    flags.DEFINE_enum("endpoint", "chat", list(work.PATHS), "How to ask.", flag_values=to)
    number("num_prompts", 100, "How many.", lower_bound=1, flag_values=to)
    flags.DEFINE_float("request_rate", math.inf, "Requests a second; inf for all at once.", flag_values=to)
    flags.DEFINE_float("burstiness", 1.0, "1: a Poisson process; less: burstier; inf: even.", flag_values=to)
    number("max_concurrency", None, "Most requests under way.", lower_bound=1, flag_values=to)
    number("random_input_len", 200, "Words of a prompt, in the mean.", lower_bound=1, flag_values=to)
    number("random_output_len", 64, "Tokens of an answer, in the mean; of a dataset, in place of its own.", lower_bound=1, flag_values=to)
    flags.DEFINE_float("random_range_ratio", 0.0, "Lengths lie within this share of the mean.", 0.0, 0.999, flag_values=to)
    number("random_prefix_len", 0, "Words more, the same in all prompts.", lower_bound=0, flag_values=to)
    text("dataset", None, "A file of prompts: lines of JSON, or ShareGPT's.", flag_values=to)
    number("seed", 0, "Of lengths, words, order and waits.", flag_values=to)
    flags.DEFINE_bool("ignore_eos", False, "Ask for answers of full length.", flag_values=to)
    text("extra_body", None, "A JSON object of further fields for every request.", flag_values=to)
    flags.DEFINE_multi_string("goodput", [], "Most milliseconds of a good request: ttft:500, tpot:50, e2el:3000.", flag_values=to)
    flags.DEFINE_multi_float("percentiles", [99.0], "To be shown.", 0, 100, flag_values=to)
    text("json", None, "Where to write the figures too, with the times of every request.", flag_values=to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if not given.request_rate > 0 or not given.burstiness > 0:
        raise app.UsageError("--request_rate and --burstiness must be above 0; pass inf for all at once, and for even waits.")
    try:
        goodput = figures.limits(given.goodput)
        server, more = Server(given.base_url, os.environ.get("OPENAI_API_KEY")), _more(given)
        prompts = _prompts(given)
        model = given.model or asyncio.run(asking.first_model(server))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    moments = work.arrivals(len(prompts), given.request_rate, given.burstiness, given.seed)
    options = {"model": model, "more": more, "max_concurrency": given.max_concurrency}
    timings, seconds = asyncio.run(asking.load(server, given.endpoint, prompts, moments, **options))
    found = figures.figures(timings, seconds, goodput=goodput, percentiles=given.percentiles)
    print(figures.table(found, given.percentiles))
    for error in sorted({one.error for one in timings if one.error})[:10]:
        print(f"failed: {error}", file=sys.stderr)
    names = ("endpoint", "num_prompts", "request_rate", "burstiness", "max_concurrency", "seed")
    asked = {name: getattr(given, name) for name in names} | {"request_rate": str(given.request_rate), "burstiness": str(given.burstiness)}
    result = {"date": time.strftime("%Y-%m-%d"), "base_url": given.base_url, "model": model, **asked, **found}
    print(json.dumps(result))
    if given.json:
        each = {"ttfts": [one.ttft if one.arrivals else None for one in timings], "itls": [one.itl for one in timings]}
        each |= {"output_lens": [one.tokens for one in timings], "errors": [one.error for one in timings]}
        Path(given.json).write_text(json.dumps(result | each) + "\n", encoding="utf-8")
    return 1 if found["failed"] else 0


def _prompts(given: flags.FlagValues) -> list[work.Prompt]:
    if given.dataset:
        most = given.random_output_len if given["random_output_len"].present else None
        return work.read_prompts(Path(given.dataset), given.num_prompts, output_len=most, seed=given.seed)
    sizes = {"input_len": given.random_input_len, "output_len": given.random_output_len, "range_ratio": given.random_range_ratio}
    return work.random_prompts(given.num_prompts, **sizes, prefix_len=given.random_prefix_len, seed=given.seed)


def _more(given: flags.FlagValues) -> dict:
    more = json.loads(given.extra_body) if given.extra_body else {}
    if not isinstance(more, dict):
        raise ValueError(f"--extra_body must be a JSON object; got {given.extra_body[:100]}.")
    return ({"ignore_eos": True} if given.ignore_eos else {}) | more


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
