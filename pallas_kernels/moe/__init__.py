"""The routed mixture of experts with clamped SwiGLU: only the experts that tokens are routed to are read."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.moe import reference
from pallas_kernels.mxfp4 import Mxfp4

Experts = Mxfp4 | jax.Array | tuple[jax.Array, ...]


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
    dtype=jnp.bfloat16,
    implementation: dispatch.Implementation = None,
) -> jax.Array:  # [M, D] float32
    """The sum over a token's experts of gate * (down @ swiglu(gate_up @ x + gate_up_bias) + down_bias).

    swiglu takes interleaved rows (even: gate, odd: linear): gate is clamped above at `limit`, linear to [-limit, limit];
    the result is gate * sigmoid(1.702 * gate) * (linear + 1).

    Args:
      x: tokens.
      experts: the experts of each token, different ones. An index of E or more marks an entry that is not routed: it
        costs nothing and adds zero.
      gates: weight of each of them.
      gate_up, down: expert matrices: `Mxfp4`, stacked in one array, or a tuple with one array per expert. A product is
        computed in the matrices' dtype, with float32 accumulation.
      gate_up_bias, down_bias: added before the activation, and before the gate.
      limit: SwiGLU clamp.
      dtype: that `Mxfp4` is unpacked to and multiplied in. Unpacking is exact in bfloat16 and in float32.
      implementation: see `pallas_kernels.dispatch`.
    """
    E, out = gate_up_bias.shape
    D, F = x.shape[-1], out // 2
    for name, w, shape in (("gate_up", gate_up, (E, 2 * F, D)), ("down", down, (E, D, F))):
        got = (len(w), *w[0].shape) if isinstance(w, tuple) else w.shape
        if got != shape:
            raise ValueError(f"{name} must have shape {shape} for x {x.shape} and biases {gate_up_bias.shape}; got {got}.")
    if experts.shape != gates.shape or experts.ndim != 2 or experts.shape[0] != x.shape[0]:
        raise ValueError(f"experts and gates must be [M={x.shape[0]}, A]; got {experts.shape} and {gates.shape}.")
    xla = functools.partial(reference.moe, limit=limit, dtype=dtype)
    return dispatch.run("moe", implementation, x, experts, gates, gate_up, gate_up_bias, down, down_bias, xla=xla)
