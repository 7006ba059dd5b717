"""What it costs to look: a forward pass that keeps sites of every layer, beside one that keeps nothing, in alternating runs.

    python -m benchmarks.captures --checkpoint=DIR --batch=1,8 --tokens=256
    python -m benchmarks.captures --preset=gpt-oss-20b --layers=4      # random weights

A site that the model computes anyway costs what its copy costs; one on request is computed beside it. Ratios are medians of pairs.
"""

import statistics
import time

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import random_model
from gptoss_jax import weights
from gptoss_jax.config import GPT_OSS_20B, GPT_OSS_120B
from gptoss_jax.model.hooks import capture
from gptoss_jax.model.transformer import forward

_PRESETS = {"gpt-oss-20b": GPT_OSS_20B, "gpt-oss-120b": GPT_OSS_120B}
KEPT = {
    "residual streams": ["layers.*.residual_post"],
    "residuals, routers, experts": ["layers.*.residual_*", "layers.*.moe.router_logits", "layers.*.moe.experts", "layers.*.moe.gates"],
    "every site of a pass": ["*"],
    "sink masses": ["layers.*.attention.sink_mass"],
    "patterns": ["layers.*.attention.pattern"],
}
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A checkpoint directory.")
_PRESET = flags.DEFINE_enum("preset", None, list(_PRESETS), "Random weights of this shape instead.")
_LAYERS = flags.DEFINE_integer("layers", 4, "With --preset: so many of its layers.", lower_bound=1)
_BATCH = flags.DEFINE_list("batch", ["1"], "Rows of a batch.")
_TOKENS = flags.DEFINE_integer("tokens", 256, "Tokens of a row.", lower_bound=1)
_PAIRS = flags.DEFINE_integer("pairs", 9, "Pairs of runs.", lower_bound=1)


def ratio(plain, looking, *args, pairs: int) -> float:
    """Median over pairs of runs of the time that `looking` takes, in times of `plain`."""

    def seconds(fn):
        began = time.perf_counter()
        jax.block_until_ready(fn(*args))
        return time.perf_counter() - began

    for fn in (plain, looking):
        seconds(fn)  # compiles, or warms up
    return statistics.median(seconds(looking) / seconds(plain) for _ in range(pairs))


def main(_) -> None:
    if (_CHECKPOINT.value is None) == (_PRESET.value is None):
        raise app.UsageError("pass either --checkpoint or --preset.")
    if _PRESET.value:
        config = random_model.first_layers(_PRESETS[_PRESET.value], _LAYERS.value)
        params = random_model.params(config, random_model.form_here(config))
    else:
        model = weights.load(_CHECKPOINT.value)
        config, params = model.config, model.params
    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}: time of a pass that keeps sites, in times of one that keeps none")
    call = lambda fn: jax.jit(lambda params, tokens: fn(params, config, tokens))
    for batch in map(int, _BATCH.value):
        tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (batch, _TOKENS.value), np.int32))
        plain = call(forward)
        for name, sites in KEPT.items():
            times = ratio(plain, call(capture(forward, sites)), params, tokens, pairs=_PAIRS.value)
            print(f"batch {batch}, {_TOKENS.value} tokens, {name:28} {times:.3f}")


if __name__ == "__main__":
    app.run(main)
