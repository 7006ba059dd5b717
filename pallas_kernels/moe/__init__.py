"""The routed mixture of experts with clamped SwiGLU: only the experts that tokens are routed to are read."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.low_rank import LowRank
from pallas_kernels.moe import reference, tuning
from pallas_kernels.mxfp4 import Mxfp4
from pallas_kernels.mxfp4.tiles import Tiles

Experts = Tiles | Mxfp4 | jax.Array | tuple[jax.Array, ...] | LowRank


def moe(
    x: jax.Array,  # [M, D] float32
    experts: jax.Array,  # [M, A] int32
    gates: jax.Array,  # [M, A] float32
    gate_up: Experts,  # [E, 2F, D]
    gate_up_bias: jax.Array,  # [E, 2F] float32
    down: Experts,  # [E, D, F]
    down_bias: jax.Array,  # [E, D] float32
    *,
    limit: float,
    alpha: float = reference.ALPHA,
    dtype=jnp.bfloat16,
    implementation: dispatch.Implementation = None,
) -> jax.Array:  # [M, D] float32
    """The sum over a token's experts of gate * (down @ swiglu(gate_up @ x + gate_up_bias) + down_bias).

    swiglu takes interleaved rows (even: gate, odd: linear): gate is clamped above at `limit`, linear to [-limit, limit];
    the result is gate * sigmoid(alpha * gate) * (linear + 1).

    Args:
      x: tokens.
      experts: the experts of each token, different ones. An index of E or more marks an entry that is not routed: it
        costs nothing and adds zero.
      gates: weight of each of them.
      gate_up, down: expert matrices: `Tiles` (gate_up with the two interleaved, down with one), which alone the kernels take; `Mxfp4`;
        stacked in one array; a tuple with one array per expert; or `LowRank`, one of these and a low-rank term beside it. A product is
        computed in the matrices' dtype, with float32 accumulation.
      gate_up_bias, down_bias: added before the activation, and before the gate.
      limit: SwiGLU clamp.
      alpha: of its sigmoid.
      dtype: that packed matrices are unpacked to and multiplied in; the kernels' is bfloat16. Unpacking is exact in bfloat16 and in
        float32.
      implementation: see `pallas_kernels.dispatch`.

    Raises:
      ValueError: shapes do not fit together, or tiles are interleaved otherwise.
      NotImplementedError: the implementation asked for by name does not cover the call.
    """
    E, out = gate_up_bias.shape
    D, F = x.shape[-1], out // 2
    for name, w, shape, interleaved in (("gate_up", gate_up, (E, 2 * F, D), 2), ("down", down, (E, D, F), 1)):
        got = (len(w), *w[0].shape) if isinstance(w, tuple) else w.shape
        if got != shape:
            raise ValueError(f"{name} must have shape {shape} for x {x.shape} and biases {gate_up_bias.shape}; got {got}.")
        if isinstance(w, Tiles) and w.interleaved != interleaved:
            raise ValueError(f"{name}'s tiles must interleave {interleaved} matrices, not {w.interleaved}; use to_tiles(w, {interleaved}).")
    if experts.shape != gates.shape or experts.ndim != 2 or experts.shape[0] != x.shape[0]:
        raise ValueError(f"experts and gates must be [M={x.shape[0]}, A]; got {experts.shape} and {gates.shape}.")

    def kernel():
        from pallas_kernels.moe import mosaic

        return functools.partial(mosaic.moe, limit=limit, alpha=alpha), mosaic.covers(gate_up, down, dtype)

    return dispatch.run(
        "moe",
        implementation,
        *(x, experts, gates, gate_up, gate_up_bias, down, down_bias),
        xla=functools.partial(reference.moe, limit=limit, alpha=alpha, dtype=dtype),
        kernel=kernel,
        derived=True,
        kernels=("moe_gate_up", "moe_down") if x.shape[0] <= tuning.MOST_DECODED else ("moe_grouped",),
    )
