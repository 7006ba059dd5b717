"""Attention over a paged cache on a Hopper GPU: which kernel runs, and how the parts of a split sequence come together."""

import functools

import jax.numpy as jnp

from pallas_kernels.attention import mosaic_decode, tile, tuning
from pallas_kernels.attention.tile import PAGE, H, Shape


def covers(q, k_pages, v_pages) -> str | None:
    """Why the kernels do not cover a call; None where they do."""
    if {q.dtype, k_pages.dtype, v_pages.dtype} != {jnp.dtype(jnp.bfloat16)}:
        return f"queries and pages must be bfloat16; got {q.dtype.name}, {k_pages.dtype.name}, {v_pages.dtype.name}"
    if q.shape[3] != H or k_pages.shape[2] != PAGE:
        return f"heads must be {H} wide and pages hold {PAGE} positions; got {q.shape[3]} and {k_pages.shape[2]}"
    group = q.shape[2] // k_pages.shape[1]
    if 64 % group:
        return f"query heads per kv head must divide 64; got {group}"
    return None


def paged_attention(q, k_pages, v_pages, table, q_positions, lengths, sinks, *, window):
    B, T, N, _ = q.shape
    K, R = k_pages.shape[1], table.shape[1]
    shape = Shape(B, T, K, N // K, R, window)
    keys = R * PAGE if window is None else min(R * PAGE, window + T - 1)
    row = tuning.decode(keys)
    arguments = (shape.pack(q), k_pages, v_pages, table, q_positions, lengths, sinks.astype(jnp.float32))
    if row.splits == 1:
        return shape.unpack(mosaic_decode.attend(shape, row, *arguments))
    return combine(shape, *mosaic_decode.attend(shape, row, *arguments), sinks)


def combine(shape: Shape, outputs, logarithms, sinks):  # [B, T, N, H] bf16
    """The splits' outputs, weighted by their denominators, and the sinks joined. Written so that XLA makes one loop of it.

    Args:
      outputs: [S, B, boxes, K, box, H] float32.
      logarithms: [S, B, K, tiles, 64] float32, of base 2.
      sinks: [N] float32.
    """
    B, T, K, G = shape.B, shape.T, shape.K, shape.G
    # Everything has the result's shape from the start: XLA would compute a smaller array, such as the maximum, in a loop of its own.
    full = lambda x: jnp.broadcast_to(x[..., None], (B, T, K * G, H))
    logs = [x.reshape(B, K, -1)[:, :, : T * G].reshape(B, K, T, G).swapaxes(1, 2).reshape(B, T, K * G) for x in logarithms]
    logs = [full(x) for x in logs]
    sink = full(jnp.broadcast_to((sinks.astype(jnp.float32) * tile.LOG2E)[None, None, :], (B, T, K * G)))
    top = functools.reduce(jnp.maximum, logs, sink)
    denominator, value = jnp.exp2(sink - top), jnp.zeros_like(top)
    for log, output in zip(logs, outputs, strict=True):
        seen = log > tile.LEAST / 2
        weight = jnp.where(seen, jnp.exp2(log - top), 0.0)
        denominator = denominator + weight
        value = value + jnp.where(seen, weight * shape.unpack(output), 0.0)
    return (value / denominator).astype(jnp.bfloat16)
