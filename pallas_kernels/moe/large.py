"""True shapes: every row of both tuning tables, 32 and 128 experts; of these only those are filled that the blocks read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.bench.large import Block, Large, sparse
from pallas_kernels.moe import decode, mosaic_grouped, reference, tuning
from pallas_kernels.moe.grouping import most_blocks
from pallas_kernels.mxfp4 import unpack
from pallas_kernels.mxfp4.tiles import TILE, Tiles, from_tiles, tiled_shapes
from pallas_kernels.routing import ROWS, Routing, of_experts

D = F = 2880
A, LIMIT = 4, 7.0
EXPERTS = {"20b": 32, "120b": 128}
TOKENS = (1, 3, 16, 24, 33, 64)
SCALES = 118  # and up to 121: 2^-9 to 2^-6
f32, bf16, i32, u32 = (functools.partial(jax.ShapeDtypeStruct, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint32))


def cases() -> list[Large]:
    few = [case(model, M) for model in EXPERTS for M in TOKENS for case in (_gate_up, _down)]
    tokens = {"20b": (64, 96, 144, 256, 350, 1024, 8192), "120b": (256, 1024)}  # of 20b one for each row of the table
    return few + [case(model, M) for model, each in tokens.items() for M in each for case in (_gate_up_grouped, _down_grouped)]


def _name(model: str, M: int) -> str:
    return f"{model}, {M} token{'s' if M > 1 else ''}"


def _gate_up(model: str, M: int) -> Large:
    E = EXPERTS[model]
    tiles = _tiles((E, 2 * F, D), 2)
    run = functools.partial(decode.gate_up, num_active=A, limit=LIMIT, implementation="mosaic")
    shapes = bf16((M, D)), _routing_shapes(E), tiles, f32((E, 2 * F))

    def operands(blocks: list[Block]):
        rng, draw = _draws()
        routing = _routing(E, M)
        weights = _weights(rng, tiles, {int(routing.active[y]) for _, y, _ in blocks} - {E})
        scale = np.full(ROWS, np.nan, np.float32)
        scale[:M] = rng.uniform(0.5, 2, M)
        rows = _whole(draw(M, D).astype(jnp.bfloat16), 0)
        return [rows, routing.active, scale, *_halves(weights), draw(E, F, 2)]

    def truth(operands, written):
        rows, active, scale, words, scales, bias = operands
        for slot in np.flatnonzero(written[0].any((1, 2))):
            columns = np.flatnonzero(written[0][slot].any(0))
            w = _expert(tiles, words, scales, active[slot]).reshape(F, 2, D)[columns]
            y = np.einsum("md,fsd->mfs", rows[:M].astype(np.float32), w, optimize=True) * scale[:M, None, None]
            yield 0, np.ix_([slot], range(M), columns), _swiglu(y + bias[active[slot], columns])[None]
        yield 0, (slice(None), slice(M, None)), None

    return Large("moe.gate_up", _name(model, M), "moe_gate_up", run, shapes, operands, truth, more=(_last(E, M),))


def _down(model: str, M: int) -> Large:
    E = EXPERTS[model]
    S, tiles = min(M * A, E), _tiles((E, D, F), 1)
    run = functools.partial(decode.down, num_active=A, implementation="mosaic")
    shapes = bf16((S, M, F)), _routing_shapes(E), tiles, f32((E, D))

    def operands(blocks: list[Block]):
        rng, draw = _draws()
        routing = _routing(E, M)
        weights = _weights(rng, tiles, {int(routing.active[y]) for _, y, _ in blocks} - {E})
        h = _whole(draw(S, M, F).astype(jnp.bfloat16), 1)
        return [h, routing.active, routing.gates, routing.ranks, *_halves(weights), draw(E * D)]

    def truth(operands, written):
        h, active, gates, ranks, words, scales, bias = operands
        for slot, e in enumerate(active[:S]):
            if e == E or not words[e].any():  # nobody filled it
                continue
            w = _expert(tiles, words, scales, e)
            for m in np.flatnonzero(ranks[e, :M] < A):
                columns = np.flatnonzero(written[0][ranks[e, m], m])
                yield 0, (ranks[e, m], m, columns), gates[e, m] * (w[columns] @ h[slot, m].astype(np.float32) + bias[e * D + columns])

    return Large("moe.down", _name(model, M), "moe_down", run, shapes, operands, truth, more=(_last(E, M),))


def _gate_up_grouped(model: str, M: int) -> Large:
    return _grouped("gate_up", model, M, 2, bf16, _swiglu)


def _down_grouped(model: str, M: int) -> Large:
    return _grouped("down", model, M, 1, f32, lambda y: y[..., 0])


def _grouped(op: str, model: str, M: int, S: int, dtype, finish) -> Large:
    E, row = EXPERTS[model], tuning.grouped(M * A / EXPERTS[model])
    blocks, block, tiles = most_blocks(M * A, E, row.block), row.block, _tiles((E, S * F, D), S)
    options = {"block": block, "step": getattr(row, op)} | ({"limit": LIMIT, "alpha": reference.ALPHA} if op == "gate_up" else {})
    run = functools.partial(getattr(mosaic_grouped, op), **options)
    shapes = bf16((blocks * block, D)), i32((blocks,)), tiles, f32((E, S * F))

    def operands(sample: list[Block]):
        rng, draw = _draws()
        expert = np.sort(rng.integers(0, E, blocks)).astype(np.int32)
        expert[-1:] = E  # of no expert
        weights = _weights(rng, tiles, {int(expert[y]) for _, y, _ in sample} - {E})
        stack = (E, F // TILE)
        flat = weights.words.reshape(*stack, -1, 128), weights.scales.reshape(*stack, -1)
        return [expert, *flat, draw(E, F, S), draw(blocks * block, D).astype(jnp.bfloat16)]

    def truth(operands, written):
        expert, words, scales, bias, rows = operands
        for b in np.flatnonzero(written[0].reshape(blocks, block, F).any((1, 2))):
            here = slice(b * block, (b + 1) * block)
            columns = np.flatnonzero(written[0][here].any(0))
            w = _expert(tiles, words, scales, expert[b]).reshape(F, S, D)[columns]
            y = np.einsum("md,fsd->mfs", rows[here].astype(np.float32), w, optimize=True) + bias[expert[b], columns]
            yield 0, (here, columns), finish(y)

    name = f"{_name(model, M)}, blocks of {block}"
    tall = (0, max(0, blocks - 2), 0)  # of the last expert there is
    return Large("moe.grouped", f"{op}, {name}", f"moe_{op}_grouped", run, shapes, operands, truth, more=(tall,))


def _swiglu(y: np.ndarray) -> np.ndarray:
    return np.asarray(reference.swiglu(y.reshape(*y.shape[:-2], -1), LIMIT, reference.ALPHA))


def _tiles(shape: tuple[int, int, int], interleaved: int) -> Tiles:
    return Tiles(*map(u32, tiled_shapes(shape, interleaved)))


def _weights(rng, tiles: Tiles, experts: set[int]) -> Tiles:
    """Of which these experts are filled."""
    words, scales = sparse(tiles.words.shape, np.uint32), sparse(tiles.scales.shape, np.uint32)
    for e in sorted(experts):
        words[e] = rng.integers(0, 1 << 32, words[e].shape, np.uint32)
        scales[e] = (rng.integers(0, 1 << 32, scales[e].shape, np.uint32) & 0x03030303) + np.uint32(SCALES * 0x01010101)
    return Tiles(words, scales)


def _halves(tiles: Tiles) -> list[np.ndarray]:
    E, N, chunks, S, _ = tiles.words.shape
    return [a.reshape(E, N, 2 * chunks, S, a.shape[-1] // 2) for a in (tiles.words, tiles.scales)]


def _expert(tiles: Tiles, words, scales, e: int) -> np.ndarray:
    """Its matrix in float32."""
    own = Tiles(words[e].reshape(tiles.words.shape[1:]), scales[e].reshape(tiles.scales.shape[1:]))
    return np.asarray(unpack(from_tiles(own), jnp.float32))


def _routing_shapes(E: int) -> Routing:
    return Routing(f32((E, ROWS)), i32((E, ROWS)), i32((-(-E // ROWS) * ROWS,)), f32((ROWS,)))


def _choice(E: int, M: int) -> np.ndarray:  # [M, A]
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(E)[:A] for _ in range(M)]).astype(np.int32)


def _last(E: int, M: int) -> Block:
    """The first block of the last expert that a token is routed to."""
    return (0, len(np.unique(_choice(E, M))) - 1, 0)


def _routing(E: int, M: int) -> Routing:
    gates = np.random.default_rng(1).dirichlet(np.ones(A), M).astype(np.float32)
    return jax.tree.map(np.asarray, of_experts(jnp.asarray(_choice(E, M)), jnp.asarray(gates), E))


def _whole(x: np.ndarray, axis: int) -> np.ndarray:
    """As the kernels take tokens: up to 8, or padded to a multiple of 8."""
    pad = 0 if x.shape[axis] <= 8 else -x.shape[axis] % 8
    return np.pad(x, [(0, pad if i == axis else 0) for i in range(x.ndim)])


def _draws():
    rng = np.random.default_rng(0)
    return rng, lambda *shape: rng.standard_normal(shape, np.float32)
