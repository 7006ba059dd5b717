"""Pairs of (token, expert) in blocks of rows of one expert each, so that a kernel's block of threads needs one expert's weights.

    tokens t0 t1 t2, A = 2, experts [[5, 1], [1, 3], [5, 1]], blocks of 2 rows:

      blocks     (1: t0 t1) (1: t2 -) (3: t1 -) (5: t0 t2) (-) (-)
      expert     1          1         3         5          E   E
      place      [[6, 0], [1, 4], [7, 2]]

How many blocks there are is known only when it runs; the arrays have their largest possible number, and the last ones are of no expert.
Nothing is sorted: a pair's place is the number of those before it, counted by comparing, which XLA makes few kernels of, and no loop.
"""

import dataclasses

import jax
import jax.numpy as jnp

_CHUNK = 256  # pairs that are compared with one another


@dataclasses.dataclass(frozen=True)
class Groups:
    """Where the rows of M * A pairs lie.

    Attributes:
      expert: [blocks] int32 of each block; E for those that are not used, which are the last ones.
      token: [blocks * block] int32 whose row lies there; 0 where a row is not used.
      place: [M, A] int32 row of each pair; 0 for one that is not routed.
    """

    expert: jax.Array
    token: jax.Array
    place: jax.Array


def most_blocks(pairs: int, num_experts: int, block: int) -> int:
    """How many blocks there can be: all of min(pairs, E) experts have one row in their last block."""
    experts = min(pairs, num_experts)
    return experts + (pairs - experts) // block


def group(experts: jax.Array, num_experts: int, block: int) -> Groups:
    """Groups pairs by expert; those of an expert keep their order.

    Args:
      experts: [M, A] int32, not negative; an index of `num_experts` or more is not routed.
      num_experts: E.
      block: rows of a block.
    """
    (M, A), E = experts.shape, num_experts
    P = M * A
    size = min(_CHUNK, P)
    C = -(-P // size)
    blocks = most_blocks(P, E, block)
    rows = blocks * block
    iota = lambda n: jnp.arange(n, dtype=jnp.int32)
    total = lambda x, axis: jnp.sum(x, axis, dtype=jnp.int32)

    expert = jnp.pad(experts.reshape(P), (0, C * size - P), constant_values=E).reshape(C, size)
    chunk = total(expert[:, :, None] == iota(E)[None, None, :], 1)  # [C, E] pairs of each expert in a chunk
    earlier = iota(C)[None, :, None] < iota(C + 1)[:, None, None]
    before = total(jnp.where(earlier, chunk[None], 0), 1)  # [C + 1, E] in the chunks before
    used = -(-before[C] // block)  # [E] blocks
    end = total(jnp.where(iota(E)[None, :] <= iota(E)[:, None], used[None, :], 0), 1)  # [E] one past each expert's last block
    of_block = total(iota(blocks)[:, None] >= end[None, :], 1)

    same = (expert[:, :, None] == expert[:, None, :]) & (iota(size)[None, None, :] < iota(size)[None, :, None])
    e = jnp.minimum(expert, E - 1)
    place = (end - used)[e] * block + before[iota(C)[:, None], e] + total(same, 2)  # [C, size]
    routed, place = (x.reshape(-1)[:P] for x in (expert < E, place))
    pair = iota(P)
    token = jnp.zeros(rows, jnp.int32).at[jnp.where(routed, place, rows + pair)].set(pair // A, mode="drop", unique_indices=True)
    return Groups(of_block, token, jnp.where(routed, place, 0).reshape(M, A))
