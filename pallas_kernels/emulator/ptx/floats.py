"""16-bit floats, and what cvt makes of one type for another.

PTX ISA: "Alternate Floating-Point Data Formats", "Data Movement and Conversion Instructions: cvt". Rounding to float is to nearest, ties to
even; a result that is no number is the canonical one. Not modelled: 8-bit and smaller floats, tf32, stochastic rounding, other roundings to
floats.
"""

import ml_dtypes
import numpy as np

from pallas_kernels.emulator.ptx.parse import NUMBER, WIDTH

f32, f64, u16, u32 = np.float32, np.float64, np.uint16, np.uint32
SIGNED = {kind: t for kind, t in NUMBER.items() if kind[0] == "s"}


def _canonical(x, bits):
    unordered = np.isnan(x)
    return np.where(unordered, u16(0x7FFF), bits) if unordered.any() else bits


def bf16_to_f32(x):
    """Of bits of uint16."""
    return np.left_shift(x, u32(16), dtype=u32).view(f32)


def f32_to_bf16(x):
    """To nearest, ties to even; bits of uint16."""
    bits = x.astype(ml_dtypes.bfloat16).view(u16)
    return _canonical(x, bits)


def f16_to_f32(x):
    """Of bits of uint16."""
    return x.view(np.float16).astype(f32)


def f32_to_f16(x):
    """To nearest, ties to even; bits of uint16."""
    bits = x.astype(np.float16).view(u16)
    return _canonical(x, bits)


HALF = {"bf16": (bf16_to_f32, f32_to_bf16), "f16": (f16_to_f32, f32_to_f16)}


def pairs(fn, kind: str):
    """A function of float32, of two 16-bit floats in 32 bits."""
    to, back = HALF[kind]
    return lambda *x: back(fn(*(to(np.ascontiguousarray(a).view(u16)) for a in x))).view(u32)


def halves(fn, kind: str):
    """A function of float32, of 16-bit floats."""
    to, back = HALF[kind]
    return lambda *x: back(fn(*(to(a) for a in x)))


def _of_floats(fn):
    return lambda a: fn(a.view(f32)).astype(f32, copy=False).view(u32)


def convert(op: tuple[str, ...]):
    """(function of source arrays, source dtypes) of cvt.[round][.sat].to.from"""
    to, source = op[-2], op[-1]
    rest = op[1:-2]
    if to in ("bf16x2", "f16x2"):
        back = HALF[to[:-2]][1]
        relu = (lambda x: np.maximum(x, 0)) if "relu" in rest else (lambda x: x)
        return lambda a, b: back(relu(np.stack([b, a], 1).view(f32).ravel())).view(u32), [u32, u32]
    if source == "f32" and to in HALF:
        return lambda a: HALF[to][1](a.view(f32)), [u32]
    if to == "f32" and source in HALF:
        return lambda a: HALF[source][0](a).view(u32), [u16]
    if to == "f32" and source == "f32":
        if "sat" in rest:
            return _of_floats(lambda a: np.where(np.isnan(a), f32(0), np.clip(a, f32(0), f32(1)))), [u32]
        rounding = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
        return _of_floats(next(rounding[r] for r in rest if r in rounding)), [u32]
    if to == "f32":
        t = SIGNED.get(source)
        return lambda a: (a.view(t) if t else a).astype(f32).view(u32), [WIDTH[source]]
    if source == "f32":
        info, t = np.iinfo(SIGNED.get(to, WIDTH[to])), SIGNED.get(to, WIDTH[to])
        rounding = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[next(r for r in rest if r.endswith("i"))]
        return lambda a: np.clip(rounding(np.nan_to_num(a.view(f32).astype(f64))), info.min, info.max).astype(t).view(WIDTH[to]), [u32]
    t = SIGNED.get(source)
    signed_to = SIGNED.get(to)
    if t is None:
        return lambda a: a.astype(WIDTH[to]), [WIDTH[source]]
    return lambda a: a.view(t).astype(signed_to or WIDTH[to]).view(WIDTH[to]), [WIDTH[source]]
