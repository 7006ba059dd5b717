"""True shapes: contexts of 1k, 8k and 128k, pages of more than 2^31 bytes, windows in their rings, prompts of 1k and behind 8k."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import paged_attention
from pallas_kernels.bench.large import Block, Large, sparse

K, G, H, PAGE, WINDOW = 8, 8, 64, 64, 128
RING = 11  # entries of a window's table, with chunks of 512
f32, bf16, i32 = (functools.partial(jax.ShapeDtypeStruct, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16, jnp.int32))


def cases() -> list[Large]:
    decode = [_case(B, 1, length, None) for B, length in ((1, 1000), (16, 1024), (1, 8192), (64, 8000), (1, 131_072), (17, 131_072))]
    windows = [_case(B, 1, 8192, WINDOW) for B in (1, 64)]
    return [*decode, *windows, *(_case(1, 1024, length, window) for length in (1024, 9000) for window in (None, WINDOW))]


def _case(B: int, T: int, length: int, window: int | None) -> Large:
    """Rows that have just appended T tokens."""
    R = -(-length // PAGE) if window is None else RING + (T > 512) * 8
    pages = B * R + 1
    shapes = (
        *(bf16((B, T, K * G, H)), bf16((pages, K, PAGE, H)), bf16((pages, K, PAGE, H))),
        *(i32((B, R)), i32((B, T)), i32((B,)), f32((K * G,))),
    )
    run = functools.partial(paged_attention, window=window, implementation="mosaic")
    op = "decode" if T == 1 else "prefill"
    name = (f"batch {B}, " if T == 1 else f"{T} tokens, ") + f"{length:,} keys" + f", window {window}" * (window is not None)
    pool = 2 * pages * K * PAGE * H
    name += f", {pool / 1e9:.1f} GB of keys" * (pool > 1 << 31)
    made, true = functools.partial(_operands, B, T, length, window, R), functools.partial(_truth, length, window)
    return Large(f"attention.{op}", name, f"attention_{op}", run, shapes, made, true)


def _operands(B: int, T: int, length: int, window: int | None, R: int, blocks: list[Block]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    table = (1 + rng.permutation(B * R)).astype(np.int32).reshape(B, R)
    pools = [sparse((B * R + 1, K, PAGE, H), jnp.bfloat16) for _ in range(2)]
    oldest = 0 if window is None else max(0, length - T - window + 1) // PAGE
    for b, k in {(z, y) if T == 1 else (y, x) for x, y, z in blocks}:
        for block in range(oldest, -(-length // PAGE)):
            for pool in pools:
                pool[table[b, block % R], k] = rng.standard_normal((PAGE, H), np.float32)
    q = (2 * rng.standard_normal((B, T, K, G, H), np.float32)).astype(jnp.bfloat16)
    lengths = np.full(B, length, np.int32)
    positions = lengths[:, None] - T + np.arange(T, dtype=np.int32)
    return [q, *pools, table, positions, lengths, rng.standard_normal(K * G).astype(np.float32)]


def _truth(length: int, window: int | None, operands, written):
    q, k_pages, v_pages, table, positions, _, sinks = operands
    R = table.shape[1]
    yield from ((i, (), None) for i in range(1, len(written)))  # what parts tell each other
    for b, k in np.argwhere(written[0].any((1, 3, 4))):
        tokens = np.flatnonzero(written[0][b, :, k].any((1, 2)))
        oldest = 0 if window is None else max(0, int(positions[b, tokens[0]]) - window + 1) // PAGE
        pages = table[b, np.arange(oldest, -(-length // PAGE)) % R]
        keys, values = (pool[pages, k].reshape(-1, H).astype(np.float32) for pool in (k_pages, v_pages))
        age = positions[b, tokens][:, None] - (oldest * PAGE + np.arange(len(keys)))[None, :]
        seen = (age >= 0) & (age < (window or length))
        scores = np.einsum("tgh,sh->tgs", q[b, tokens, k].astype(np.float32), keys) * H**-0.5
        scores = np.where(seen[:, None], scores, -np.inf)
        sink = sinks[k * G : (k + 1) * G][None, :, None]
        top = np.maximum(scores.max(-1, keepdims=True), sink)
        weights = np.exp(scores - top)
        total = weights.sum(-1, keepdims=True) + np.exp(sink - top)
        yield 0, (b, tokens, k), np.einsum("tgs,sh->tgh", weights / total, values)
