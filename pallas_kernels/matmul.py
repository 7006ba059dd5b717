"""The product of rows with a weight matrix, as every layer needs it: in the weight's dtype, accumulated in float32."""

import jax
import jax.numpy as jnp

from pallas_kernels.mxfp4 import Mxfp4, unpack

_BLOCK = 256  # rows of a packed matrix that a CPU unpacks at a time, so that they stay in its cache
_CONTRACT = (((1,), (1,)), ((), ()))  # rows [M, in] with weights [out, in]
_FEW, _FOLDED = 32, 8  # rows of x up to which a product is turned round, and folded, for XLA's CPU backend; measured


def matmul(x: jax.Array, w: jax.Array) -> jax.Array:  # [M, out] float32
    """x [M, in] @ w [out, in].T; x is cast to w's dtype, float32 is multiplied in full precision.

    Derivatives of a bfloat16 product are bfloat16 products too, in either mode of differentiation: left to itself, JAX would
    multiply a float32 cotangent by a bfloat16 matrix, which no matrix unit does.
    """
    if w.dtype == jnp.bfloat16:
        return _matmul_bf16(x.astype(w.dtype), w)
    return jax.lax.dot_general(x.astype(w.dtype), w, _CONTRACT, precision="highest", preferred_element_type=jnp.float32)


def packed_matmul(x: jax.Array, w: Mxfp4, dtype) -> jax.Array:  # [M, out] float32
    """x [M, in] @ unpacked w [out, in].T, in `dtype` as `matmul`. Exact: unpacking does not round."""

    def by_blocks(x, w):
        rows = next(n for n in range(min(_BLOCK, w.shape[0]), 0, -1) if w.shape[0] % n == 0)
        blocks = jax.tree.map(lambda a: a.reshape(-1, rows, *a.shape[1:]), w)
        y = jax.lax.map(lambda block: matmul(x, unpack(block, dtype)), blocks)  # [out / rows, M, rows]
        return y.swapaxes(0, 1).reshape(x.shape[0], -1)

    return jax.lax.platform_dependent(x, w, cpu=by_blocks, default=lambda x, w: matmul(x, unpack(w, dtype)))


@jax.custom_jvp
def _matmul_bf16(x, w):
    def dot(x, w):
        return jax.lax.dot_general(x, w, _CONTRACT, preferred_element_type=jnp.float32)

    def few(x, w):
        # XLA's CPU library rearranges the right-hand matrix at every call and reads the left-hand one as it lies: with few rows,
        # weights on the left are up to twice as fast. The barrier keeps XLA from turning the product round again. A single row on
        # the right would not reach that library; and the fewer and longer the rows of w, the faster. So up to 8 rows of x are
        # multiplied as if two rows of w were one: (w0 w1) by (x 0) and by (0 x).
        M, D = x.shape
        fold = 2 if M <= _FOLDED and w.shape[0] % 2 == 0 else 1
        beside = jnp.zeros((fold, M, fold, D), x.dtype)
        for i in range(fold):
            beside = beside.at[i, :, i].set(x)
        y = jax.lax.optimization_barrier(dot(w.reshape(-1, fold * D), beside.reshape(fold * M, fold * D)))
        return y.reshape(w.shape[0], M).T  # y [out / fold, fold * M]

    return jax.lax.platform_dependent(x, w, cpu=few, default=dot) if x.shape[0] <= _FEW else dot(x, w)


@_matmul_bf16.defjvp
def _matmul_bf16_jvp(primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    dot = lambda a, b: jax.lax.dot_general(a, b, _CONTRACT).astype(jnp.float32)
    return _matmul_bf16(x, w), dot(dx, w) + dot(x, dw)
