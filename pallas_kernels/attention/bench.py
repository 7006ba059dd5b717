"""What to time: attention over a paged cache at gpt-oss-20b's shapes, which are the 120b's, and XLA's way to the same.

Of a window's few keys, the L2 cache would keep what a launch reads: a case of decoding runs the launches of several such layers, each with
its own pages.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.attention import paged_attention, reference
from pallas_kernels.bench import Case

N, K, H, PAGE, WINDOW = 64, 8, 64, 64, 128
WINDOW_LAYERS = 8
CHUNK = 512  # new tokens that a ring has room for, in decoding
CONTEXTS = {1024: (1, 4, 16, 64, 256), 8192: (1, 4, 16, 64, 256), 131_072: (1, 4, 16)}  # to batches with up to 4.3 GB of keys and values
CHUNKS = ((1024, 0), (8192, 0), (8192, 8192))  # new tokens, tokens before


def cases() -> list[Case]:
    """Ours for both kinds of layers; XLA's form for a few."""
    out = [_decode(B, length, None) for length, batches in CONTEXTS.items() for B in batches]
    out += [_decode(B, 8192, WINDOW) for B in CONTEXTS[8192]]
    out += [_prefill(T, past, window) for window in (None, WINDOW) for T, past in CHUNKS]
    out += [_decode(B, 8192, window, "xla") for B, window in ((1, None), (16, None), (64, None), (16, WINDOW))]
    return out + [_prefill(T, past, None, "xla") for T, past in CHUNKS[:2]]


def _decode(B: int, length: int, window: int | None, implementation: str = "mosaic") -> Case:
    name = f"20b, batch {B}, {length // 1024}k context"
    return _case("decode", name, B, 1, length - 1, window, implementation)


def _prefill(T: int, past: int, window: int | None, implementation: str = "mosaic") -> Case:
    return _case("prefill", f"20b, {T // 1024}k tokens after {past // 1024}k", 1, T, past, window, implementation)


def _case(op: str, name: str, B: int, T: int, past: int, window: int | None, implementation: str) -> Case:
    layers = WINDOW_LAYERS if window and T == 1 else 1
    pairs = sum(min(past + t + 1, window or past + T) for t in range(T))
    keys = min(past + T, past + T if window is None else window - 1 + T)  # that some query sees
    options = {"window": window}
    return Case(
        op=f"attention.{op}" if implementation == "mosaic" else f"attention.{op}.{implementation}",
        name=name if window is None else f"{name}, window {window}",
        run=functools.partial(_each, functools.partial(paged_attention, implementation=implementation, **options)),
        reference=functools.partial(_each, functools.partial(_exact, **options)),
        arguments=functools.partial(_arguments, B, T, past, window, layers),
        bytes=layers * B * (4 * H * K * keys + 4 * H * N * T),
        flops=layers * B * 4 * H * N * pairs,
    )


def _each(op, q, pools, *rest) -> list:
    """One layer after the other."""
    out = []
    for pages in pools:
        y = op(q, *pages, *rest)
        q, y = jax.lax.optimization_barrier((q, y))
        out.append(y)
    return out


def _exact(q, k_pages, v_pages, *rest, **options):
    return reference.paged_attention(*(x.astype(jnp.float32) for x in (q, k_pages, v_pages)), *rest, **options)


def _arguments(B: int, T: int, past: int, window: int | None, layers: int, key):
    blocks = -(-(past + T) // PAGE)
    if window is not None:
        blocks = min(blocks, -(-(window - 1 + max(T, CHUNK)) // PAGE) + 1)
    keys = jax.random.split(key, 3 + 2 * layers)
    q, *pages = (jax.random.normal(k, shape, jnp.bfloat16) for k, shape in zip(keys[2:], _shapes(B, T, blocks, layers), strict=True))
    table = jax.random.permutation(keys[0], B * blocks).astype(jnp.int32).reshape(B, blocks)
    positions = jnp.broadcast_to(past + jnp.arange(T, dtype=jnp.int32), (B, T))
    lengths = jnp.full(B, past + T, jnp.int32)
    pools = list(zip(pages[::2], pages[1::2], strict=True))
    return q, pools, table, positions, lengths, jax.random.normal(keys[1], (N,))


def _shapes(B: int, T: int, blocks: int, layers: int) -> list[tuple[int, ...]]:
    """Of the queries, and of each layer's pages of keys and of values."""
    return [(B, T, N, H)] + 2 * layers * [(B * blocks, K, PAGE, H)]
