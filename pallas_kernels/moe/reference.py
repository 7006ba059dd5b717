"""The mixture of experts in plain jnp: pairs of (token, expert) sorted by expert, in blocks of rows of one expert each.

    tokens t0 t1 t2, A = 2, experts [[5, 1], [1, 3], [5, 1]], blocks of 2 rows:

      sorted by expert   1: t0 t1 t2   3: t1   5: t0 t2
      blocks             (1: t0 t1) (1: t2 -) (3: t1 -) (5: t0 t2)

At any moment one expert's weights, at most, are unpacked. How many blocks there are is known only when it runs; the loop has their
largest possible number and steps over the rest.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.low_rank import LowRank
from pallas_kernels.matmul import matmul, packed_matmul
from pallas_kernels.mxfp4 import Mxfp4
from pallas_kernels.mxfp4.tiles import Tiles, from_tiles

ALPHA = 1.702  # of the sigmoid, if not said otherwise


def moe(x, experts, gates, gate_up, gate_up_bias, down, down_bias, *, limit, dtype, alpha=ALPHA):
    M, A = experts.shape
    E, P = gate_up_bias.shape[0], M * A
    rows = _block_rows(M, P, E)
    num_blocks = min(P, E) + P // rows  # each of at most min(P, E) experts ends in one part-filled block

    expert = experts.reshape(P)
    order = jnp.argsort(expert, stable=True)  # [P] pairs by expert, those not routed last
    count = jnp.sum(expert[:, None] == jnp.arange(E, dtype=expert.dtype)[None, :], 0, dtype=jnp.int32)  # [E]
    start = jnp.cumsum(count) - count  # [E] first pair of each expert, in sorted order
    blocks = -(-count // rows)
    last_block = jnp.cumsum(blocks)  # [E] one past
    first_block = last_block - blocks

    def block(i):  # -> [rows, D] float32
        e = jnp.searchsorted(last_block, i, side="right").astype(jnp.int32)
        at = (i - first_block[e]) * rows + jnp.arange(rows, dtype=jnp.int32)  # rank among the expert's pairs
        token = order[jnp.minimum(start[e] + at, P - 1)] // A
        there = at < count[e]
        inputs = jnp.where(there[:, None], x[token], 0)
        w1, w2 = (_rows_of(w, token, there, M) for w in (gate_up, down))
        return _expert(e, inputs, w1, gate_up_bias, w2, down_bias, limit, alpha, dtype)

    @jax.checkpoint
    def step(_, i):
        empty = lambda: jnp.zeros((rows, x.shape[1]), jnp.float32)
        return None, jax.lax.cond(i < last_block[-1], lambda: block(i), empty)

    _, y = jax.lax.scan(step, None, jnp.arange(num_blocks, dtype=jnp.int32))  # [num_blocks, rows, D]

    rank = jnp.zeros(P, jnp.int32).at[order].set(jnp.arange(P, dtype=jnp.int32))  # [P] of each pair in sorted order
    e = jnp.minimum(expert, E - 1)
    pair = y.reshape(-1, x.shape[1])[first_block[e] * rows + rank - start[e]]  # [P, D]
    pair = jnp.where((expert < E)[:, None], pair * gates.reshape(P, 1), 0)
    return jnp.sum(pair.reshape(M, A, -1), 1)


def _block_rows(tokens: int, pairs: int, num_experts: int) -> int:
    """Rows of a block: all tokens where they are few, else near the mean number of rows an expert gets."""
    if tokens <= 16:
        return tokens
    mean = max(1, pairs // num_experts)
    return min(256, max(16, 1 << (mean - 1).bit_length()))


def _chosen(w) -> bool:
    """Whether terms stand side by side at a matrix, and tokens take one or none."""
    return isinstance(w, LowRank) and w.which is not None


def _rows_of(w, token, there, M):
    """A matrix for some of M tokens: of terms side by side each takes its own, and what is not `there` none."""
    return w.replace(which=jnp.where(there, w.which[token // (M // len(w.which))], -1)) if _chosen(w) else w


def _expert(e, x, gate_up, gate_up_bias, down, down_bias, limit, alpha, dtype):
    """What expert `e` makes of rows x [rows, D]."""

    def mlp(x, w1, b1, w2, b2):
        h = product(x, w1) + b1[None, :]
        return product(swiglu(h, limit, alpha), w2) + b2[None, :]

    def product(x, w):
        if isinstance(w, LowRank):
            return w.matmul(x, product)
        w = from_tiles(w) if isinstance(w, Tiles) else w
        return packed_matmul(x, w, dtype) if isinstance(w, Mxfp4) else matmul(x, w)

    def of(w):
        if _chosen(w):
            return w.of(e).replace(base=of(w.base))
        return jax.tree.map(lambda a: a[e], w)

    b1, b2 = gate_up_bias[e], down_bias[e]
    bases = [w.base if isinstance(w, LowRank) else w for w in (gate_up, down)]
    if isinstance(bases[0], tuple):
        low = [None if not isinstance(w, LowRank) else w.of(e) for w in (gate_up, down)]
        whole = lambda base, low: base if low is None else low.replace(base=base)
        branches = [
            lambda x, b1, b2, low, w1=w1, w2=w2: mlp(x, whole(w1, low[0]), b1, whole(w2, low[1]), b2) for w1, w2 in zip(*bases, strict=True)
        ]
        return jax.lax.switch(e, branches, x, b1, b2, low)
    return mlp(x, of(gate_up), b1, of(down), b2)


def swiglu(h: jax.Array, limit: float, alpha: float) -> jax.Array:
    """[..., 2F] interleaved gate and linear rows -> [..., F]."""
    pairs = h.reshape(*h.shape[:-1], -1, 2)
    gate, linear = jnp.minimum(pairs[..., 0], limit), jnp.clip(pairs[..., 1], -limit, limit)
    return gate * jax.nn.sigmoid(alpha * gate) * (linear + 1)
