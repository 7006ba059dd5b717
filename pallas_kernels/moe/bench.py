"""What to time: the mixture of experts of a decode step at gpt-oss' shapes, its two launches apart and together, and XLA's form of both.

Tokens choose their experts evenly and at random, always the same: how many experts are active, and so the floor, is known beforehand.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.bench import Case
from pallas_kernels.moe import decode, reference_decode
from pallas_kernels.mxfp4.tiles import Tiles, tiled_shapes
from pallas_kernels.routing import Routing, of_experts

D = F = 2880
A, LIMIT = 4, 7.0
EXPERTS = {"20b": 32, "120b": 128}
SIZES = (1, 4, 16, 64)
SCALES = (118, 122)  # from 2^-9 up to, not including, 2^-5, so that products are near 1


def cases() -> list[Case]:
    """Each launch; both; XLA's form of both."""
    out = []
    for model, E in EXPERTS.items():
        for M in SIZES:
            out += [_case(op, model, E, M, "mosaic") for op in ("gate_up", "down", "decode")]
            out.append(_case("decode", model, E, M, "xla"))
    return out


def _case(op: str, model: str, E: int, M: int, implementation: str) -> Case:
    run = {"gate_up": _gate_up, "down": _down, "decode": _decode}[op]
    parts = ("gate_up", "down") if op == "decode" else (op,)
    active = len(np.unique(_choice(E, M)))
    options = {"implementation": implementation}
    down = functools.partial(decode.down, early=implementation == "mosaic")  # as in a decode step
    ours = [functools.partial(f, num_active=A, **options) for f in (functools.partial(decode.gate_up, limit=LIMIT), down)]
    plain = (functools.partial(reference_decode.gate_up, num_active=A, limit=LIMIT), functools.partial(reference_decode.down, num_active=A))
    exact = [lambda x, *rest, op=op: op(x.astype(jnp.float32), *rest) for op in plain]
    return Case(
        op=f"moe.{op}" if implementation == "mosaic" else f"moe.{op}.{implementation}",
        name=f"{model}, {M} token{'s' if M > 1 else ''}",
        run=functools.partial(run, active, *ours),
        reference=functools.partial(run, active, *exact),
        arguments=functools.partial(_arguments, op, E, M),
        bytes=sum(active * _expert(part) for part in parts) + _beside(op, M),
        flops=sum(2 * M * A * _weights(part) for part in parts),
    )


def _gate_up(active, gate_up, _, rows, routing, weights, bias):
    """h; of its first slots only, where there are empty ones: what those hold is nothing to compare."""
    h = gate_up(rows, routing, weights, bias)
    return h if active == len(h) else h[:A]


def _down(_, __, down, h, routing, weights, bias):
    return down(h, routing, weights, bias)


def _decode(_, gate_up, down, rows, routing, weights, bias, down_weights, down_bias):
    return down(gate_up(rows, routing, weights, bias), routing, down_weights, down_bias)


def _arguments(op: str, E: int, M: int, key):
    keys = jax.random.split(key, 7)
    bias = lambda key, rows: 0.1 * jax.random.normal(key, (E, rows))
    low = lambda key, *shape: jax.random.normal(key, shape, jnp.bfloat16)
    gate_up = (low(keys[0], M, D), _routing(E, M), tiles(keys[1], (E, 2 * F, D), 2), bias(keys[2], 2 * F))
    down = (tiles(keys[3], (E, D, F), 1), bias(keys[4], D))
    if op == "gate_up":
        return gate_up
    if op == "down":
        return (low(keys[5], min(M * A, E), M, F), _routing(E, M), *down)
    return (*gate_up, *down)


def _choice(E: int, M: int) -> np.ndarray:  # [M, A]
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(E)[:A] for _ in range(M)]).astype(np.int32)


def _routing(E: int, M: int) -> Routing:
    gates = np.random.default_rng(1).dirichlet(np.ones(A), M).astype(np.float32)
    return of_experts(jnp.asarray(_choice(E, M)), jnp.asarray(gates), E)


def tiles(key, shape: tuple[int, int, int], interleaved: int) -> Tiles:
    """Any words are codes."""
    words, scales = tiled_shapes(shape, interleaved)
    keys = jax.random.split(key)
    return Tiles(jax.random.bits(keys[0], words), (jax.random.bits(keys[1], scales) & 0x03030303) + jnp.uint32(SCALES[0] * 0x01010101))


def _weights(part: str) -> int:
    """Of an expert."""
    return (2 if part == "gate_up" else 1) * F * D


def _expert(part: str) -> int:
    """Bytes of an expert: 17 for 32 weights, and its bias."""
    return _weights(part) * 17 // 32 + 4 * (2 * F if part == "gate_up" else D)


def _beside(op: str, M: int) -> int:
    """Bytes besides the experts: rows, what is handed from the first launch to the second, terms."""
    rows, h, terms = 2 * M * D, 2 * M * A * F, 4 * M * A * D
    return {"gate_up": rows + h, "down": h + terms, "decode": rows + 2 * h + terms}[op]
