"""Arithmetic of single instructions, against values worked out by hand or by Python's integers."""

import numpy as np
import pytest

from pallas_kernels.emulator.ptx import alu
from pallas_kernels.emulator.ptx.floats import bf16_to_f32, f32_to_bf16


def bits(value) -> int:
    """Of a float32."""
    return int(np.float32(value).view(np.uint32))


def compute(name: str, *sources):
    """The first lane of an instruction."""
    fn, kinds = alu.function(tuple(name.split(".")))
    return int(fn(*(np.full(32, s, k) for s, k in zip(sources, kinds, strict=True)))[0])


@pytest.mark.parametrize(
    "name, sources, expected",
    [
        ("add.s32", (0xFFFFFFFF, 2), 1),
        ("sub.u32", (1, 2), 0xFFFFFFFF),
        ("mul.lo.s32", (0x10000, 0x10001), 0x10000),
        ("mul.hi.u32", (0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFE),
        ("mul.hi.s32", (0xFFFFFFFF, 5), 0xFFFFFFFF),
        ("mul.wide.s32", (0xFFFFFFFF, 5), 2**64 - 5),
        ("mul.wide.u32", (0xFFFFFFFF, 5), 0xFFFFFFFF * 5),
        ("mad.wide.u32", (2**31, 4, 1), 2**33 + 1),
        ("div.s32", (2**32 - 7, 2), 2**32 - 3),
        ("rem.s32", (2**32 - 7, 2), 2**32 - 1),
        ("div.u32", (7, 0), 0xFFFFFFFF),
        ("shl.b32", (1, 32), 0),
        ("shr.u32", (2**31, 31), 1),
        ("shr.s32", (2**31, 40), 0xFFFFFFFF),
        ("min.s32", (0xFFFFFFFF, 1), 0xFFFFFFFF),
        ("max.u32", (0xFFFFFFFF, 1), 0xFFFFFFFF),
        ("bfe.u32", (0xABCD1234, 8, 8), 0x12),
        ("bfe.s32", (0x0000F000, 12, 4), 0xFFFFFFFF),
        ("prmt.b32", (0x33221100, 0x77665544, 0x7531), 0x77553311),
        ("prmt.b32", (0x80, 0, 0x8888), 0xFFFFFFFF),
        ("lop3.b32", (0xFF00FF00, 0x0F0F0F0F, 0x3333CCCC, 0xE8), 0x3F03CF0C),
        ("selp.b32", (1, 2, False), 2),
        ("popc.b32", (0xF0F0,), 8),
        ("clz.b32", (1,), 31),
        ("cvt.s64.s32", (0xFFFFFFFF,), 2**64 - 1),
        ("cvt.u64.u32", (0xFFFFFFFF,), 2**32 - 1),
        ("cvt.u16.u32", (0x12345678,), 0x5678),
        ("cvt.rn.f32.s32", (0xFFFFFFFE,), bits(-2)),
        ("cvt.rzi.s32.f32", (bits(-2.7),), 2**32 - 2),
        ("cvt.rni.s32.f32", (bits(2.5),), 2),
        ("cvt.rzi.u32.f32", (bits(-1),), 0),
        ("cvt.rzi.s32.f32", (bits(np.nan),), 0),
        ("cvt.rn.bf16x2.f32", (bits(1), bits(2)), 0x3F804000),
        ("cvt.rn.bf16.f32", (bits(1.00390625),), 0x3F80),  # a tie, to even
        ("cvt.rn.bf16.f32", (bits(1.01171875),), 0x3F82),
        ("cvt.rn.bf16.f32", (bits(np.nan),), 0x7FFF),
        ("add.f32", (bits(1e38), bits(3e38)), bits(np.inf)),
        ("max.f32", (bits(np.nan), bits(1)), bits(1)),
        ("fma.rn.f32", (bits(2**0.5), bits(2**0.5), bits(-2)), bits(float(np.float32(2**0.5)) ** 2 - 2)),
        ("ex2.approx.ftz.f32", (bits(-140),), 0),
        ("add.rn.bf16x2", (0x3F803F80, 0x40003F80), 0x40404000),
        ("fma.rn.bf16x2", (0x40004000, 0x40404040, 0x3F803F80), 0x40E040E0),
        ("mul.rn.bf16x2", (0x00013F80, 0x3F804000), 0x00014000),  # a subnormal number stays
    ],
)
def test_an_instruction(name, sources, expected):
    with np.errstate(all="ignore"):
        assert compute(name, *sources) == expected


@pytest.mark.parametrize(
    "name, a, b, expected",
    [
        ("setp.lt.s32", 0xFFFFFFFF, 0, True),
        ("setp.lt.u32", 0xFFFFFFFF, 0, False),
        ("setp.ne.f32", bits(np.nan), bits(1), False),
        ("setp.neu.f32", bits(np.nan), bits(1), True),
        ("setp.nan.f32", bits(np.nan), bits(1), True),
        ("setp.ge.f32", bits(1), bits(1), True),
    ],
)
def test_a_comparison(name, a, b, expected):
    assert bool(compute(name, a, b)) == expected


def test_tables_of_three():
    """Of 0xF0, 0xCC and 0xAA a table is what comes out."""
    for table in range(256):
        assert compute("lop3.b32", 0xF0, 0xCC, 0xAA, table) & 0xFF == table


def test_shifts_by_constants():
    for name in ("shl.b32", "shr.u32", "shr.s32"):
        for count in (0, 1, 31, 32, 40):
            x = np.uint32([0x80000001, 5])
            general = alu.function(tuple(name.split(".")))[0](x, np.full(2, count, np.uint32))
            np.testing.assert_array_equal(alu.shift_by(tuple(name.split(".")), count)(x, None), general)


def test_bf16_and_back():
    every = np.arange(2**16, dtype=np.uint16)
    finite = every[(every & 0x7F80) != 0x7F80]
    np.testing.assert_array_equal(f32_to_bf16(bf16_to_f32(finite)), finite)


def test_an_unknown_instruction_is_none():
    assert alu.function(("bfind", "u32")) is None
