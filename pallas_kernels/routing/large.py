"""True shapes: 32 and 128 experts, up to 64 tokens. The launch is one block."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.bench.large import Large
from pallas_kernels.routing import ROWS, reference, route
from pallas_kernels.routing.reference import columns

D, A, EPS = 2880, 4, 1e-5


def cases() -> list[Large]:
    return [_case(name, E, M) for name, E in (("20b", 32), ("120b", 128)) for M in (1, 3, 16, 33, 64)]


def _case(model: str, E: int, M: int) -> Large:
    options = {"num_active": A, "width": D, "eps": EPS}
    f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    run = functools.partial(route, implementation="mosaic", **options)
    operands, truth = functools.partial(_operands, E, M), functools.partial(_truth, M, options)
    return Large(
        "routing.route", f"{model}, {M} token{'s' if M > 1 else ''}", "route", run, (f32((M, columns(E))), f32((E,))), operands, truth
    )


def _operands(E: int, M: int, _) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    moments = np.zeros((M, columns(E)), np.float32)
    moments[:, :E] = 30 * rng.standard_normal((M, E))
    moments[:, E], moments[:, E + 1] = D * rng.uniform(10, 1000, M), np.arange(M) % 4 != 2
    return [moments, rng.standard_normal(E).astype(np.float32)]


def _truth(M: int, options, operands, _):
    moments, bias = operands
    routing = reference.route(jnp.asarray(moments[:M]), jnp.asarray(bias), **options)
    for i, table in enumerate((routing.gates, routing.ranks, routing.active)):
        yield i, (), np.asarray(table)
    yield 3, (slice(0, M),), np.asarray(routing.scale[:M])
    yield 3, (slice(M, ROWS),), None
