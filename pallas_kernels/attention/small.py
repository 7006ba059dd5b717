"""Small calls: parts of a sequence and one part, pages that end early, rings, windows, groups of 1 to 64 heads, tiles that are padding."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import paged_attention, reference, tuning
from pallas_kernels.bench.small import Small

H = PAGE = 64
FILLER = 50  # what pages hold where no sequence wrote
SMALL_TILES = (tuning, "PREFILL", dataclasses.replace(tuning.PREFILL, rows=64))
ONE_BLOCK_OF_TILES = ((tuning, "DECODE_ROWS", 1024), (tuning, "DECODE", (tuning.Decode(1 << 31, 2),)))


def cases() -> list[Small]:
    decode = [
        _case("pages that end early", (1, 63, 64, 65, 200)),
        _case("a window", (700, 30), window=300),
        _case("a window within a page", (300, 66), window=7),
        _case("a ring", (127, 191, 300), window=128, entries=3),
        _case("2 tokens, a window", (300,), tokens=2, window=65),
        _case("parts", (1, 130, 700)),
        _case("parts, 3 tokens, 16 heads", (66, 520), tokens=3, groups=16, sinks=5.0),
        _case("2 warpgroups", (257, 2150), entries=35),
        _case("lengths that end before", (150, 120, 200), entries=4, fewer=(0, 1, 0)),
        _case("several tiles", (17, 300), tokens=17, tables=ONE_BLOCK_OF_TILES),
        _case("1 head a group", (128, 190), groups=1, kv_heads=3),
        _case("parts, 1 head a group", (700,), groups=1),
        *(_case(f"{groups} heads a group", (130, 70), groups=groups, kv_heads=2 if groups < 8 else 1) for groups in (2, 4, 32, 64)),
    ]
    prefill = [
        _case("after a past", (40, 150, 333), tokens=40),
        _case("a ring, a window", (300, 64), tokens=40, window=64, entries=3),
        _case("1 head a group", (230,), tokens=130, groups=1, sinks=6.0),
        _case("2 heads a group", (230,), tokens=70, groups=2, sinks=6.0),
        _case("more pages than stages", (500,), tokens=20),
        _case("a window, 2 kv heads", (400,), tokens=40, window=128, kv_heads=2),
        _case("padding", (150, 120, 200), tokens=33, window=70, entries=4, fewer=(3, 20, 33), tables=(SMALL_TILES,)),
    ]
    return [*plain(1), *decode, *plain(16), *prefill]


def plain(tokens: int) -> list[Small]:
    """A sequence of so many tokens, of which the last one is attended, and all of them are."""
    return [_case("plain", (130,) if tokens == 1 else (tokens,)), *([_case("plain", (tokens + 20,), tokens=tokens)] if tokens > 8 else [])]


def _case(
    what: str,
    lengths: tuple[int, ...],
    *,
    tokens: int = 1,
    window: int | None = None,
    groups: int = 8,
    kv_heads: int = 1,
    entries: int | None = None,
    sinks: float = 0.0,
    fewer: tuple[int, ...] | None = None,
    tables: tuple = (),
) -> Small:
    """Rows which have just appended `tokens`, or `fewer` than these."""
    most = next((value for _, name, value in tables if name == "DECODE_ROWS"), tuning.DECODE_ROWS)
    real = lambda op: functools.partial(_real, functools.partial(op, window=window))
    wide = lambda *args, **options: reference.paged_attention(*(x.astype(jnp.float32) for x in args[:3]), *args[3:], **options)
    return Small(
        op="attention.prefill" if tokens * groups > most else "attention.decode",
        name=f"{what}, {', '.join(map(str, lengths))} keys",
        tokens=tokens if tokens > 1 else len(lengths),
        run=real(functools.partial(paged_attention, implementation="mosaic")),
        xla=real(functools.partial(paged_attention, implementation="xla")),
        reference=real(wide),
        arguments=functools.partial(_arguments, lengths, tokens, groups, kv_heads, entries, sinks, fewer),
        tables=tables,
    )


def _real(op, q, k_pages, v_pages, table, positions, lengths, sinks):
    out = op(q, k_pages, v_pages, table, positions, lengths, sinks)
    return jnp.where((positions < lengths[:, None])[:, :, None, None], out, 0)


def _arguments(lengths, tokens: int, groups: int, kv_heads: int, entries: int | None, sinks: float, fewer) -> tuple:
    rng, B, N = np.random.default_rng(0), len(lengths), groups * kv_heads
    draw = lambda *shape, scale=1.0: rng.normal(0, scale, shape).astype(np.float32)
    longest = max(lengths)
    R = -(-longest // PAGE) if entries is None else entries
    table = rng.permutation(B * R + 2)[: B * R].astype(np.int32).reshape(B, R)
    pages = [np.full((B * R + 2, kv_heads, PAGE, H), FILLER, np.float32) for _ in range(2)]
    for pool in pages:
        new = draw(B, longest, kv_heads, H)
        for row, length in enumerate(lengths):
            for block in range(-(-length // PAGE)):
                part = new[row, block * PAGE : min(length, (block + 1) * PAGE)]
                pool[table[row, block % R], :, : len(part)] = part.swapaxes(0, 1)
    ends = np.array(lengths, np.int32)
    positions = ends[:, None] - tokens + np.arange(tokens, dtype=np.int32)[None, :]
    low = lambda x: x.astype(jnp.bfloat16)
    held = ends if fewer is None else ends - np.array(fewer, np.int32)
    return low(draw(B, tokens, N, H, scale=2)), *map(low, pages), table, positions, held, draw(N) + np.float32(sinks)
