"""Small calls: every row of the tuning table, tiles of which the last is a part, ragged rows, long sums, rows that are not cached."""

from collections.abc import Callable
import functools

import jax.numpy as jnp
import numpy as np

from pallas_kernels import projection
from pallas_kernels.bench.small import Small
from pallas_kernels.projection import reference

EPS = 1e-5
H, PAGES, PAGE = 64, 20, 16
DROPPED = (PAGES, PAGES + 7, 2**30)  # pages that there are not: such a row is not written
SIZES = (1, 5, 16, 33, 64)


def cases() -> list[Small]:
    sizes = [case for tokens in SIZES for case in plain(tokens)]
    long = [_qkv(3, D=1728, K=1, G=1), _out(3, C=4096, D=64), _unembed(3, D=2880, V=64)]
    return [*sizes, *long, _qkv(6, dropped=DROPPED), _qkv(3, K=1, G=1, dropped=3 * DROPPED[:1])]


def plain(tokens: int) -> list[Small]:
    """Of queries 11 blocks, the last one with two groups of pairs; 6 blocks of the others, or 3, the last one a part."""
    return [_qkv(tokens), _out(tokens), _unembed(tokens)]


def _qkv(M: int, D: int = 192, K: int = 2, G: int = 2, dropped: tuple = ()) -> Small:
    def arguments():
        draw, low = _draws()
        x, angle = draw(M, D), np.random.default_rng(1).uniform(0, 6, (M, H // 2)).astype(np.float32)
        page = np.arange(M, dtype=np.int32) % PAGES
        page[1 : 2 * len(dropped) : 2] = dropped[: len(page[1 : 2 * len(dropped) : 2])]
        if len(dropped) == M:
            page[:] = dropped
        offset = (3 + np.arange(M, dtype=np.int32) + np.arange(M, dtype=np.int32) // PAGES) % PAGE  # no two rows of a page in one place
        tables = draw(K, G + 2, H), 1.3 * np.cos(angle), 1.3 * np.sin(angle)
        pages = low(PAGES, K, PAGE, H), low(PAGES, K, PAGE, H)
        return x.astype(jnp.bfloat16), np.sum(x * x, -1), low(K, G + 2, H, D), *tables, *pages, page, offset

    name = f"{_tokens(M)}, {D} columns, {K} kv heads" + f", {len(dropped)} not cached" * bool(dropped)
    return _case("qkv", name, M, functools.partial(projection.project_qkv, eps=EPS), reference.project_qkv, arguments, eps=EPS)


def _out(M: int, C: int = 192, D: int = 128) -> Small:
    def arguments():
        draw, low = _draws()
        return low(M, C), low(D, C), draw(D), draw(M, D), draw(D)

    return _case("out", f"{_tokens(M)}, {C} columns", M, projection.project_out, reference.project_out, arguments)


def _unembed(M: int, D: int = 192, V: int = 128) -> Small:
    def arguments():
        draw, low = _draws()
        x = draw(M, D)
        return x.astype(jnp.bfloat16), np.sum(x * x, -1), low(V, D)

    name = f"{_tokens(M)}, {D} columns"
    return _case("unembed", name, M, functools.partial(projection.unembed, eps=EPS), reference.unembed, arguments, eps=EPS)


def _case(op: str, name: str, M: int, ours: Callable, formula: Callable, arguments: Callable, **options) -> Small:
    return Small(
        op=f"projection.{op}",
        name=name,
        tokens=M,
        run=functools.partial(ours, implementation="mosaic"),
        xla=functools.partial(ours, implementation="xla"),
        reference=lambda *args: formula(*(a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a for a in args), **options),
        arguments=arguments,
    )


def _draws() -> tuple[Callable, Callable]:
    """Of random arrays in float32 and in bfloat16."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return draw, lambda *shape: draw(*shape).astype(jnp.bfloat16)


def _tokens(M: int) -> str:
    return f"{M} token{'s' if M > 1 else ''}"
