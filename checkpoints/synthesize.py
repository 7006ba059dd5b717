"""Writes a random checkpoint of any size: python -m checkpoints.synthesize --preset=gpt-oss-20b --out=/tmp/20b

For tests of memory and speed: no published weights needed. Scales are those of `init_params` (gates far from uniform, sinks
and biases far from zero). Streams, so that the 65 GB of gpt-oss-120b take about 3 GB of memory.
"""

from collections.abc import Callable
import dataclasses
import os
from typing import Any, get_args

from absl import app, flags
import jax
import numpy as np

from checkpoints import writer
from gptoss_jax.config import GPT_OSS_20B, GPT_OSS_120B, TINY, Config
from gptoss_jax.model.params import Spec, abstract_params, is_spec
from gptoss_jax.weights import layouts
from pallas_kernels.mxfp4 import Mxfp4

PRESETS = {
    "gpt-oss-20b": GPT_OSS_20B,
    "gpt-oss-120b": GPT_OSS_120B,
    "tiny": TINY,
    # For benchmarks on a CPU: 406 M weights, no tokenizer (token ids only), never ends an answer by itself.
    "400m": dataclasses.replace(
        GPT_OSS_20B, vocab_size=32000, hidden_size=768, intermediate_size=768, num_hidden_layers=12,
        layer_types=GPT_OSS_20B.layer_types[:12], num_attention_heads=12, num_key_value_heads=2, num_local_experts=16, eos_token_ids=(),
    ),
}  # fmt: skip

_POOL = 1 << 16  # values drawn from a table entry's distribution; arrays pick from them at random


def write_checkpoint(
    config: Config,
    out: str | os.PathLike,
    layout: layouts.Layout = "huggingface",
    *,
    seed: int = 0,
    max_shard_bytes: int = writer.SHARD_BYTES,
    progress: bool = False,
) -> None:
    """Writes a random checkpoint; the same seed gives the same weights in the layouts "huggingface" and "original".

    Args and Raises: see `writer.write`.
    """
    form = "stacked" if layout == "huggingface-bf16" else "packed"
    leaves, tree = jax.tree.flatten(abstract_params(config, experts=form), is_leaf=lambda x: is_spec(x) or isinstance(x, Mxfp4))
    arrays = [_maker(spec, (seed, i)) for i, spec in enumerate(leaves)]
    writer.write(out, config, jax.tree.unflatten(tree, arrays), layout, max_shard_bytes=max_shard_bytes, progress=progress)


def _maker(spec: Spec | Mxfp4, seed: tuple[int, ...]) -> Callable[[], Any]:
    if isinstance(spec, Mxfp4):
        return lambda: Mxfp4(_codes(spec.blocks.shape, (*seed, 0)), _random(spec.scales, (*seed, 1)))
    return lambda: _random(spec, seed)


def _codes(shape: tuple[int, ...], seed: tuple[int, ...]) -> np.ndarray:
    """Any byte is a pair of codes."""
    return np.random.Generator(np.random.SFC64(seed)).integers(0, 256, shape, np.uint8)


def _random(spec: Spec, seed: tuple[int, ...]) -> np.ndarray:
    """An array of the table's shape and distribution, at the speed of NumPy's random bytes (JAX's cost ten times as much here)."""
    rng = np.random.Generator(np.random.SFC64(seed))
    pool = np.asarray(spec.init(jax.random.key(int(rng.integers(2**31))), (_POOL,), spec.dtype))
    out = np.empty(spec.shape, spec.dtype)
    flat = out.reshape(-1)
    for start in range(0, flat.size, 1 << 24):
        part = flat[start : start + (1 << 24)]
        part[:] = pool[np.frombuffer(rng.bytes(2 * part.size), np.uint16)]
    return out


def define_flags(to: flags.FlagValues) -> None:
    """Adds this program's flags to a set of them."""
    flags.DEFINE_enum("preset", None, list(PRESETS), "Geometry of the checkpoint.", to)
    flags.DEFINE_string("config", None, "Or a config.json, of either kind.", to)
    flags.DEFINE_enum("layout", "huggingface", get_args(layouts.Layout), "How it is stored.", to)
    flags.DEFINE_string("out", None, "Directory to write.", to, required=True)
    flags.DEFINE_integer("seed", 0, "Of the random weights.", lower_bound=0, flag_values=to)
    flags.DEFINE_integer("max_shard_bytes", writer.SHARD_BYTES, "Of a file, and of the memory it takes.", lower_bound=1, flag_values=to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if (given.preset is None) == (given.config is None):
        raise app.UsageError("give either --preset or --config")
    try:
        config = PRESETS[given.preset] if given.preset else Config.from_json(given.config)
        write_checkpoint(config, given.out, given.layout, seed=given.seed, max_shard_bytes=given.max_shard_bytes, progress=True)
    except (OSError, ValueError) as error:
        raise app.UsageError(str(error)) from error


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
