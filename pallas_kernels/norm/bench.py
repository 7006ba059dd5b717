"""What to time: the sum of a residual stream with its experts' terms, and the norm that begins there."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.bench import Case
from pallas_kernels.norm import add_norm, reference

D, A = 2880, 4
SIZES = (1, 16, 64)


def cases() -> list[Case]:
    """The kernel, and XLA's form. Both models are equally wide."""
    return [_case(M, implementation) for M in SIZES for implementation in ("mosaic", "xla")]


def _case(M: int, implementation: str) -> Case:
    def arguments(key):
        keys = jax.random.split(key, 3)
        draw = jax.random.normal
        return draw(keys[0], (M, D)), draw(keys[1], (A, M, D)), jnp.ones(M, bool), draw(keys[2], (D,))

    return Case(
        op="norm.add_norm" if implementation == "mosaic" else f"norm.add_norm.{implementation}",
        name=f"20b, {M} token{'s' if M > 1 else ''}",
        run=functools.partial(add_norm, implementation=implementation),
        reference=functools.partial(reference.add_norm, dtype=jnp.float32),
        arguments=arguments,
        bytes=M * D * (4 + 4 * A + 4 + 2) + 4 * D,
        flops=M * D * (A + 3),
    )
