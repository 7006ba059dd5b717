"""MXFP4, the format of gpt-oss's experts: 32 values share a power of two and take four bits each.

    scale 2^(s - 127), one byte      blocks: 16 bytes, two e2m1 codes in each, the first value in the low nibble
    code  0   1   2   3   4   5   6   7   (8..15: the same, negative)
    value 0  0.5  1  1.5  2   3   4   6

`unpack` is exact in bfloat16 and float32. A kernel that multiplies packed weights is held against it.
Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.2 (E8M0), 5.3 (FP4) and 6.3 (conversion).
"""

import flax.struct
import jax
import jax.numpy as jnp

GROUP = 32  # values that share a scale
BLOCK = GROUP // 2  # bytes that hold them


@flax.struct.dataclass
class Mxfp4:
    """A packed array of logical shape [..., 32 * X]. A pytree: map, scan and slice it as if it were one array.

    Attributes:
        blocks: [..., X, 16] uint8, two codes a byte, low nibble first.
        scales: [..., X] uint8, exponents biased by 127.
    """

    blocks: jax.Array
    scales: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the unpacked array."""
        return (*self.scales.shape[:-1], GROUP * self.scales.shape[-1])

    @property
    def ndim(self) -> int:
        """Of the unpacked array."""
        return len(self.scales.shape)

    def __getitem__(self, index) -> "Mxfp4":
        """Indexes leading axes; the last one is packed and stays whole."""
        axes = index if isinstance(index, tuple) else (index,)
        if len(axes) >= self.ndim or any(axis is Ellipsis for axis in axes):
            raise IndexError(f"the last of {self.ndim} axes is packed; got index {index}; index leading axes, or unpack first.")
        return Mxfp4(self.blocks[index], self.scales[index])


def unpack(packed: Mxfp4, dtype: jax.typing.DTypeLike = jnp.bfloat16) -> jax.Array:  # [..., 32 * X]
    """The values of a packed array, exact in either dtype for scales 2..252.

    Values under 2^-126 become 0, since XLA flushes subnormal numbers, and so do those with scale 0. Scale 255 is not a number by
    the format and gives infinities or NaN.

    Of the ways to write this, integer arithmetic that builds the pattern of the value, times the scale, is the quickest for XLA on
    a CPU (two cores, 1.0 = 1e9 values a second, in float32 where the result stays in cache: this 3.8, a table gather 2.0, where-chains
    3.0). A result over about 30 MB costs page faults, four times as much as the arithmetic: unpack rows in blocks of a few MB.

    Args:
        packed: blocks [..., X, 16] and scales [..., X].
        dtype: bfloat16 or float32.

    Raises:
        ValueError: shapes or dtypes are not those of MXFP4.
    """
    _check(packed)
    dtype = jnp.dtype(dtype)
    if dtype == jnp.bfloat16:
        word, bits, mantissa = jnp.uint16, 16, 7
    elif dtype == jnp.float32:
        word, bits, mantissa = jnp.uint32, 32, 23
    else:
        raise ValueError(f"MXFP4 unpacks exactly into bfloat16 and float32; got {dtype.name}; unpack into one of these and cast.")
    codes = jnp.stack([packed.blocks & 15, packed.blocks >> 4], axis=-1)  # [..., X, 16, 2]
    codes = codes.reshape(*packed.scales.shape, GROUP).astype(word)
    magnitude = codes & 7
    # e2m1 is e8m23's or e8m7's pattern but for where the bits lie and the bias, and for 0.5 and 0, which are subnormal in e2m1.
    half = word(1 << (mantissa - 1))
    pattern = (magnitude << (mantissa - 1)) + word(126 << mantissa) - jnp.where(magnitude == 1, half, word(0))
    pattern = jnp.where(magnitude == 0, word(0), pattern) | ((codes >> 3) << (bits - 1))
    values = jax.lax.bitcast_convert_type(pattern, dtype)
    scales = jax.lax.bitcast_convert_type(packed.scales.astype(word) << mantissa, dtype)
    return (values * scales[..., None]).reshape(packed.shape)


def quantize(values: jax.Array) -> Mxfp4:
    """The nearest packed array, ties to even codes: blocks [..., X, 16] and scales [..., X] of values [..., 32 * X].

    The shared exponent is the smallest for which the group's largest magnitude is at most 7 times the scale: up to 7 the nearest
    code is 6, the largest. (The specification's example takes up to 8, with twice the largest error.) A packed array, unpacked and
    quantized again, keeps its values.

    Args:
        values: float, last axis a multiple of 32; computed in float32. Magnitudes under 2^-126 count as 0.

    Raises:
        ValueError: the last axis is no multiple of 32.
    """
    if values.ndim < 1 or values.shape[-1] % GROUP:
        raise ValueError(f"the last axis must be a multiple of {GROUP}; got shape {values.shape}; pad it with zeros.")
    groups = values.astype(jnp.float32).reshape(*values.shape[:-1], -1, GROUP)
    magnitude = jnp.abs(groups)
    largest = jax.lax.bitcast_convert_type(jnp.max(magnitude, axis=-1), jnp.uint32)
    # largest = 2^k * f with 1 <= f < 2; 7 = 4 * 1.75. Scales are kept where every code is a normal float32.
    exponent = (largest >> 23).astype(jnp.int32) - 2 + ((largest & 0x7FFFFF) > 0x600000).astype(jnp.int32)
    scales = jnp.clip(exponent, 2, 252).astype(jnp.uint8)  # [..., X]
    inverse = jax.lax.bitcast_convert_type((254 - scales.astype(jnp.uint32)) << 23, jnp.float32)
    scaled = magnitude * inverse[..., None]
    codes = jnp.where(scaled < 2, jnp.round(2 * scaled), jnp.where(scaled < 4, 2 + jnp.round(scaled), 4 + jnp.round(scaled / 2)))
    codes = jnp.minimum(codes, 7).astype(jnp.uint8) | (8 * (groups < 0).astype(jnp.uint8))
    codes = codes.reshape(*scales.shape, BLOCK, 2)
    return Mxfp4(blocks=codes[..., 0] | (codes[..., 1] << 4), scales=scales)


def _check(packed: Mxfp4) -> None:
    blocks, scales = packed.blocks, packed.scales
    if blocks.shape != (*scales.shape, BLOCK) or len(scales.shape) < 1:
        raise ValueError(f"MXFP4 blocks must be [..., X, {BLOCK}] for scales [..., X]; got {blocks.shape} and {scales.shape}.")
    if blocks.dtype != jnp.uint8 or scales.dtype != jnp.uint8:
        raise ValueError(f"MXFP4 blocks and scales must be uint8; got {blocks.dtype} and {scales.dtype}.")
