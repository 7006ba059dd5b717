"""A weight matrix and a low-rank term beside it: base + b @ a, never added up. The base may be of any form, also packed.

Several terms may stand side by side, of which each row of a batch takes one or none: rows are told apart by an index, which is data. A
term that some row takes is computed for all rows, and kept where it was meant: a row's numbers are those that it gets alone, and what is
not finite in one term is nothing to a row that takes another. A term that no row takes costs nothing.

Source: LoRA (arXiv:2106.09685).
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from pallas_kernels.matmul import matmul


@flax.struct.dataclass
class LowRank:
    """A matrix [..., out, in] in two terms.

    Attributes:
        base: [..., out, in], an array or an expert matrix of any form.
        a: [..., r, in].
        b: [..., out, r]; a scale is already in it.
        which: None; or [B] int32, where terms stand side by side, a [S, ..., r, in] and b [S, ..., out, r]: the one of each row of a batch,
            -1 for none.
        expert: [] int32 where base is one expert's and terms side by side are still all experts'; see `of`.
    """

    base: Any
    a: jax.Array
    b: jax.Array
    which: jax.Array | None = None
    expert: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.base), *self.base[0].shape) if isinstance(self.base, tuple) else self.base.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self):
        return self.base.dtype

    def of(self, expert: jax.Array) -> "LowRank":
        """The term of one of several experts, without a base. Of terms side by side none is copied before a row takes it."""
        if self.which is None:
            return LowRank(None, self.a[expert], self.b[expert])
        return LowRank(None, self.a, self.b, self.which, expert)

    def matmul(self, x: jax.Array, product: Callable[[jax.Array, Any], jax.Array]) -> jax.Array:  # [M, out] float32
        """x [M, in] times the matrix, transposed; `product` does that for the base, the low-rank term is computed in a's and b's dtype.

        Of terms side by side, rows of the batch have M / B rows of x each, in order.
        """
        return self.add(product(x, self.base), lambda a, b: matmul(matmul(x, a), b))

    def add(self, y: jax.Array, term: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
        """y [M, ...] and beside it what `term` makes, of y's shape, of each row's own a and b."""
        if self.which is None:
            return y + term(self.a, self.b)
        if len(y) % len(self.which):
            raise ValueError(f"which must have an entry for each row of the batch; got {len(self.which)} for {len(y)}; pass as many.")
        which = jnp.repeat(self.which, len(y) // len(self.which)).reshape(-1, *[1] * (y.ndim - 1))
        count = len(self.a)
        after = lambda i: jnp.min(jnp.where(which > i, which, count), initial=count)  # the next that some row takes
        at = lambda i: i if self.expert is None else (i, self.expert)

        def step(carry):
            i, y = carry
            return after(i), jnp.where(which == i, y + term(self.a[at(i)], self.b[at(i)]), y)

        _, y = jax.lax.while_loop(lambda carry: carry[0] < count, step, (after(jnp.int32(-1)), y))
        return y
