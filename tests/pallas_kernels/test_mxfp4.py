"""MXFP4: every code at every scale, against a NumPy table that shares nothing with the code under test."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import mxfp4

VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float64)


def oracle(blocks, scales):
    """float64 values of packed bytes, by looking each code up."""
    codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(*blocks.shape[:-1], 32)
    return (VALUES[codes] * 2.0 ** (scales.astype(np.float64) - 127)[..., None]).reshape(*scales.shape[:-1], -1)


def random_packed(seed, *shape, low=100, high=140):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (*shape, 16), dtype=np.uint8)
    return blocks, rng.integers(low, high, shape).astype(np.uint8)


def packed(blocks, scales):
    return mxfp4.Mxfp4(jnp.asarray(blocks), jnp.asarray(scales))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_unpack_is_exact_for_every_byte_at_every_scale(dtype):
    scales = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 16, 1)  # [256, 16]
    blocks = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16), (256, 16, 16))  # every byte, at every scale
    got = np.asarray(jax.jit(mxfp4.unpack, static_argnums=1)(packed(blocks, scales), dtype)).astype(np.float64)
    want = oracle(blocks, scales)
    np.testing.assert_array_equal(got[2:253], want[2:253])
    np.testing.assert_array_equal(np.signbit(got[2:253]), np.signbit(want[2:253]))
    assert np.abs(got[:2] - want[:2]).max() < 2.0**-124  # subnormal, or scale 0
    assert not np.isfinite(got[255]).any()


def test_low_nibble_comes_first():
    blocks = np.zeros((1, 16), np.uint8)
    blocks[0, 0], blocks[0, 15] = 0x72, 0xF1  # 1 then 6; 0.5 then -6
    row = np.asarray(mxfp4.unpack(packed(blocks, np.array([128], np.uint8)), jnp.float32))
    assert row[:2].tolist() == [2, 12] and row[-2:].tolist() == [1, -12] and not row[2:-2].any()


@pytest.mark.thorough
def test_shape_slices_and_transformations():
    array = packed(*random_packed(0, 3, 5, 2))
    assert array.shape == (3, 5, 64) and array.ndim == 3
    whole = mxfp4.unpack(array, jnp.float32)
    np.testing.assert_array_equal(mxfp4.unpack(array[1], jnp.float32), whole[1])
    np.testing.assert_array_equal(mxfp4.unpack(array[jnp.array([2, 0])], jnp.float32), whole[jnp.array([2, 0])])
    np.testing.assert_array_equal(mxfp4.unpack(array[0, 1:3], jnp.float32), whole[0, 1:3])
    np.testing.assert_array_equal(jax.vmap(lambda a: mxfp4.unpack(a, jnp.float32))(array), whole)
    for index in ((0, 0, 0), Ellipsis, (0, Ellipsis)):
        with pytest.raises(IndexError, match="packed"):
            array[index]


def test_quantize_rounds_to_the_nearest_code_with_ties_to_even():
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((200, 64)) * 2.0 ** rng.integers(-20, 20, (200, 1))).astype(np.float32)
    values[0, :32], values[1, :32] = 0, -7.0  # an empty group; the largest that rounds to 6 without a coarser scale
    values[2, :12] = [6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -5, 0.26, 4.99]
    values[2, 12:32] = 0
    got = mxfp4.quantize(jnp.asarray(values))
    unpacked = np.asarray(mxfp4.unpack(got, jnp.float32)).astype(np.float64)
    assert unpacked[2, :12].tolist() == [6, 0, 1, 1, 2, 2, 4, 4, 0, -4, 0.5, 4]
    assert not unpacked[0, :32].any() and set(unpacked[1, :32]) == {-6.0}
    # Against a search over all 15 values at each group's scale, and the scale against its definition.
    scale = 2.0 ** (np.asarray(got.scales).astype(np.float64) - 127)  # [200, 2]
    groups = values.astype(np.float64).reshape(200, 2, 32)
    nearest = np.abs(groups[..., None] - VALUES * scale[..., None, None]).min(-1)
    np.testing.assert_array_equal(np.abs(groups - unpacked.reshape(200, 2, 32)), nearest)
    largest = np.abs(groups).max(-1)
    assert (largest <= 7 * scale).all() and (largest > 3.5 * scale)[largest > 0].all()


def test_quantize_keeps_what_was_packed():
    array = packed(*random_packed(1, 64, 4))
    values = mxfp4.unpack(array, jnp.bfloat16)
    again = mxfp4.quantize(values)
    np.testing.assert_array_equal(mxfp4.unpack(again, jnp.bfloat16), values)


def test_quantize_of_extremes_stays_finite():
    values = jnp.array([[3.4e38] * 32, [1e-45] * 32, [-3.4e38] + [1.0] * 31], jnp.float32)
    assert np.isfinite(np.asarray(mxfp4.unpack(mxfp4.quantize(values), jnp.float32))).all()


def test_wrong_shapes_and_dtypes_are_refused():
    blocks, scales = random_packed(2, 3, 2)
    with pytest.raises(ValueError, match=r"\[\.\.\., X, 16\]"):
        mxfp4.unpack(packed(blocks, scales[:, :1]))
    with pytest.raises(ValueError, match="uint8"):
        mxfp4.unpack(packed(blocks.astype(np.int8), scales))
    with pytest.raises(ValueError, match="float16"):
        mxfp4.unpack(packed(blocks, scales), jnp.float16)
    with pytest.raises(ValueError, match="multiple of 32"):
        mxfp4.quantize(jnp.zeros((2, 48)))
