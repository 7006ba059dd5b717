"""Small calls: few and many experts, in eights and not, tokens that are not valid, equal logits; the sums that logits are."""

import functools

import numpy as np

from pallas_kernels.bench.small import Small
from pallas_kernels.routing import reference, route, router
from pallas_kernels.routing.reference import columns

A, WIDTH, EPS = 4, 192, 1e-5


def cases() -> list[Small]:
    routes = [_case(1, 32), _case(64, 8), _case(1, 128), _case(16, 128), _case(3, 7), _case(9, 29), _case(5, 96), _case(3, 32, equal=True)]
    return [*plain(5), *routes, _router(1, 128, 192), _router(16, 7, 128), _router(6, 32, 960)]


def plain(tokens: int) -> list[Small]:
    return [_case(tokens, 32), _router(tokens, 24, 192)]


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


def _router(M: int, E: int, D: int) -> Small:
    def arguments():
        rng = np.random.default_rng(0)
        x, gain, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((M, D), D, (E, D)))
        return 30 * x, gain, weight, np.arange(M) % 4 != 2

    return Small(
        op="routing.router",
        name=f"{M} x {E} experts, {D} wide",
        tokens=M,
        run=functools.partial(router, early=True, implementation="mosaic"),
        xla=functools.partial(router, implementation="xla"),
        reference=reference.router,
        arguments=arguments,
    )
