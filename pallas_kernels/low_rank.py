"""A weight matrix and a low-rank term beside it: base + b @ a, never added up. The base may be of any form, also packed.

Source: LoRA (arXiv:2106.09685).
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax

from pallas_kernels.matmul import matmul


@flax.struct.dataclass
class LowRank:
    """A matrix [..., out, in] in two terms.

    Attributes:
        base: [..., out, in], an array or an expert matrix of any form.
        a: [..., r, in].
        b: [..., out, r]; a scale is already in it.
    """

    base: Any
    a: jax.Array
    b: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.base), *self.base[0].shape) if isinstance(self.base, tuple) else self.base.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self):
        return self.base.dtype

    def matmul(self, x: jax.Array, product: Callable[[jax.Array, Any], jax.Array]) -> jax.Array:  # [M, out] float32
        """x [M, in] times the matrix, transposed; `product` does that for the base, the low-rank term is computed in a's and b's dtype."""
        return product(x, self.base) + matmul(matmul(x, self.a), self.b)
