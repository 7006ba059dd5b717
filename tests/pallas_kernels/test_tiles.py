"""MXFP4 in tiles: the same bits in another order, and the instructions that unpack them."""

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import ptx
import pytest

from pallas_kernels.mxfp4 import Mxfp4, dequantize
from pallas_kernels.mxfp4.tiles import Tiles, fits, from_tiles, tiled_shapes, to_tiles

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
there, back = jax.jit(to_tiles, static_argnums=1), jax.jit(from_tiles)


def draw(*shape, seed=0, largest=128):
    """Random codes and scales, from the least scale whose values are all normal numbers (some libraries round others to 0)."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // 32, 16), np.uint8)
    return Mxfp4(blocks, rng.integers(2, largest + 1, blocks.shape[:-1]).astype(np.uint8))


@pytest.mark.thorough
@hypothesis.settings(max_examples=12, deadline=None)
@hypothesis.given(st.lists(st.integers(1, 3), max_size=2), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2]), st.integers(0, 9))
def test_there_and_back_changes_no_bit(stack, rows, columns, interleaved, seed):
    packed = draw(*stack, 64 * rows * interleaved, 64 * columns, seed=seed, largest=255)
    tiles = there(packed, interleaved)
    assert tiles.shape == packed.shape and tiles.ndim == packed.ndim and tiles.interleaved == interleaved
    assert (tiles.words.shape, tiles.scales.shape) == tiled_shapes(packed.shape, interleaved)
    assert tiles.words.nbytes + tiles.scales.nbytes == packed.blocks.nbytes + packed.scales.nbytes
    for a, b in zip(jax.tree.leaves(back(tiles)), jax.tree.leaves(packed), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("interleaved", [1, 2])
def test_every_word_unpacks_to_its_thread_s_values(interleaved):
    """The PTX that the kernels carry, emulated on the words of a whole matrix, against the values that the format defines."""
    packed = draw(2, 128 * interleaved, 192)
    tiles = jax.tree.map(np.asarray, there(packed, interleaved))
    codes = np.stack([packed.blocks & 15, packed.blocks >> 4], -1).reshape(2, 128 * interleaved, -1, 32)
    values = E2M1[codes] * 2.0 ** (packed.scales.astype(int) - 127)[..., None]
    values = values.reshape(2, 2, 64, interleaved, 3, 64)  # [E, tile, row, s, tile, column]
    thread = np.arange(128)
    warp, g, q = thread // 32, thread % 32 // 4, thread % 4
    scales = [ptx.run(dequantize.scale_asm(byte), 1, tiles.scales[..., thread // 4])[0] for byte in range(4)]
    for step in range(4):
        word = tiles.words.reshape(*tiles.words.shape[:-1], 128, 4)[..., step]
        registers = ptx.run(dequantize.UNPACK, 4, word, scales[step // 2], scales[2 + step // 2])
        for i, (right, half) in enumerate(np.ndindex(2, 2)):
            for pair in range(2):
                row, column = warp * 16 + half * 8 + g, step * 16 + right * 8 + q * 2 + pair
                wanted = values.transpose(0, 1, 4, 3, 2, 5)[..., row, column]  # [E, tile, tile, s, thread]
                np.testing.assert_array_equal(ptx.bfloat16(registers[i] >> np.uint32(16 * pair)), wanted)


def test_scales_that_the_kernels_take():
    assert fits(draw(64, 64)) and not fits(draw(64, 64, largest=255))
    top = Mxfp4(np.full((64, 2, 16), 0x77, np.uint8), np.full((64, 2), 128, np.uint8))
    tiles = jax.tree.map(np.asarray, there(top, 1))
    (scale,) = ptx.run(dequantize.scale_asm(3), 1, tiles.scales)
    assert (ptx.bfloat16(scale) == 2.0**127).all()


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="multiple of 128 rows and of 64 columns; got 64 and 64; keep it packed"):
        to_tiles(draw(64, 64), 2)
    with pytest.raises(ValueError, match="multiple of 64 rows and of 64 columns; got 64 and 96"):
        to_tiles(draw(64, 96))


def test_leading_axes_are_scanned_and_indexed():
    tiles = there(draw(3, 64, 128), 1)
    one = Tiles(tiles.words[1], tiles.scales[1])
    assert one.shape == (64, 128)
    for a, b in zip(jax.tree.leaves(back(one)), jax.tree.leaves(back(tiles)[1]), strict=True):
        np.testing.assert_array_equal(a, b)
