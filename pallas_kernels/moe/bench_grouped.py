"""What to time: the mixture of experts of many tokens at gpt-oss' shapes, with even routing, and XLA's form of it.

At 64 tokens the kernels of a decode step are an alternative (`tuning.MOST_DECODED`), whose cases are "moe.decode".
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.bench import Case
from pallas_kernels.moe import mosaic, reference
from pallas_kernels.moe.bench import EXPERTS, LIMIT, SCALES, A, D, F, tiles
from pallas_kernels.mxfp4 import Mxfp4

SIZES = (64, 256, 1024, 8192)


def cases() -> list[Case]:
    """Ours at all sizes; XLA's, which unpacks an expert's matrices for every block of rows, where it has not few rows for that."""
    ours = [_case("mosaic", model, M) for model in EXPERTS for M in SIZES]
    return ours + [_case("xla", "20b", M) for M in (1024, 8192)]


def _case(form: str, model: str, M: int) -> Case:
    E = EXPERTS[model]
    run, weights = {
        "mosaic": (functools.partial(mosaic.many, limit=LIMIT), tiles),
        "xla": (functools.partial(reference.moe, limit=LIMIT, dtype=jnp.bfloat16), _packed),
    }[form]
    expert = 3 * D * F * 17 // 32  # bytes of a matrix' codes and scales: 17 for 32 weights
    read = E * (1 - (1 - A / E) ** M)  # experts that some token is routed to, on average
    return Case(
        op="moe.grouped" if form == "mosaic" else f"moe.grouped.{form}",
        name=f"{model}, {M} tokens",
        run=run,
        reference=functools.partial(reference.moe, limit=LIMIT, dtype=jnp.float32),
        arguments=functools.partial(_arguments, M, E, weights),
        bytes=round(read * (expert + 4 * (2 * F + D))) + 2 * M * 4 * D,
        flops=2 * M * A * 3 * D * F,
    )


def _arguments(M: int, E: int, weights, key):
    keys = jax.random.split(key, 6)
    gates, experts = jax.lax.top_k(jax.random.normal(keys[0], (M, E)), A)
    x, b1, b2 = (jax.random.normal(k, shape) for k, shape in zip(keys[1:4], ((M, D), (E, 2 * F), (E, D)), strict=True))
    return x, experts, jax.nn.softmax(gates, -1), weights(keys[4], (E, 2 * F, D), 2), b1, weights(keys[5], (E, D, F), 1), b2


def _packed(key, shape: tuple[int, ...], _: int) -> Mxfp4:
    keys, groups = jax.random.split(key), (*shape[:-1], shape[-1] // 32)
    return Mxfp4(jax.random.bits(keys[0], (*groups, 16), jnp.uint8), jax.random.randint(keys[1], groups, *SCALES).astype(jnp.uint8))
