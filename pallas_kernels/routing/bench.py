"""What to time: the routing of a decode step at gpt-oss' shapes, and the reduction or product that gives it its logits."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.bench import Case
from pallas_kernels.routing import ROWS, reference, route, router
from pallas_kernels.routing.reference import FEW, columns

D, A, EPS = 2880, 4, 1e-5
EXPERTS = {"20b": 32, "120b": 128}
SIZES = (1, 16, 64)


def cases() -> list[Case]:
    """The kernels; XLA's form of the first."""
    shapes = [(model, E, M) for model, E in EXPERTS.items() for M in SIZES]
    kernels = [_router(*shape, "mosaic") for shape in shapes if shape[2] <= FEW]
    return [_route(*shape) for shape in shapes] + kernels + [_router(*shape, "xla") for shape in shapes]


def _route(model: str, E: int, M: int) -> Case:
    options = {"num_active": A, "width": D, "eps": EPS}

    def tables(op, moments, bias):  # without the scales: those behind the last token may be anything
        routing = op(moments, bias, **options)
        return routing.gates, routing.ranks, routing.active

    def arguments(key):
        keys = jax.random.split(key)
        moments = jax.random.normal(keys[0], (M, columns(E))).at[:, E].set(D).at[:, E + 1].set(1)
        return moments, jax.random.normal(keys[1], (E,))

    moved = 4 * (M * columns(E) + E) + 4 * (2 * E * ROWS + -(-E // ROWS) * ROWS + ROWS)
    run = functools.partial(tables, functools.partial(route, implementation="mosaic"))
    return Case("routing.route", _name(model, M), run, functools.partial(tables, reference.route), arguments, moved, M * E * A)


def _router(model: str, E: int, M: int, implementation: str) -> Case:
    def arguments(key):
        keys = jax.random.split(key, 3)
        valid = jnp.ones(M, bool)
        return jax.random.normal(keys[0], (M, D)), jax.random.normal(keys[1], (D,)), jax.random.normal(keys[2], (E, D)), valid

    moved = 4 * (M * D + D + E * D + M * columns(E)) + M
    op = "routing.router" if implementation == "mosaic" else "routing.xla_router"
    run = functools.partial(router, implementation=implementation, early=implementation == "mosaic")
    return Case(op, _name(model, M), run, reference.router, arguments, moved, 2 * M * E * D)


def _name(model: str, M: int) -> str:
    return f"{model}, {M} token{'s' if M > 1 else ''}"
