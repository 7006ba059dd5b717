"""MXFP4 rearranged for Hopper's tensor cores: the same bits as published, in the order in which a warpgroup wants them.

A tile is 64 rows by 64 columns: 512 words of 8 codes, 2 KB in one piece. Thread t of a warpgroup owns words 4t .. 4t+3, one
16-byte load; word i holds the 8 codes of its fragment of the wgmma's left operand for columns 16i .. 16i+15:

    thread = warp*32 + g*4 + q     row = warp*16 + half*8 + g     column = 16*i + 8*right + 2*q + pair
    word   = 4 registers (right, half), a register two codes (pair)

Within a word the codes lie so that three instructions or fewer make a register of two bfloat16 values times 2^-126:

    register 0: x & M    1: (x << 3) & M    2: (x << 6) & M    M = 0x81C081C0
    register 3: (x << 1) & 0x80008000 | (x >> 3) & 0x01800180 | (x >> 7) & 0x00400040

A tile's 128 scales are 32 words; word warp*8 + g holds the bytes (row g, columns 0-31), (row g, columns 32-63), and the same of
row g + 8. A matrix whose rows interleave S matrices (S = 2: gate, linear, gate, linear ...) has the S tiles of the same columns
side by side: tile (n, k, s) holds rows (64n ... 64n+63) * S + s.
"""

import flax.struct
import jax
import jax.numpy as jnp

from pallas_kernels.mxfp4 import GROUP, Mxfp4

TILE = 64  # rows and columns
LARGEST_SCALE = 128  # 2^(s - 127) times 2^126 must be a bfloat16
_REGISTERS = 4  # of two bfloat16 values, that a word unpacks to


@flax.struct.dataclass
class Tiles:
    """A packed matrix, or a stack of them, in tiles. A pytree; index and scan its leading axes.

    Attributes:
        words: [..., R/(64 S), K/64, S, 512] uint32.
        scales: [..., R/(64 S), K/64, S, 32] uint32.
    """

    words: jax.Array
    scales: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the unpacked array: [..., R, K]."""
        *stack, rows, columns, interleaved, _ = self.words.shape
        return (*stack, rows * interleaved * TILE, columns * TILE)

    @property
    def ndim(self) -> int:
        """Of the unpacked array."""
        return len(self.shape)

    @property
    def interleaved(self) -> int:
        """S, the number of matrices whose rows alternate."""
        return self.words.shape[-2]


def tiled_shapes(shape: tuple[int, ...], interleaved: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the words and of the scales of a matrix [..., R, K].

    Raises:
        ValueError: R or K cannot be cut into tiles.
    """
    *stack, rows, columns = shape
    if rows % (TILE * interleaved) or columns % TILE:
        raise ValueError(
            f"tiles need a multiple of {TILE * interleaved} rows and of {TILE} columns; got {rows} and {columns}; keep it packed instead."
        )
    tiles = (*stack, rows // (TILE * interleaved), columns // TILE, interleaved)
    return (*tiles, 512), (*tiles, 32)


def to_tiles(packed: Mxfp4, interleaved: int = 1) -> Tiles:
    """The tiles of a packed array [..., R, K]; `from_tiles` gives it back bit for bit.

    Scales over 128 (weights of 4 and more) have no place in a kernel: check with `fits` before.

    Args:
        packed: rows a multiple of 64 * interleaved, columns of 64.
        interleaved: how many matrices' rows alternate.

    Raises:
        ValueError: the shape cannot be cut into tiles.
    """
    words, scales = tiled_shapes(packed.shape, interleaved)
    stack = packed.shape[:-2]
    n = len(stack)
    codes = jnp.stack([packed.blocks & 15, packed.blocks >> 4], -1).astype(jnp.uint32)
    # rows: tile, warp, half, g, s; columns: tile, step, right, q, pair
    codes = codes.reshape(*stack, words[n], 4, 2, 8, interleaved, words[n + 1], 4, 2, 4, 2)
    order = (0, 5, 4, 1, 3, 8, 6, 7, 2, 9)  # tile, tile, s, warp, g, q, step, right, half, pair
    codes = codes.transpose(*range(n), *(n + i for i in order)).reshape(*words, _REGISTERS, 2)
    sign, magnitude = codes >> 3, codes & 7
    low = (
        *((sign[..., r, :] << (15 - 3 * r)) | (magnitude[..., r, :] << (6 - 3 * r)) for r in range(3)),
        (sign[..., 3, :] << 14) | ((magnitude[..., 3, :] >> 1) << 10) | ((magnitude[..., 3, :] & 1) << 13),
    )
    half = low[0] | low[1] | low[2] | low[3]  # [..., 2] of pair
    exponents = packed.scales.astype(jnp.uint32).reshape(*stack, words[n], 4, 2, 8, interleaved, words[n + 1], 2)
    exponents = exponents.transpose(*range(n), *(n + i for i in (0, 5, 4, 1, 3, 2, 6))).reshape(*scales, 4)
    return Tiles(half[..., 0] | (half[..., 1] << 16), _join_bytes(exponents))


def from_tiles(tiles: Tiles) -> Mxfp4:
    """The packed array that `to_tiles` was given."""
    *stack, rows, columns, interleaved, _ = tiles.words.shape
    n, S = len(stack), interleaved
    word = jnp.stack([tiles.words & 0xFFFF, tiles.words >> 16], -1)  # [..., pair]
    codes = [((word >> (15 - 3 * r) & 1) << 3) | (word >> (6 - 3 * r) & 7) for r in range(3)]
    codes.append(((word >> 14 & 1) << 3) | ((word >> 10 & 3) << 1) | (word >> 13 & 1))
    codes = jnp.stack(codes, -2).astype(jnp.uint8)  # [..., register, pair]
    codes = codes.reshape(*stack, rows, columns, S, 4, 8, 4, 4, 2, 2, 2)  # tile, tile, s, warp, g, q, step, right, half, pair
    order = (0, 3, 8, 4, 2, 1, 6, 7, 5, 9)  # tile, warp, half, g, s, tile, step, right, q, pair
    packed = (*stack, rows * S * TILE, columns * TILE // GROUP)
    codes = codes.transpose(*range(n), *(n + i for i in order)).reshape(*packed, GROUP // 2, 2)
    exponents = jnp.stack([tiles.scales >> shift & 0xFF for shift in (0, 8, 16, 24)], -1).astype(jnp.uint8)
    exponents = exponents.reshape(*stack, rows, columns, S, 4, 8, 2, 2)  # tile, tile, s, warp, g, half, group
    exponents = exponents.transpose(*range(n), *(n + i for i in (0, 3, 5, 4, 2, 1, 6))).reshape(packed)
    return Mxfp4(codes[..., 0] | (codes[..., 1] << 4), exponents)


def fits(packed: Mxfp4) -> jax.Array:  # [] bool
    """Whether the kernels can take this array: every scale is at most 2^1."""
    return jnp.max(packed.scales) <= LARGEST_SCALE


def _join_bytes(x: jax.Array) -> jax.Array:
    """[..., 4] uint32 below 256 -> [...] uint32, the first one lowest."""
    return x[..., 0] | (x[..., 1] << 8) | (x[..., 2] << 16) | (x[..., 3] << 24)
