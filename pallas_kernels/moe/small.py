"""Small calls: every row of both tuning tables, ragged rows, long sums, tokens that are not routed, experts that nobody chose, an alpha."""

from collections.abc import Callable
import functools

import jax.numpy as jnp
import numpy as np

from pallas_kernels.bench.small import Small
from pallas_kernels.moe import decode, mosaic, reference, reference_decode, tuning
from pallas_kernels.moe.reference import ALPHA
from pallas_kernels.mxfp4.tiles import Tiles, tiled_shapes
from pallas_kernels.routing import ROWS, of_experts

LIMIT = 0.7  # small, so that many values reach it
SCALES = 119  # and up to 122: 2^-8 to 2^-5
SMALL_BLOCKS = tuning.Grouped(0, 8, tuning.Step(2, 1, 2), tuning.Step(3, 3, 2))  # so small that an expert has several
PAIRS = {0: 12, 1: 12, 2: 12, 3: 15, 4: 25, 5: 35, 6: 47}  # row of the table for many tokens -> tokens that fill two of its blocks or more
UNROUTED = ((0, None), (1, 0))  # all of token 0's entries, one of token 1's


def cases() -> list[Small]:
    sizes = [case for tokens in (1, 3) for case in plain(tokens)]
    few = [_few(8, D=192, F=192), _few(16), _few(20, F=192), _few(33, F=192), _few(64)]
    few += [_few(5, E=2, D=960, F=704, among=(0, 1)), _few(3, unrouted=UNROUTED), _few(12, E=8, among=(5, 6), F=192)]
    few += [_few(3, E=7, alpha=1.0)]
    many = [_many(tokens, row=row) for row, tokens in PAIRS.items()]
    return [*sizes, *few, _many(20, D=128, F=128), _many(20, unrouted=UNROUTED, among=(0, 2, 3)), *many]


def plain(tokens: int) -> list[Small]:
    return [_few(tokens), _many(tokens, D=128, F=128)]


def _few(M: int, E: int = 4, D: int = 128, F: int = 128, among: tuple | None = None, unrouted: tuple = (), alpha: float = ALPHA):
    """A decode step's two launches, the second one of another h."""
    A = 2

    def both(gate_up, down, rows, routing, h, up, up_bias, weights, bias):
        there = routing.active[: len(h)] < E
        made = gate_up(rows, routing, up, up_bias, num_active=A, limit=LIMIT, alpha=alpha)
        terms = down(h, routing, weights, bias, num_active=A)
        count = jnp.sum(routing.ranks[:, :M] < A, 0)  # of each token's experts
        planes = jnp.arange(A, dtype=jnp.int32)[:, None] < count[None, :]
        return jnp.where(there[:, None, None], made, 0), jnp.where(planes[:, :, None], terms, 0)

    def arguments():
        rng, draw = _draws()
        experts, gates = _routed(rng, M, E, A, among, unrouted)
        scale = np.full(ROWS, np.nan, np.float32)
        scale[:M] = rng.uniform(0.05, 0.2, M)
        routing = of_experts(jnp.asarray(experts), jnp.asarray(gates), E).replace(scale=scale)
        h = draw(min(M * A, E), M, F)
        return (5 * draw(M, D)).astype(jnp.bfloat16), routing, h.astype(jnp.bfloat16), *_matrices(rng, draw, E, D, F)

    form = lambda name: functools.partial(both, *(functools.partial(f, implementation=name) for f in (decode.gate_up, decode.down)))
    wide = lambda f: lambda x, *args, **options: f(x.astype(jnp.float32), *args, **options)
    exact = functools.partial(both, wide(reference_decode.gate_up), wide(reference_decode.down))
    name = _name(M, E, D, F, among, unrouted) + f", alpha {alpha}" * (alpha != ALPHA)
    return Small("moe.decode", name, M, form("mosaic"), form("xla"), exact, arguments)


def _many(M: int, E: int = 4, D: int = 192, F: int = 192, row: int | None = None, among: tuple | None = None, unrouted=()) -> Small:
    A = 3

    def arguments():
        rng, draw = _draws()
        experts, gates = _routed(rng, M, E, A, among, unrouted)
        return draw(M, D), experts, gates, *_matrices(rng, draw, E, D, F)

    form = lambda dtype: functools.partial(reference.moe, limit=LIMIT, dtype=dtype)
    taken = SMALL_BLOCKS if row is None else tuning.GROUPED[row]
    name = f"{_name(M, E, D, F, among, unrouted)}, blocks of {taken.block}"
    tables = ((tuning, "GROUPED", (taken,)), (tuning, "grouped", lambda pairs: taken))
    run = functools.partial(mosaic.many, limit=LIMIT)
    return Small("moe.grouped", name, M, run, form(jnp.bfloat16), form(jnp.float32), arguments, tables)


def _name(M: int, E: int, D: int, F: int, among: tuple | None, unrouted: tuple) -> str:
    said = f"{M} token{'s' if M > 1 else ''}, {E} experts of {D} x {F}"
    return said + f", {len(among or ())} chosen" * bool(among) + ", some not routed" * bool(unrouted)


def _routed(rng, M: int, E: int, A: int, among: tuple | None, unrouted: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Experts and gates [M, A]."""
    experts = np.stack([rng.permutation(np.arange(E) if among is None else np.array(among))[:A] for _ in range(M)]).astype(np.int32)
    for token, place in unrouted:
        experts[token, slice(None) if place is None else place] = E + 5
    return experts, rng.uniform(0.1, 1, (M, A)).astype(np.float32)


def _matrices(rng, draw: Callable, E: int, D: int, F: int) -> tuple:
    """gate_up's tiles and bias, down's."""

    def tiles(shape, interleaved):
        words, scales = (rng.integers(0, 2**32, shape, np.uint32) for shape in tiled_shapes(shape, interleaved))
        return Tiles(words, (scales & np.uint32(0x03030303)) + np.uint32(SCALES * 0x01010101))

    return tiles((E, 2 * F, D), 2), draw(E, 2 * F), tiles((E, D, F), 1), draw(E, D)


def _draws() -> tuple[np.random.Generator, Callable]:
    rng = np.random.default_rng(0)
    return rng, lambda *shape: rng.standard_normal(shape).astype(np.float32)
