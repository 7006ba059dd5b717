"""Small calls: few and many experts, in eights and not, tokens that are not valid, equal logits."""

import functools

import numpy as np

from pallas_kernels.bench.small import Small
from pallas_kernels.routing import reference, route
from pallas_kernels.routing.reference import columns

A, WIDTH, EPS = 4, 192, 1e-5


def cases() -> list[Small]:
    return [*plain(5), _case(1, 32), _case(64, 8), _case(16, 128), _case(3, 7), _case(9, 29), _case(5, 96), _case(3, 32, equal=True)]


def plain(tokens: int) -> list[Small]:
    return [_case(tokens, 32)]


def _case(M: int, E: int, equal: bool = False) -> Small:
    options = {"num_active": A, "width": WIDTH, "eps": EPS}

    def tables(op, moments, bias):
        routing = op(moments, bias, **options)
        return routing.gates, routing.ranks, routing.active, routing.scale[:M]

    return Small(
        op="routing.route",
        name=f"{M} x {E} experts" + ", equal logits" * equal,
        tokens=M,
        run=functools.partial(tables, functools.partial(route, implementation="mosaic")),
        xla=functools.partial(tables, functools.partial(route, implementation="xla")),
        reference=functools.partial(tables, reference.route),
        arguments=functools.partial(_arguments, M, E, equal),
    )


def _arguments(M: int, E: int, equal: bool) -> tuple:
    rng = np.random.default_rng(0)
    moments = np.zeros((M, columns(E)), np.float32)
    moments[:, :E] = 30 * rng.standard_normal((M, E))
    moments[:, E] = WIDTH * rng.uniform(10, 1000, M)
    moments[:, E + 1] = np.arange(M) % 4 != 2
    bias = rng.standard_normal(E).astype(np.float32)
    if equal:
        moments[:, :E], bias[:] = rng.integers(0, 2, (M, E)), 0.5
    return moments, bias
