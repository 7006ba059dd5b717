"""What to time: the projections of a decode step at gpt-oss-20b's shapes, which are the 120b's, and XLA's ways to the same products.

A launch of the first two reads 24 to 30 MB of weights, which the GPU's L2 cache would keep: such a case runs the launches of several
layers, each with its own weights.
"""

import functools
import math

import jax
import jax.numpy as jnp

from pallas_kernels import projection
from pallas_kernels.bench import Case
from pallas_kernels.matmul import matmul
from pallas_kernels.projection import reference

D, N, K, H, V = 2880, 64, 8, 64, 201_088
EPS = 1e-5
LAYERS = 6
PAGES, PAGE = 128, 64
SIZES = (1, 4, 16, 64)
SHAPES = {"qkv": (K, N // K + 2, H, D), "out": (D, N * H), "unembed": (V, D)}


def cases() -> list[Case]:
    """Ours; the whole op by XLA; the product alone in three forms of XLA's, one of them for a single row only."""
    out = []
    for M in SIZES:
        for op in SHAPES:
            out.append(_whole(op, M, "mosaic"))
            out.append(_whole(op, M, "xla"))
            out.append(_product(op, M, "dot", matmul))
            out.append(_product(op, M, "dot_in_out", _dot_in_out))
            if M == 1:
                out.append(_product(op, M, "reduce", _reduce))
    return out


def _whole(op: str, M: int, implementation: str) -> Case:
    run, formula, arguments, donate = {
        "qkv": (_qkv, reference.project_qkv, _qkv_arguments, (2, 3)),
        "out": (_out, reference.project_out, _out_arguments, ()),
        "unembed": (_unembed, reference.unembed, _unembed_arguments, ()),
    }[op]
    ours = {"qkv": projection.project_qkv, "out": projection.project_out, "unembed": projection.unembed}[op]
    layers = _layers(op)
    return Case(
        op=f"projection.{op}" if implementation == "mosaic" else f"projection.{op}.{implementation}",
        name=_name(M),
        run=functools.partial(run, functools.partial(ours, implementation=implementation, early=implementation == "mosaic")),
        reference=functools.partial(run, lambda x, *rest, **options: formula(*_exact(x, *rest), **options)),
        arguments=functools.partial(arguments, M),
        bytes=layers * (_weights(op) + _beside(op, M)),
        flops=layers * M * _weights(op),
        donate=donate,
    )


def _product(op: str, M: int, form: str, multiply) -> Case:
    layers = _layers(op)
    columns = SHAPES[op][-1]
    rows = math.prod(SHAPES[op]) // columns
    shape = (columns, rows) if form == "dot_in_out" else (rows, columns)

    def exact(x, w):
        w = w.astype(jnp.float32)
        return matmul(x, w.T if form == "dot_in_out" else w)

    return Case(
        op=f"projection.xla_{form}",
        name=f"{op}, {_name(M)}",
        run=lambda x, ws: _each(multiply, x, ws),
        reference=lambda x, ws: _each(exact, x, ws),
        arguments=lambda key: (_draw(key, M, columns), [_draw(k, *shape) for k in jax.random.split(key, layers)]),
        bytes=layers * (_weights(op) + 2 * M * columns + 4 * M * rows),
        flops=layers * M * _weights(op),
    )


def _dot_in_out(x, w):
    return jax.lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _reduce(x, w):
    return jnp.sum(w.astype(jnp.float32) * x.astype(jnp.float32), 1)[None, :]


def _each(op, x, ws) -> list:
    """The op for one matrix after the other. Without a barrier XLA would join products of one x, and copy the matrices to do so."""
    out = []
    for w in ws:
        y = op(x, w)
        x, y = jax.lax.optimization_barrier((x, y))
        out.append(y)
    return out


def _qkv(op, x, square_sum, k_pages, v_pages, ws, bias, cos, sin, page, offset):
    def layer(x, w):
        nonlocal k_pages, v_pages
        q, k_pages, v_pages = op(x, square_sum, w, bias, cos, sin, k_pages, v_pages, page, offset, eps=EPS)
        return q

    return _each(layer, x, ws), k_pages, v_pages


def _out(op, x, ws, bias, residual, gain):
    return _each(lambda x, w: op(x, w, bias, residual, gain), x, ws)


def _unembed(op, x, square_sum, ws):
    return _each(lambda x, w: op(x, square_sum, w, eps=EPS), x, ws)


def _exact(x, *rest):
    """The same with the products' operands, all that is bfloat16 but for the cache, in float32."""
    return [a.astype(jnp.float32) if a.dtype == jnp.bfloat16 and a.shape[:1] != (PAGES,) else a for a in (x, *rest)]


def _qkv_arguments(M: int, key):
    keys = jax.random.split(key, 6)
    angle = jax.random.uniform(keys[0], (M, H // 2), maxval=6.0)
    pages = [_draw(k, PAGES, K, PAGE, H) for k in keys[1:3]]
    bias = _draw(keys[3], *SHAPES["qkv"][:3]).astype(jnp.float32)
    rows = jnp.arange(M, dtype=jnp.int32)
    x = _draw(keys[4], M, D)
    return x, _square_sum(x), *pages, _matrices("qkv", keys[5]), bias, jnp.cos(angle), jnp.sin(angle), rows, rows % PAGE


def _out_arguments(M: int, key):
    keys = jax.random.split(key, 5)
    bias, gain = (_draw(k, D).astype(jnp.float32) for k in keys[:2])
    return _draw(keys[2], M, N * H), _matrices("out", keys[3]), bias, jax.random.normal(keys[4], (M, D)), gain


def _unembed_arguments(M: int, key):
    keys = jax.random.split(key)
    x = _draw(keys[0], M, D)
    return x, _square_sum(x), _matrices("unembed", keys[1])


def _matrices(op: str, key) -> list[jax.Array]:
    return [_draw(k, *SHAPES[op]) * jnp.bfloat16(0.02) for k in jax.random.split(key, _layers(op))]


def _draw(key, *shape):
    return jax.random.normal(key, shape, jnp.bfloat16)


def _square_sum(x):
    return jnp.sum(x.astype(jnp.float32) ** 2, -1)


def _layers(op: str) -> int:
    return 1 if op == "unembed" else LAYERS


def _weights(op: str) -> int:
    """Bytes of a matrix, bfloat16; as many as the operations of a row's product."""
    return 2 * math.prod(SHAPES[op])


def _beside(op: str, M: int) -> int:
    """Bytes besides the matrix: rows in and out, biases, tables."""
    heads = N * H
    return {
        "qkv": M * (2 * D + 4 + 4 * H + 2 * heads + 4 * K * H + 8) + 4 * (N + 2 * K) * H,
        "out": M * (2 * heads + 4 * D + 4 * D + 2 * D) + 8 * D,
        "unembed": M * (2 * D + 4 + 4 * V),
    }[op]


def _name(M: int) -> str:
    return f"20b, {M} token{'s' if M > 1 else ''}"
