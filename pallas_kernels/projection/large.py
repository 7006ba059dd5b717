"""True shapes: every row of the tuning table, the vocabulary's last tile, pages of more than 2^31 bytes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import projection
from pallas_kernels.bench.large import Block, Large, sparse
from pallas_kernels.projection.tuning import tuning

D, K, G, H, V, EPS = 2880, 8, 8, 64, 201_088, 1e-5
C = K * G * H
PAGE, PAGES, MANY_PAGES = 64, 64, 33_000  # of the last: 2.2 GB of keys, and of values
TOKENS = (1, 3, 16, 33, 64)
f32, bf16, i32 = (functools.partial(jax.ShapeDtypeStruct, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16, jnp.int32))


def cases() -> list[Large]:
    few = [case(M) for M in TOKENS for case in (_qkv, _out, _unembed)]
    return [*few, _qkv(3, MANY_PAGES)]


def _name(M: int) -> str:
    return f"{M} token{'s' if M > 1 else ''}"


def _unembed(M: int) -> Large:
    tile = tuning("unembed", M, D).tile

    def operands(blocks: list[Block]):
        draw = _draws()
        w = sparse((V, D), jnp.bfloat16)
        for x, _, _ in blocks:
            rows = w[x * tile : (x + 1) * tile]
            rows[...] = draw(*rows.shape, low=True)
        return [_whole(draw(M, D, low=True)), D * (1 + draw(M) ** 2), w]

    def truth(operands, written):
        x, square_sum, w = operands
        columns = np.flatnonzero(written[0].any(0))
        scale = np.pad(1 / np.sqrt(square_sum / D + EPS), (0, len(x) - M))
        yield 0, (slice(None), columns), _wide(x) @ _wide(w[columns]).T * scale[:, None]

    run = functools.partial(projection.unembed, eps=EPS, implementation="mosaic")
    return Large("projection.unembed", _name(M), "unembed", run, (bf16((M, D)), f32((M,)), bf16((V, D))), operands, truth)


def _out(M: int) -> Large:
    def operands(_):
        draw = _draws()
        return [_whole(draw(M, C, low=True)), draw(D, C, low=True), draw(D), _whole(draw(M, D)), draw(D)]

    def truth(operands, written):
        x, w, bias, residual, gain = operands
        columns = np.flatnonzero(written[0].any(0))
        y = _wide(x) @ _wide(w[columns]).T + bias[columns] + residual[:, columns]
        yield 0, (slice(None), columns), y
        yield 1, (slice(None), columns), y * gain[columns]

    shapes = bf16((M, C)), bf16((D, C)), f32((D,)), f32((M, D)), f32((D,))
    run = functools.partial(projection.project_out, implementation="mosaic")
    return Large("projection.out", _name(M), "project_out", run, shapes, operands, truth)


def _qkv(M: int, pages: int = PAGES) -> Large:
    def operands(_):
        draw, rng = _draws(), np.random.default_rng(1)
        angle = rng.uniform(0, 6, (M, H // 2)).astype(np.float32)
        pools = [sparse((pages * K * PAGE, 2, 4, 8), jnp.bfloat16) for _ in range(2)]
        page = rng.permutation(pages)[:M].astype(np.int32)
        page[0] = pages - 1
        page[1:2] = pages  # not written
        weights = draw(K * (G + 2) * H, D, low=True), draw(K * (G + 2) * H)
        places = page, rng.integers(0, PAGE, M).astype(np.int32)
        turns = _whole(np.cos(angle)), _whole(np.sin(angle))
        return [_whole(draw(M, D, low=True)), D * (1 + draw(M) ** 2), *weights, *turns, *places, *pools]

    def truth(operands, written):
        x, square_sum, w, bias, cos, sin, page, offset, _, _ = operands
        y = _wide(x[:M]) @ _wide(w).T / np.sqrt(square_sum / D + EPS)[:, None] + bias
        a, b = np.moveaxis(y.reshape(M, K, G + 2, 2, H // 2), 3, 0)
        c, s = cos[:M, None, None], sin[:M, None, None]
        turned = np.stack([a * c - b * s, b * c + a * s], 3).reshape(M, K, G + 2, 2, 4, 8)
        for result, seen in enumerate(written):
            if len(seen) == len(x):  # queries; rows behind M are padding
                yield result, (slice(M, None),), None
                heads = turned[:, :, :G].reshape(M, K * G, 2, 4, 8)
                for n in np.flatnonzero(seen[:M].any((0, 2, 3, 4))):
                    at = np.nonzero(seen[0, n])
                    yield result, (slice(0, M), n, *at), heads[:, n][(slice(None), *at)]
            else:
                kinds = y.reshape(M, K, G + 2, 2, 4, 8)[:, :, G + 1] if result == len(written) - 1 else turned[:, :, G]
                for m, k in np.ndindex(M, K):
                    if page[m] < pages and seen[line := (page[m] * K + k) * PAGE + offset[m]].any():
                        at = np.nonzero(seen[line])
                        yield result, (line, *at), kinds[m, k][at]

    pool = bf16((pages, K, PAGE, H))
    tables = f32((M, H // 2)), f32((M, H // 2))
    shapes = bf16((M, D)), f32((M,)), bf16((K, G + 2, H, D)), f32((K, G + 2, H)), *tables, pool, pool, i32((M,)), i32((M,))
    name = _name(M) + f", {2 * pages * K * PAGE * H / 1e9:.1f} GB of keys" * (pages > PAGES)
    run = functools.partial(projection.project_qkv, eps=EPS, implementation="mosaic")
    keys = (11, 0, 0)  # a block of the first kv head's key
    return Large("projection.qkv", name, "project_qkv", run, shapes, operands, truth, more=(keys,))


def _whole(x: np.ndarray) -> np.ndarray:
    """As the kernels take rows: up to 8, or padded to a multiple of 8."""
    return np.pad(x, ((0, 0 if len(x) <= 8 else -len(x) % 8), (0, 0)))


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32)


def _draws():
    rng = np.random.default_rng(0)

    def draw(*shape: int, low: bool = False):
        values = rng.standard_normal(shape, np.float32)
        return values.astype(jnp.bfloat16) if low else values

    return draw
