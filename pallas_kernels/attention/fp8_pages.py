"""Pages of keys and values in eight bits: float8_e4m3fn values, and for every page and kv head a power of two that scales them.

A page's scale is the least power of two with which the largest magnitude written to it so far is at most 448, e4m3's greatest. Where it
grows, what the page holds is rescaled: without loss, but for values that become subnormal. The write that fills a page's first position
starts afresh, with a scale of its own and zeros in the other positions: nothing is left of what the page held before, and its bits are
those of its sequence alone. Read as bfloat16 or float32, values are exact: 4 significant bits times a power of two.
"""

import flax.struct
import jax
import jax.numpy as jnp

DTYPE = "float8_e4m3fn"
LARGEST = 448.0
LEAST = 2.0**-64  # scale of a page of zeros, or of what is as good as zero


@flax.struct.dataclass
class Fp8Pages:
    """The pages of one layer. A pytree.

    Values are held as bytes: XLA for a CPU converts a whole array of 8-bit floats to 16 bits to take or set a few of its elements, and
    copies it to see it as bytes.
    """

    bits: jax.Array  # [P, K, page, H] uint8, of float8_e4m3fn
    scale: jax.Array  # [P, K] float32 powers of two

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(DTYPE)


def empty(shape: tuple[int, int, int, int], *, values_on=None, scale_on=None) -> Fp8Pages:
    """Pages [P, K, page, H] of zeros, on given devices or shardings."""
    return Fp8Pages(jnp.zeros(shape, jnp.uint8, device=values_on), jnp.full(shape[:2], LEAST, jnp.float32, device=scale_on))


def scale_of(largest: jax.Array) -> jax.Array:
    """The least power of two, `LEAST` at least, that brings magnitudes [...] float32 to 448 or below."""
    bits = jax.lax.bitcast_convert_type(largest / LARGEST, jnp.uint32)
    bits = (bits + jnp.uint32(0x007FFFFF)) & jnp.uint32(0x7F800000)  # mantissa zero, exponent rounded up
    return jnp.maximum(jax.lax.bitcast_convert_type(bits, jnp.float32), LEAST)


def take(pages: Fp8Pages, ids: jax.Array, dtype) -> jax.Array:
    """Pages of the given ids [...] as [..., K, page, H] of `dtype`, bfloat16 or float32."""
    return _floats(pages.bits[ids]).astype(dtype) * pages.scale[ids].astype(dtype)[..., None, None]


def write(pages: Fp8Pages, page: jax.Array, offset: jax.Array, new: jax.Array) -> Fp8Pages:
    """Pages with `new` in the given places. Only the pages of those places are read and written.

    Args:
      pages: of P pages.
      page, offset: [B, T] int32. A row's places follow each other: offset[b, t] = (offset[b, 0] + t) % size, and those of one page are
        those of one block of a sequence. Pages from P on are dropped; in a row nothing that counts comes behind them. Rows share no page.
      new: [B, T, K, H].
    """
    (B, T), (P, K, size, H) = page.shape, pages.shape
    count = -(-(T - 1) // size) + 1  # pages that T tokens may touch
    begin = jnp.arange(count, dtype=jnp.int32)[None, :] * size - offset[:, :1]  # [B, M] token that each page's first position would take
    clipped = lambda t: jnp.clip(t, 0, T - 1)
    ids = jnp.where(begin < T, jnp.take_along_axis(page, clipped(begin), 1), P)  # [B, M]
    token = begin[:, :, None] + jnp.arange(size, dtype=jnp.int32)[None, None, :]  # [B, M, size]
    flat = clipped(token).reshape(B, -1)
    written = (token >= 0) & (token < T) & (jnp.take_along_axis(page, flat, 1).reshape(token.shape) < P)
    laid = jnp.take_along_axis(new.astype(jnp.float32), flat[:, :, None, None], 1).reshape(B, count, size, K, H)
    laid = jnp.where(written[..., None, None], laid, 0).swapaxes(2, 3)  # [B, M, K, size, H]

    fresh = written[:, :, :1]  # [B, M, 1]
    at = jnp.minimum(ids, P - 1)
    before = jnp.where(fresh, LEAST, pages.scale[at])  # [B, M, K]
    magnitude = jnp.where(jnp.isfinite(laid), jnp.abs(laid), 0)  # what is not finite becomes NaN, and its neighbours stay what they are
    scale = jnp.maximum(before, scale_of(jnp.max(magnitude, (3, 4))))
    held = _floats(pages.bits[at]).astype(jnp.float32) * (before / scale)[..., None, None]
    held = jnp.where(fresh[..., None, None], 0, held)
    held = jnp.where(written[:, :, None, :, None], laid / scale[..., None, None], held)
    bits = jax.lax.bitcast_convert_type(held.astype(DTYPE), jnp.uint8)
    return Fp8Pages(pages.bits.at[ids].set(bits, mode="drop"), pages.scale.at[ids].set(scale, mode="drop"))


def _floats(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.dtype(DTYPE))
