"""What it costs to look: a forward pass that keeps sites of every layer, beside one that keeps nothing, in alternating runs.

    python -m benchmarks.captures --checkpoint=DIR --batch=1,4 --tokens=256
    python -m benchmarks.captures --preset=gpt-oss-20b --layers=4      # random weights
    python -m benchmarks.captures --checkpoint=DIR --batch=1,8 --tokens=64 --generate=128

With --generate it is a generation of so many tokens after prompts of --tokens, whose requests have a hook (`gptoss_jax.capturing`), beside
one whose requests have none; programs are compiled before. A site that the model computes anyway costs what its copy costs; one on request
is computed beside it. Ratios are medians of pairs.
"""

from collections.abc import Callable, Iterator
import itertools
import json
import statistics
import time

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import device, random_model
from checkpoints.synthesize import PRESETS
from gptoss_jax.engine.hooks.hook import Hook, capturing
from gptoss_jax.llm.llm import LLM
from gptoss_jax.model.hooks import capture
from gptoss_jax.model.transformer import forward
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.weights import loading

KEPT = {
    "residual streams": ["layers.*.residual_post"],
    "residuals, routers, experts": ["layers.*.residual_*", "layers.*.moe.router_logits", "layers.*.moe.experts", "layers.*.moe.gates"],
    "every site of a pass": ["*"],
    "sink masses": ["layers.*.attention.sink_mass"],
    "patterns": ["layers.*.attention.pattern"],
}


def ratio(plain, looking, *args, pairs: int) -> float:
    """Median over pairs of runs of the time that `looking` takes, in times of `plain`."""

    def seconds(fn):
        began = time.perf_counter()
        jax.block_until_ready(fn(*args))
        return time.perf_counter() - began

    for fn in (plain, looking):
        seconds(fn)  # compiles, or warms up
    return statistics.median(seconds(looking) / seconds(plain) for _ in range(pairs))


DRAWN = {
    "residual streams": capturing("layers.*.residual_post"),
    "residual streams of what is drawn": capturing("layers.*.residual_post", tokens="generated"),
    "residuals, routers, experts": capturing(KEPT["residuals, routers, experts"]),
}


def generating(llm: LLM, tokens: np.ndarray, count: int, first: Iterator[int], hook: Hook | None) -> Callable[[], None]:
    """A generation of `count` tokens after each row of tokens, which has another first id each time: no kept prefix is met."""

    def run() -> None:
        prompts = [[next(first) % llm.model.config.vocab_size, *row] for row in tokens[:, 1:].tolist()]
        llm.generate(prompts, Sampling(temperature=0, max_tokens=count, ignore_eos=True), hook=hook)

    return run


def define_flags(to: flags.FlagValues) -> None:
    """Adds this program's flags to a set of them."""
    flags.DEFINE_string("checkpoint", None, "A checkpoint directory, or 'nano'.", to)
    flags.DEFINE_enum("preset", None, list(PRESETS), "Random weights of this shape instead.", to)
    flags.DEFINE_integer("layers", 4, "With --preset: so many of its layers.", lower_bound=1, flag_values=to)
    flags.DEFINE_list("batch", ["1"], "Numbers of rows.", to)
    flags.DEFINE_integer("tokens", 256, "Tokens of a row.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("generate", 0, "Tokens to draw; 0 for a forward pass.", lower_bound=0, flag_values=to)
    flags.DEFINE_integer("pairs", 7, "Pairs of runs.", lower_bound=1, flag_values=to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if (given.checkpoint is None) == (given.preset is None):
        raise app.UsageError("give either --checkpoint or --preset")
    if given.preset:
        config = random_model.first_layers(PRESETS[given.preset], given.layers)
        params = random_model.params(config, random_model.form_here(config))
    else:
        model = loading.load(given.checkpoint, progress=False)
        config, params = model.config, model.params
    call = lambda fn: jax.jit(lambda params, tokens: fn(params, config, tokens))
    results, first = [], itertools.count()
    print(f"time of a {'generation' if given.generate else 'pass'} that keeps sites, in times of one that keeps none")
    for batch in map(int, given.batch):
        tokens = np.random.default_rng(0).integers(0, config.vocab_size, (batch, given.tokens), np.int32)
        if given.generate:
            llm = LLM(loading.Model(config, params, None), slots=batch, context=given.tokens + given.generate)
            run = lambda hook, llm=llm, tokens=tokens: generating(llm, tokens, given.generate, first, hook)
            pairs, arguments = {name: (run(None), run(hook)) for name, hook in DRAWN.items()}, ()
        else:
            pairs, arguments = (
                {name: (call(forward), call(capture(forward, sites))) for name, sites in KEPT.items()},
                (params, jnp.asarray(tokens)),
            )
        for name, pair in pairs.items():
            times = ratio(*pair, *arguments, pairs=given.pairs)
            print(f"batch {batch:3}  {name:34} {times:.3f}", flush=True)
            asked = {"batch": batch, "tokens": given.tokens, "generate": given.generate}
            results.append(asked | {"kept": name, "ratio": times} | device.about())
    for result in results:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
