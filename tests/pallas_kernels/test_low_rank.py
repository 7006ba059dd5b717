"""Low-rank terms side by side: each row takes its own, to the bit as if it were the only one."""

from hypothesis import example, given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.low_rank import LowRank
from pallas_kernels.matmul import matmul

B, T, IN, OUT, RANK, TERMS = 5, 3, 24, 40, 4, 3
keys = iter(jax.random.split(jax.random.key(0), 4))
X = jax.random.normal(next(keys), (B * T, IN))
BASE = jax.random.normal(next(keys), (OUT, IN))
A = jax.random.normal(next(keys), (TERMS, RANK, IN)).at[2].set(jnp.nan)
TERM = jax.random.normal(next(keys), (TERMS, OUT, RANK))


@jax.jit
def side_by_side(which):
    return LowRank(BASE, A, TERM, which).matmul(X, matmul)


@jax.jit
def alone(place):
    return LowRank(BASE, A[place], TERM[place]).matmul(X, matmul)


PLAIN = np.asarray(jax.jit(matmul)(X, BASE))
ALONE = [np.asarray(alone(i)) for i in range(TERMS)]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.integers(-1, TERMS - 1), min_size=B, max_size=B))
@example([2, 0, -1, 1, 2])
@example([-1] * B)
def test_a_row_takes_its_own_term_and_nothing_of_others(which):
    """The third term is NaN, and stays with the rows that take it."""
    got = np.asarray(side_by_side(jnp.array(which, jnp.int32)))
    for row, place in enumerate(which):
        own = slice(row * T, (row + 1) * T)
        assert np.array_equal(got[own], (PLAIN if place < 0 else ALONE[place])[own], equal_nan=True)


def test_rows_without_an_entry_are_refused():
    with pytest.raises(ValueError, match="which must have an entry for each row of the batch; got 4 for 15"):
        LowRank(BASE, A, TERM, jnp.zeros(4, jnp.int32)).matmul(X, matmul)
