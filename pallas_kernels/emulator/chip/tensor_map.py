"""Tensor maps: where a box' elements lie, and swizzles, which wgmma knows too ("Tensors" of the PTX ISA).

Tiles without interleaving, elements of 1 to 8 bytes, zeros outside. A box' innermost rows must be as long as the swizzle is wide.
"""

import dataclasses
import functools
import math

import numpy as np

from pallas_kernels.emulator.ptx.handlers import Fault

SWIZZLE = {16: 0, 32: 1, 64: 2, 128: 3}  # bytes -> bits of 16-byte pieces


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """What cuTensorMapEncodeTiled makes; innermost dimension first. `strides` in bytes, the first one the element's size."""

    base: int
    size: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int

    def __post_init__(self):
        if self.base % 16 or any(s % 16 or s >= 2**40 for s in self.strides[1:]):
            raise Fault(f"tensor map: address or strides are no multiples of 16: {self}")
        if any(not 1 <= b <= 256 for b in self.box) or not 1 <= len(self.box) <= 5 or self.box[0] * self.size % 16:
            raise Fault(f"tensor map: box {self.box} of {self.size}-byte elements")
        if any(not 1 <= s <= 2**32 for s in self.sizes):
            raise Fault(f"tensor map: sizes {self.sizes}")
        if self.swizzle > 16 and self.box[0] * self.size > self.swizzle:
            raise Fault(f"tensor map: box rows of {self.box[0] * self.size} bytes, swizzle {self.swizzle}")

    @property
    def bytes(self) -> int:
        return math.prod(self.box) * self.size

    def unit(self, first: int) -> int:
        """Bytes that may be moved at once where the innermost coordinate is `first`: 8, or an element."""
        return 8 if self.size < 8 and first * self.size % 8 == 0 and self.sizes[0] * self.size % 8 == 0 else self.size

    def places(self, coordinates, unit: int) -> tuple[np.ndarray, np.ndarray]:
        """Of a box' units in their order: addresses, and which of them exist."""
        start = self.base + sum(c * s for c, s in zip(coordinates, self.strides, strict=True))
        places = start + _box(self.box, self.strides, unit)
        if all(0 <= c <= size - b for c, size, b in zip(coordinates, self.sizes, self.box, strict=True)):
            return places, np.ones(places.size, bool)
        there = np.ones((), bool)
        for axis in reversed(range(1, len(self.box))):
            at = coordinates[axis] + np.arange(self.box[axis], dtype=np.int64)
            there = there[..., None] & (at >= 0) & (at < self.sizes[axis])
        at = coordinates[0] * self.size + np.arange(0, self.box[0] * self.size, unit, dtype=np.int64)
        return places, (there[..., None] & (at >= 0) & (at < self.sizes[0] * self.size)).ravel()

    def shared(self, start: int, unit: int) -> np.ndarray:
        """Addresses in shared memory of a box' units in their order. Swizzles look at an address, wherever a box begins."""
        if start % 128:
            raise Fault(f"tensor copy: shared address {start:#x} is no multiple of 128")
        if self.swizzle > 16 and self.box[0] * self.size != self.swizzle:
            raise NotImplementedError("the emulator does not know tensor maps whose box has rows shorter than the swizzle.")
        return start + _order(start % 1024, self.bytes, unit, SWIZZLE[self.swizzle])


@functools.lru_cache(maxsize=256)
def _box(box: tuple[int, ...], strides: tuple[int, ...], unit: int) -> np.ndarray:
    """Bytes from a box' beginning to its units, in their order."""
    out = np.zeros((), np.int64)
    for axis in reversed(range(1, len(box))):
        out = out[..., None] + np.arange(box[axis], dtype=np.int64) * strides[axis]
    return (out[..., None] + np.arange(0, box[0] * strides[0], unit, dtype=np.int64)).ravel()


@functools.lru_cache(maxsize=256)
def _order(start: int, size: int, unit: int, bits: int) -> np.ndarray:
    """Bytes from the beginning of a box in shared memory to its units, if it lies so many behind a multiple of 1024."""
    return swizzled(start + np.arange(0, size, unit, dtype=np.int64), bits) - start


def swizzled(addresses, bits: int):
    """Bits 4 .. of an address, exclusive or with bits 7 ..."""
    return addresses ^ (((addresses >> 7) & ((1 << bits) - 1)) << 4)
