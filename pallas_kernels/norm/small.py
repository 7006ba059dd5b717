"""Small calls: several terms, rows that are not valid, widths that threads share evenly and not."""

import functools

import jax.numpy as jnp
import numpy as np

from pallas_kernels.bench.small import Small
from pallas_kernels.norm import add_norm, reference


def cases() -> list[Small]:
    return [*plain(3), _case(2, 320, 4), _case(1, 2880, 4)]


def plain(tokens: int) -> list[Small]:
    return [_case(tokens, 256, 2)]


def _case(M: int, D: int, A: int) -> Small:
    def arguments():
        rng = np.random.default_rng(0)
        draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
        x, terms, gain = draw(M, D), draw(A, M, D), draw(D)
        return x, terms, np.arange(M) % 3 != 1, gain

    return Small(
        op="norm.add_norm",
        name=f"{M} x {D}, {A} terms",
        tokens=M,
        run=functools.partial(add_norm, implementation="mosaic"),
        xla=functools.partial(add_norm, implementation="xla"),
        reference=functools.partial(reference.add_norm, dtype=jnp.float32),
        arguments=arguments,
    )
