"""The dense projections of a decode step, each one launch: queries, keys and values; attention's output; the unembedding.

A step of few tokens reads every weight once and does nothing else for long: the floor is the bytes of w. RMSNorm is split round
the products: x arrives times the norm's gain, and since a row's 1/rms is one factor, it is applied to the row's products.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.projection import reference


def project_qkv(
    x: jax.Array,  # [M, D] bf16
    square_sum: jax.Array,  # [M] float32
    w: jax.Array,  # [K, G + 2, H, D]
    bias: jax.Array,  # [K, G + 2, H] float32
    cos: jax.Array,  # [M, H/2] float32
    sin: jax.Array,  # [M, H/2] float32
    k_pages: jax.Array,  # [P, K, page, H]
    v_pages: jax.Array,  # [P, K, page, H]
    page: jax.Array,  # [M] int32
    offset: jax.Array,  # [M] int32
    *,
    eps: float,
    early: bool = False,
    implementation: dispatch.Implementation = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # [M, N, H], k_pages, v_pages
    """Query heads after RoPE, and the pages with the tokens' keys (after RoPE) and values; in place where the pages are donated.

    Rows are independent: a row's results do not depend, to the bit, on which and how many others there are (the kernel; XLA's
    products may differ with M).

    Args:
      x: the residual stream times the norm's gain, not yet divided by its rms; cast to w's dtype.
      square_sum: of the residual stream, before the gain.
      w: for each kv head the rows of its G query heads, of its key, of its value.
      cos, sin: of RoPE, for the token of each row. Pairs are (i, i + H/2).
      page, offset: where each row's key and value go. A row whose page is P or more is not written. No two rows may have one place.
      eps: of the norm: a row's products are divided by sqrt(square_sum / D + eps).
      early: see `project_out`.
      implementation: see `pallas_kernels.dispatch`.

    Raises:
      ValueError: shapes or dtypes do not fit together.
      NotImplementedError: the implementation asked for by name does not cover the call.
    """
    M, D = _rows(x)
    if w.ndim != 4 or w.shape[1] < 3 or w.shape[2] % 2 or w.shape[3] != D:
        raise ValueError(f"w must be [K, G + 2, H, {D}] with G >= 1 and H even; got {w.shape}.")
    K, _, H, _ = w.shape
    _expect("bias", bias, w.shape[:3], jnp.float32)
    _expect("square_sum", square_sum, (M,), jnp.float32)
    _expect("cos", cos, (M, H // 2), jnp.float32)
    _expect("sin", sin, (M, H // 2), jnp.float32)
    _expect("page", page, (M,), jnp.int32)
    _expect("offset", offset, (M,), jnp.int32)
    if k_pages.ndim != 4 or k_pages.shape[1::2] != (K, H) or k_pages.shape != v_pages.shape or k_pages.dtype != v_pages.dtype:
        raise ValueError(f"k_pages and v_pages must be one [P, {K}, page, {H}] and dtype; got {_of(k_pages)} and {_of(v_pages)}.")
    arguments = (x, square_sum, w, bias, cos, sin, k_pages, v_pages, page, offset)

    def kernel():
        from pallas_kernels.projection import mosaic_qkv

        return functools.partial(mosaic_qkv.project_qkv, eps=eps, early=early), mosaic_qkv.covers(x, w, k_pages)

    return dispatch.run(
        "project_qkv",
        implementation,
        *arguments,
        xla=functools.partial(reference.project_qkv, eps=eps),
        kernel=kernel,
    )


def project_out(
    x: jax.Array,  # [M, C] bf16
    w: jax.Array,  # [D, C]
    bias: jax.Array,  # [D] float32
    residual: jax.Array,  # [M, D] float32
    gain: jax.Array,  # [D] float32
    *,
    early: bool = False,
    implementation: dispatch.Implementation = None,
) -> tuple[jax.Array, jax.Array]:  # [M, D] float32, [M, D] of w's dtype
    """y = x @ w.T + bias + residual, and y * gain: the residual stream after attention, and what the next norm makes of it but for 1/rms.

    Args:
      x: attention's heads side by side, C = N * H; cast to w's dtype.
      w, bias: of the output projection.
      residual: the stream that the product is added to.
      gain: of the next norm.
      early: whether a kernel may read w while launches before it still run. Only for what none of them writes, such as weights that are a
        program's arguments.
      implementation: see `pallas_kernels.dispatch`.

    Raises:
      ValueError: shapes or dtypes do not fit together.
      NotImplementedError: the implementation asked for by name does not cover the call.
    """
    M, C = _rows(x)
    if w.ndim != 2 or w.shape[1] != C:
        raise ValueError(f"w must be [D, {C}]; got {w.shape}.")
    D = w.shape[0]
    _expect("bias", bias, (D,), jnp.float32)
    _expect("residual", residual, (M, D), jnp.float32)
    _expect("gain", gain, (D,), jnp.float32)

    def kernel():
        from pallas_kernels.projection import mosaic

        return functools.partial(mosaic.project_out, early=early), mosaic.covers(x, w)

    return dispatch.run(
        "project_out",
        implementation,
        *(x, w, bias, residual, gain),
        xla=reference.project_out,
        kernel=kernel,
    )


def unembed(
    x: jax.Array,  # [M, D] bf16
    square_sum: jax.Array,  # [M] float32
    w: jax.Array,  # [V, D]
    *,
    eps: float,
    early: bool = False,
    implementation: dispatch.Implementation = None,
) -> jax.Array:  # [M, V] float32
    """Logits of the last hidden states: x @ w.T / sqrt(square_sum / D + eps).

    Args:
      x: the residual stream times the last norm's gain; cast to w's dtype.
      square_sum: of the residual stream, before the gain.
      w: the unembedding.
      eps: of the norm.
      early: see `project_out`.
      implementation: see `pallas_kernels.dispatch`.

    Raises:
      ValueError: shapes or dtypes do not fit together.
      NotImplementedError: the implementation asked for by name does not cover the call.
    """
    M, D = _rows(x)
    if w.ndim != 2 or w.shape[1] != D:
        raise ValueError(f"w must be [V, {D}]; got {w.shape}.")
    _expect("square_sum", square_sum, (M,), jnp.float32)

    def kernel():
        from pallas_kernels.projection import mosaic

        return functools.partial(mosaic.unembed, eps=eps, early=early), mosaic.covers(x, w)

    return dispatch.run(
        "unembed",
        implementation,
        *(x, square_sum, w),
        xla=functools.partial(reference.unembed, eps=eps),
        kernel=kernel,
    )


def _rows(x: jax.Array) -> tuple[int, int]:
    if x.ndim != 2 or not x.shape[0]:
        raise ValueError(f"x must have at least one row and two axes; got shape {x.shape}.")
    return x.shape


def _expect(name: str, value: jax.Array, shape: tuple[int, ...], dtype) -> None:
    if value.shape != shape or value.dtype != dtype:
        raise ValueError(f"{name} must be {jnp.dtype(dtype).name}{list(shape)}; got {_of(value)}.")


def _of(value: jax.Array) -> str:
    return f"{value.dtype.name}{list(value.shape)}"
