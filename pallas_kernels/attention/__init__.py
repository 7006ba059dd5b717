"""Causal grouped-query attention with sinks and an optional sliding window: over arrays, and over paged caches.

A query at position p sees the keys at positions p - window < k <= p (all k <= p where window is None): `window` counts
the query itself. A sink is one logit per query head that takes part in the maximum and in the denominator of the softmax
and has no value. Scores are scaled by 1/sqrt(H).

Floor of a decode step: every visible key and value is read once, 4 * H bytes per position and kv head in bfloat16; of a long prefill:
4 * H operations per query head and visible pair.
"""

import functools

import jax

from pallas_kernels import dispatch
from pallas_kernels.attention import reference, tuning
from pallas_kernels.attention.fp8_pages import Fp8Pages


def attention(
    q: jax.Array,  # [B, T, N, H]
    k: jax.Array,  # [B, T, K, H]
    v: jax.Array,  # [B, T, K, H]
    sinks: jax.Array,  # [N] float32
    *,
    window: int | None,
    segment_ids: jax.Array | None = None,  # [B, T] int32
    implementation: dispatch.Implementation = None,
) -> jax.Array:  # [B, T, N, H], the queries' dtype
    """Self-attention of whole sequences. Blocked: no [T, T] array exists where T is long. Differentiable. XLA's form only, on any device.

    Args:
      q, k, v: query, key and value heads, after RoPE; one floating dtype.
      sinks: one logit per query head.
      window: keys a query sees, itself included; None for all before it.
      segment_ids: where given, a query sees keys of its own segment only.
      implementation: see `pallas_kernels.dispatch`.
    """
    _check_heads(q, k, v, sinks, window)
    if k.shape[:2] != q.shape[:2]:
        raise ValueError(f"keys must have the queries' batch and length {q.shape[:2]}; got {k.shape[:2]}.")
    if segment_ids is not None and segment_ids.shape != q.shape[:2]:
        raise ValueError(f"segment_ids must have shape {q.shape[:2]}; got {segment_ids.shape}.")
    run = functools.partial(reference.attention, window=window, segment_ids=segment_ids)
    return dispatch.run("attention", implementation, q, k, v, sinks, xla=run)


def paged_attention(
    q: jax.Array,  # [B, T, N, H]
    k_pages: jax.Array | Fp8Pages,  # [P, K, page, H]
    v_pages: jax.Array | Fp8Pages,  # [P, K, page, H]
    table: jax.Array,  # [B, R] int32
    q_positions: jax.Array,  # [B, T] int32
    lengths: jax.Array,  # [B] int32
    sinks: jax.Array,  # [N] float32
    *,
    window: int | None,
    implementation: dispatch.Implementation = None,
) -> jax.Array:  # [B, T, N, H], the queries' dtype
    """Attention of new queries over a paged cache that already holds their own keys.

    Block b of a sequence (positions b*page ... b*page + page - 1) lies in page `table[row, b % R]`. A table with as many
    entries as the sequence has blocks is an ordinary page table; a shorter one is a ring that holds the newest R blocks:

        R = 3, 5 blocks written:   entry 0 -> block 3   entry 1 -> block 4   entry 2 -> block 2

    A query at a position past its row's length (of a row that appends nothing, or padding) gets values that mean nothing, but are
    finite where the pages are; a tile of nothing else reads no page. On a Hopper GPU the call is one launch (where groups of heads are a
    multiple of 8; others are packed before), and a row's result is the same to the bit whatever other rows there are, at a given R and T:
    how its keys are cut into parts that are attended to at once depends on its positions alone.

    Args:
      q: query heads, after RoPE.
      k_pages, v_pages: the pages of one layer. What no query sees of them may be anything, NaN included: what other sequences left there,
        the rest of the newest page. (The kernels take a key that another query of its sequence sees to be finite.) `Fp8Pages` are read as
        the queries' dtype, by XLA's form only.
      table: page of each entry; every entry is a page that exists.
      q_positions: position of each query; a query sees keys at positions up to its own. Those of a row are consecutive:
        q_positions[b, t] = q_positions[b, 0] + t.
      lengths: tokens that each row's cache holds, the queries' own included. A ring must hold every key that a
        window reaches.
      sinks, window, implementation: as for `attention`.
    """
    _check_heads(q, k_pages, v_pages, sinks, window, kv_axis=1)
    if table.shape[0] != q.shape[0] or lengths.shape != q.shape[:1] or q_positions.shape != q.shape[:2]:
        raise ValueError(
            f"table, q_positions and lengths must have {q.shape[0]} rows and q_positions {q.shape[1]} columns; "
            f"got {table.shape}, {q_positions.shape}, {lengths.shape}."
        )

    def kernel():
        from pallas_kernels.attention import mosaic

        return functools.partial(mosaic.paged_attention, window=window), mosaic.covers(q, k_pages, v_pages)

    return dispatch.run(
        "paged_attention",
        implementation,
        *(q, k_pages, v_pages, table, q_positions, lengths, sinks),
        xla=functools.partial(reference.paged_attention, window=window),
        kernel=kernel,
        derived=True,
        kernels=("attention_decode" if q.shape[1] * q.shape[2] // k_pages.shape[1] <= tuning.DECODE_ROWS else "attention_prefill",),
    )


def _check_heads(q, k, v, sinks, window, kv_axis=2):
    N, H, K = q.shape[2], q.shape[3], k.shape[kv_axis]
    if k.shape != v.shape or k.shape[3] != H or N % K or sinks.shape != (N,):
        raise ValueError(
            "query heads must be a multiple of kv heads, with one head width and one sink per query head; "
            f"got q {q.shape}, k {k.shape}, v {v.shape}, sinks {sinks.shape}."
        )
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 (the query itself), or None for full attention; got {window}.")
