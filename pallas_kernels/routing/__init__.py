"""Which experts each token goes to, and which experts are needed at all: what stands between a norm and the mixture of experts.

`router` is a reduction over the model's width that many blocks share; `route` is a few comparisons that one block does at once.
"""

import functools

import jax

from pallas_kernels import dispatch
from pallas_kernels.routing import reference
from pallas_kernels.routing.reference import ROWS, Routing, columns

__all__ = ["ROWS", "Routing", "of_experts", "route", "router"]


def router(
    x: jax.Array,  # [M, D] float32
    gain: jax.Array,  # [D] float32
    weight: jax.Array,  # [E, D] float32
    valid: jax.Array,  # [M] bool
    *,
    early: bool = False,
    implementation: dispatch.Implementation = None,
) -> jax.Array:  # [M, columns(E)] float32
    """Router logits before the norm's division and the bias; behind them each row's sum of squares, about 1 if it is valid, and zeros.

    All in float32, and for up to 16 rows one launch, also of XLA's reduction.

    Args:
      x: the residual stream.
      gain: of the norm.
      weight: of the router.
      valid: tokens that are to be routed.
      early: whether a kernel may read gain and weight while launches before it still run; see `pallas_kernels.projection.project_out`.
      implementation: see `pallas_kernels.dispatch`.

    Raises:
      ValueError: shapes do not fit together.
      NotImplementedError: the implementation asked for by name does not cover the call.
    """
    if x.shape[1:] != gain.shape or weight.shape[1:] != gain.shape or valid.shape != x.shape[:1]:
        shapes = ", ".join(str(a.shape) for a in (x, gain, weight, valid))
        raise ValueError(f"x [M, D], gain [D], weight [E, D], valid [M] must fit; got {shapes}.")

    def kernel():
        from pallas_kernels.routing import mosaic_router

        return functools.partial(mosaic_router.router, early=early), mosaic_router.covers(x, weight)

    return dispatch.run("router", implementation, x, gain, weight, valid, xla=reference.router, kernel=kernel)


def route(
    moments: jax.Array,  # [M, columns(E)] float32
    bias: jax.Array,  # [E] float32
    *,
    num_active: int,
    width: int,
    eps: float,
    implementation: dispatch.Implementation = None,
) -> Routing:
    """The `num_active` experts with the highest logits of each valid token, and the softmax over those alone.

    A logit is what `router` made of it times 1 / sqrt(square sum / width + eps), plus the bias. Of equal ones the lower index wins.

    Args:
      moments: of `router`, for at most 64 tokens.
      bias: of the router.
      num_active: experts a token (A).
      width: of the residual stream (D).
      eps: of the norm.
      implementation: see `pallas_kernels.dispatch`.

    Raises:
      ValueError: shapes do not fit together.
      NotImplementedError: the implementation asked for by name does not cover the call.
    """
    M, E = moments.shape[0], len(bias)
    if moments.shape[1:] != (columns(E),) or M > ROWS or not 1 <= num_active <= E:
        raise ValueError(
            f"moments must be [M <= {ROWS}, {columns(E)}] as `router` makes them for the bias' {E} experts, 1 <= num_active <= {E}; "
            f"got {moments.shape}, {num_active}."
        )
    options = {"num_active": num_active, "width": width, "eps": eps}

    def kernel():
        from pallas_kernels.routing import mosaic

        return functools.partial(mosaic.route, **options), mosaic.covers(bias, num_active)

    return dispatch.run("route", implementation, moments, bias, xla=functools.partial(reference.route, **options), kernel=kernel)


def of_experts(experts: jax.Array, gates: jax.Array, num_experts: int) -> Routing:
    """The routing of tokens whose experts are known already; scale is 1.

    Args:
      experts: [M, A] int32, different ones in a row; an index of `num_experts` or more is not routed. M is at most 64.
      gates: [M, A] float32.
      num_experts: E.
    """
    return reference.of_experts(experts, gates, num_experts)
