"""True shapes: a token's row and the terms of its four experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.bench.large import Large
from pallas_kernels.norm import add_norm

D, A, LINE = 2880, 4, 64


def cases() -> list[Large]:
    return [_case(M) for M in (1, 3, 16, 33, 64)]


def _case(M: int) -> Large:
    f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    shapes = f32((M, D)), f32((A, M, D)), jax.ShapeDtypeStruct((M,), bool), f32((D,))
    run = functools.partial(add_norm, implementation="mosaic")
    return Large("norm.add_norm", f"{M} token{'s' if M > 1 else ''}", "add_norm", run, shapes, functools.partial(_operands, M), _truth)


def _operands(M: int, _) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal((*shape, D // LINE, LINE)).astype(np.float32)
    return [draw(M), draw(A, M), (np.arange(M) % 3 != 1).astype(np.int32), draw()]


def _truth(operands, written):
    x, terms, valid, gain = operands
    for m in np.flatnonzero(written[2]):
        y = x[m] + (terms[:, m].sum(0, dtype=np.float32) if valid[m] else 0)
        yield 0, (m,), y
        yield 1, (m,), y * gain
        yield 2, (m,), np.sum(y * y, dtype=np.float64)
