"""The mixture of experts on a Hopper: the decode step's kernels for few tokens, grouped products for many.

Of many tokens XLA finds the place of each pair (token, expert), a few small launches, and copies the token's row there in bfloat16: 2 D
bytes a pair written, and read by the first product. For 8192 tokens of 20b this is 0.2 GB each way, 0.1 ms beside the products' 1.6e12
operations, 2 ms and more. Behind the products it adds up each token's rows, in the order of its experts.

The products' results are float32, as those of the decode step. In bfloat16 they would take half the traffic, 3% of that time, and round
what x and h in bfloat16 have left exact: the biases and, where these are large, twice the error.

A token's result does not depend, to the bit, on the other tokens, as long as their number does not lead to another row of the tuning table.
"""

import jax.numpy as jnp

from pallas_kernels.moe import decode, mosaic_grouped, tuning
from pallas_kernels.moe.grouping import group
from pallas_kernels.moe.reference import ALPHA
from pallas_kernels.mxfp4.tiles import Tiles
from pallas_kernels.routing import of_experts


def covers(gate_up, down, dtype) -> str | None:
    """Why the kernels do not cover a call; None where they do."""
    if not isinstance(gate_up, Tiles) or not isinstance(down, Tiles):
        return "weights must be in tiles (pallas_kernels.mxfp4.tiles)"
    if dtype != jnp.bfloat16:
        return f"products are computed in bfloat16, not {jnp.dtype(dtype).name}"
    return None


def moe(x, experts, gates, gate_up, gate_up_bias, down, down_bias, *, limit, alpha=ALPHA):
    form = few if x.shape[0] <= tuning.MOST_DECODED else many
    return form(x, experts, gates, gate_up, gate_up_bias, down, down_bias, limit=limit, alpha=alpha)


def few(x, experts, gates, gate_up, gate_up_bias, down, down_bias, *, limit, alpha=ALPHA):
    """Of at most 64 tokens: every active expert multiplies all of them, nothing is grouped or copied."""
    E, A = gate_up_bias.shape[0], experts.shape[1]
    routing = of_experts(experts, gates, E)
    options = {"num_active": A, "limit": limit, "alpha": alpha}
    h = decode.gate_up(x.astype(jnp.bfloat16), routing, gate_up, gate_up_bias, **options, implementation="mosaic")
    terms = decode.down(h, routing, down, down_bias, num_active=A, implementation="mosaic")  # [A, M, D], the routed ones first
    routed = jnp.sum(experts < E, 1)  # [M]
    return sum(jnp.where((routed > plane)[:, None], term, 0) for plane, term in enumerate(terms))


def many(x, experts, gates, gate_up, gate_up_bias, down, down_bias, *, limit, alpha=ALPHA):
    """Of any number of tokens: grouped by expert."""
    E, A = gate_up_bias.shape[0], experts.shape[1]
    row = tuning.grouped(experts.size / E)
    groups = group(experts, E, row.block)
    rows = x.astype(jnp.bfloat16).at[groups.token].get(mode="promise_in_bounds", wrap_negative_indices=False)
    swiglu = {"limit": limit, "alpha": alpha}
    h = mosaic_grouped.gate_up(rows, groups.expert, gate_up, gate_up_bias, block=row.block, step=row.gate_up, **swiglu)
    y = mosaic_grouped.down(h, groups.expert, down, down_bias, block=row.block, step=row.down)

    def term(a):
        pair = y.at[groups.place[:, a]].get(mode="promise_in_bounds", wrap_negative_indices=False)
        return jnp.where((experts[:, a] < E)[:, None], pair * gates[:, a, None], 0)

    return sum(term(a) for a in range(A))
