"""The mixture of experts of a decode step, in two launches: at most 64 tokens, experts in tiles, each active expert read once.

A token's experts are not summed here: every term goes to a plane of its own, and whoever adds them to the residual stream
(`pallas_kernels.norm`) does so in a fixed order. The floor is the bytes of the active experts.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.moe import reference_decode
from pallas_kernels.moe.reference import ALPHA
from pallas_kernels.mxfp4.tiles import Tiles
from pallas_kernels.routing import ROWS, Routing


def gate_up(
    rows: jax.Array,  # [M, D] bf16
    routing: Routing,
    weights: Tiles,  # [E, 2F, D]
    bias: jax.Array,  # [E, 2F] float32
    *,
    num_active: int,
    limit: float,
    alpha: float = ALPHA,
    implementation: dispatch.Implementation = None,
) -> jax.Array:  # [S, M, F]
    """swiglu(rows @ weights[e].T * routing.scale + bias[e]) for the active experts e = routing.active[s], of all tokens.

    swiglu takes interleaved rows (even: gate, odd: linear): gate is clamped above at `limit`, linear to [-limit, limit]; the result
    is gate * sigmoid(alpha * gate) * (linear + 1).

    Args:
      rows: the residual stream times the norm's gain, not yet divided by its rms. Products are computed in its dtype.
      routing: of these tokens. Tokens need not be routed to an expert for their row of h to be computed.
      weights: interleaved tiles (S = 2).
      bias: interleaved as the weights' rows.
      num_active: experts a token (A).
      limit: SwiGLU clamp.
      alpha: of its sigmoid.
      implementation: see `pallas_kernels.dispatch`.

    Returns:
      h, in the dtype of rows, for S = min(M * A, E) slots; a slot without an expert may hold anything.

    Raises:
      ValueError: shapes or dtypes do not fit together.
      NotImplementedError: the implementation asked for by name does not cover the call.
    """
    if rows.ndim != 2 or not 1 <= rows.shape[0] <= ROWS:
        raise ValueError(f"rows must be [M, D] of 1 to {ROWS} tokens; got {rows.shape}; use `pallas_kernels.moe.moe` for more.")
    E, out = _check(routing, bias, num_active)
    _check_weights(weights, (E, out, rows.shape[1]), 2)
    options = {"num_active": num_active, "limit": limit, "alpha": alpha}

    def kernel():
        from pallas_kernels.moe import mosaic_decode

        return functools.partial(mosaic_decode.gate_up, **options), mosaic_decode.covers(rows)

    return dispatch.run(
        "moe.gate_up",
        implementation,
        *(rows, routing, weights, bias),
        xla=functools.partial(reference_decode.gate_up, **options),
        kernel=kernel,
        kernels=("moe_gate_up",),
    )


def down(
    h: jax.Array,  # [S, M, F]
    routing: Routing,
    weights: Tiles,  # [E, D, F]
    bias: jax.Array,  # [E, D] float32
    *,
    num_active: int,
    early: bool = False,
    implementation: dispatch.Implementation = None,
) -> jax.Array:  # [A, M, D] float32
    """gate * (h @ weights[e].T + bias[e]) of each token's experts e, in the plane that is the expert's rank among the token's.

    Args:
      h: of `gate_up`. Products are computed in its dtype.
      routing: as `gate_up` was given.
      weights: tiles, not interleaved.
      bias: added before the gate.
      num_active: experts a token (A).
      early: whether a kernel may read routing and weights while launches before it still run. Only where `gate_up`, given this routing,
        is the launch before, and for weights that no launch writes, such as a program's arguments.
      implementation: see `pallas_kernels.dispatch`.

    Returns:
      The terms; what they hold for a token that is not routed may be anything.

    Raises:
      ValueError: shapes or dtypes do not fit together.
      NotImplementedError: the implementation asked for by name does not cover the call.
    """
    E, D = _check(routing, bias, num_active)
    if h.ndim != 3 or not 1 <= h.shape[1] <= ROWS or h.shape[0] != min(h.shape[1] * num_active, E):
        raise ValueError(f"h must be [min(M * {num_active}, {E}), M, F] of 1 to {ROWS} tokens, as `gate_up` gives it; got {h.shape}.")
    _check_weights(weights, (E, D, h.shape[2]), 1)

    def kernel():
        from pallas_kernels.moe import mosaic_decode

        return functools.partial(mosaic_decode.down, num_active=num_active, early=early), mosaic_decode.covers(h)

    return dispatch.run(
        "moe.down",
        implementation,
        *(h, routing, weights, bias),
        xla=functools.partial(reference_decode.down, num_active=num_active),
        kernel=kernel,
        kernels=("moe_down",),
    )


def _check(routing: Routing, bias: jax.Array, num_active: int) -> tuple[int, ...]:
    """The bias' shape."""
    if bias.ndim != 2 or bias.dtype != jnp.float32:
        raise ValueError(f"bias must be float32 with a row per expert; got {bias.dtype.name}{list(bias.shape)}.")
    E = bias.shape[0]
    if routing.gates.shape != (E, ROWS) or routing.ranks.shape != (E, ROWS) or not 1 <= num_active <= E:
        raise ValueError(
            f"routing must be of the bias' {E} experts, and 1 <= num_active <= {E}; got gates {routing.gates.shape}, "
            f"ranks {routing.ranks.shape}, num_active {num_active}."
        )
    return bias.shape


def _check_weights(weights: Tiles, shape: tuple[int, ...], interleaved: int) -> None:
    if weights.shape != shape or weights.interleaved != interleaved:
        raise ValueError(
            f"weights must be {list(shape)} in tiles of {interleaved} interleaved matrices, as the rows and the bias say; "
            f"got {list(weights.shape)}, {weights.interleaved} interleaved."
        )
