"""Attention over a paged cache on a Hopper GPU: which kernel runs, and on what."""

import jax.numpy as jnp

from pallas_kernels.attention import mosaic_decode, mosaic_prefill, tuning
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
    arguments = (shape.pack(q), k_pages, v_pages, table, q_positions, lengths, sinks.astype(jnp.float32))
    if T * shape.G > tuning.DECODE_ROWS:
        return shape.unpack(mosaic_prefill.attend(shape, tuning.PREFILL, *arguments))
    keys = R * PAGE if window is None else min(R * PAGE, window + T - 1)
    return shape.unpack(mosaic_decode.attend(shape, tuning.decode(keys), *arguments))
