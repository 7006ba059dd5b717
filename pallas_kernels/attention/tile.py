"""What the attention kernels share: where a tile's rows lie, which blocks of keys they see, and one step of the online softmax.

Query heads that share a kv head are rows of one tile: row = token * G + head in its group. Keys come a page (64) at a time. A tile
moves between global and shared memory in boxes of `box` rows, whose place in shared memory is a multiple of 8 rows, as swizzling wants.
"""

import dataclasses
import math

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import primitives

PAGE = 64
H = 64
LOG2E = math.log2(math.e)
SCALE = H**-0.5 * LOG2E  # scores are powers of 2
LEAST = -1e9  # where a running maximum starts
MASKED = -1e30  # far below it, or a tile that sees nothing would get exp2(0) for its keys


@dataclasses.dataclass(frozen=True)
class Shape:
    """A call's shape.

    Attributes:
        B, T, K, G: batch, tokens, kv heads, query heads each.
        R: entries of the page table.
        window: as in `pallas_kernels.attention`.
    """

    B: int
    T: int
    K: int
    G: int
    R: int
    window: int | None

    @property
    def box(self) -> int:
        """Rows that are neighbours in memory: a group of heads, if that is a multiple of 8 rows."""
        return self.G if self.G % 8 == 0 else 64

    @property
    def boxes(self) -> int:
        """Of all the rows of a sequence and a kv head."""
        return -(-self.T * self.G // self.box)

    def pack(self, q):  # [B, T, N, H] -> [B, boxes, K, box, H]
        """Queries in boxes; no work where a box is a group."""
        tokens = self.box // self.G
        q = jnp.pad(q, ((0, 0), (0, self.boxes * tokens - self.T), (0, 0), (0, 0)))
        q = q.reshape(self.B, self.boxes, tokens, self.K, self.G, H)
        return q.swapaxes(2, 3).reshape(self.B, self.boxes, self.K, self.box, H)

    def unpack(self, rows):  # [B, boxes, K, box, H] -> [B, T, N, H]
        """The inverse of `pack`."""
        tokens = self.box // self.G
        rows = rows.reshape(self.B, self.boxes, self.K, tokens, self.G, H).swapaxes(2, 3)
        return rows.reshape(self.B, self.boxes * tokens, self.K * self.G, H)[:, : self.T]

    def end(self, first, row, rows: int, length):
        """The position behind every key that `rows` rows from `row` on see: none of them looks at what a page holds from there on.

        `first` is the position of the sequence's first query, `length` that of its end.
        """
        return jnp.minimum(jnp.minimum(first + self.T, length), first + jax.lax.div(row + (rows - 1), self.G) + 1)

    def blocks(self, first, row, rows: int, length):
        """Blocks lo .. hi - 1 hold every key that the rows see; none do where these are past the sequence's end. Arguments are `end`'s."""
        oldest, end = first + jax.lax.div(row, self.G), self.end(first, row, rows, length)
        lo = jnp.int32(0) if self.window is None else jax.lax.div(jnp.maximum(oldest - (self.window - 1), 0), PAGE)
        return lo, jnp.where(oldest < end, jax.lax.div(end + (PAGE - 1), PAGE), lo)

    def clear(self, first, row, lo, count):
        """Of the `count` blocks from `lo` on, how many to begin with are seen whole by all rows from `row` on: these want no mask."""
        if self.window is not None:
            return 0
        return jnp.clip(jax.lax.div(first + jax.lax.div(row, self.G) + 1, PAGE) - lo, 0, count)

    def visible(self, first, row, rows: int, block):  # [rows, 64] bool
        """Which keys of a block the rows see."""
        # Few registers: one limit a row, which keys are compared with. Row by key, differences would be kept throughout the loop.
        query = jax.lax.shift_right_logical(primitives.iota((rows,), 0, primitives.ROW) + row, self.G.bit_length() - 1)
        age = jax.lax.broadcast_in_dim(query + (first - block * PAGE), (rows, PAGE), [0]) - primitives.iota((rows, PAGE), 1)
        return age >= 0 if self.window is None else age.astype(jnp.uint32) < self.window  # negative ages are large then


def load_queries(shape: Shape, q, b, k, row, target, arrived) -> None:
    """Fetches a tile's boxes, as many as `target` holds or the call has; past the last one it is fetched again."""
    for i in range(min(target.shape[0] // shape.box, shape.boxes)):
        box = jnp.minimum(jax.lax.div(row, shape.box) + i, shape.boxes - 1)
        plgpu.copy_gmem_to_smem(q.at[b, box, k], target.at[pl.ds(i * shape.box, shape.box)], arrived)


def store_rows(shape: Shape, source, out, b, k, row) -> None:
    """Writes a tile's boxes, those that exist. Waits until shared memory may be given up."""
    plgpu.commit_smem()
    for i in range(min(source.shape[0] // shape.box, shape.boxes)):
        box = jax.lax.div(row, shape.box) + i

        @pl.when(box < shape.boxes)
        def _(i=i, box=box):
            plgpu.copy_smem_to_gmem(source.at[pl.ds(i * shape.box, shape.box)], out.at[b, box, k])

    plgpu.wait_smem_to_gmem(0)


def start(shape: Shape, rows: int, sinks, k, counted=True):
    """The state before any key: weighted values [rows, H], maximum [rows] (of log2), denominator [rows].

    The sinks are the first keys seen, where they are `counted`: of a sequence's parts, one counts them.
    """
    values = primitives.layout_cast(jnp.zeros((rows, H), jnp.float32), plgpu.Layout.WGMMA)
    logit = lambda g: jnp.broadcast_to(jnp.where(counted, sinks[k * shape.G + g] * LOG2E, MASKED), (rows,))
    sink = primitives.layout_cast(logit(0), primitives.ROW)
    for g in range(1, shape.G):  # of a single head no number is made: Mosaic finds no layout for a mask that is all of one value
        head = primitives.iota((rows,), 0, primitives.ROW) & (shape.G - 1)
        sink = jnp.where(head == g, logit(g), sink)
    top = jnp.maximum(sink, LEAST)
    return values, top, jnp.exp2(sink - top)


def scores(q, keys, meanwhile=lambda: None):  # refs [rows, H], [64, H] -> [rows, 64] float32
    """Products of queries and keys. `meanwhile` is called when they are under way."""

    def multiply(accumulator):
        plgpu.wgmma(accumulator, q, keys.T)
        meanwhile()
        return accumulator[...]

    return pl.run_scoped(multiply, plgpu.ACC((q.shape[0], PAGE), jnp.float32))


def clean(values, left) -> None:
    """Zeros for the values [64, H], a ref in shared memory, from row `left` on: those that nobody sees, and that may be anything.

    Their weights are zero, which makes NaN of what is not finite.
    """

    @pl.when(left < PAGE)
    def _():
        primitives.clear_rows(values, left)
        plgpu.commit_smem()


def softmax_step(score, visible, state):
    """The state after a block of scores, its values still to be added, and the weights [rows, 64] bf16 that they get."""
    values, top, denominator = state
    if visible is not None:
        score = jnp.where(visible, score, MASKED)
    higher = jnp.maximum(top, jnp.max(score, 1) * SCALE)
    weights = jnp.exp2(score * SCALE - jax.lax.broadcast_in_dim(higher, score.shape, [0]))
    decay = jnp.exp2(top - higher)
    denominator = denominator * decay + jnp.sum(weights, 1)
    values = values * jax.lax.broadcast_in_dim(decay, values.shape, [0])
    return (values, higher, denominator), weights.astype(jnp.bfloat16)


def loop(step, clear, count, visible, state):
    """The state after blocks 0 ... count - 1, the first `clear` of which want no mask: step(block, its mask or None, state) -> state."""
    if not isinstance(clear, int):
        state = jax.lax.fori_loop(0, clear, lambda j, state: step(j, None, state), state)
    return jax.lax.fori_loop(clear, count, lambda j, state: step(j, visible(j), state), state)


def finish(state):  # [rows, H] float32, [rows] float32
    """Attention's output, and log2 of the denominator; a row that has seen nothing gets a finite value and about `LEAST`."""
    values, top, denominator = state
    denominator = jnp.maximum(denominator, jnp.float32(2.0**-100))
    return values / jax.lax.broadcast_in_dim(denominator, values.shape, [0]), top + jnp.log2(denominator)
