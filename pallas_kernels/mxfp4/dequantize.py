"""Inside a kernel: a tile of MXFP4 weights from shared memory to the registers that wgmma takes as its left operand, bfloat16.

About three instructions a weight: the codes of a word are shifted to where bfloat16 has its sign and exponent (value * 2^-126), and one
multiplication of two values by 2^(scale - 127 + 126) does the rest, exactly; a scale of 0, which is 2^-127, counts as 0. See
`pallas_kernels.mxfp4.tiles` for the order of bits.
"""

import functools

from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import arith, llvm, vector
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np

from pallas_kernels import hopper

WORDS = 512  # of a tile; a kernel sees them as [4, 128]
SCALES = 32

# A word's 8 codes and the scales of rows g and g + 8 (two equal bfloat16 values each) -> four registers of two bfloat16 values.
UNPACK = """
{
.reg .b32 a, b;
and.b32 a, $4, 0x81C081C0;
mul.bf16x2 $0, a, $5;
shl.b32 a, $4, 3;
and.b32 a, a, 0x81C081C0;
mul.bf16x2 $1, a, $6;
shl.b32 a, $4, 6;
and.b32 a, a, 0x81C081C0;
mul.bf16x2 $2, a, $5;
shr.b32 a, $4, 3;
and.b32 a, a, 0x01800180;
shr.b32 b, $4, 7;
lop3.b32 a, b, 0x00400040, a, 0xEA;
shl.b32 b, $4, 1;
lop3.b32 a, b, 0x80008000, a, 0xEA;
mul.bf16x2 $3, a, $6;
}
"""

# Byte `byte` of a word, s -> two equal bfloat16 values 2^(s - 127 + 126): s as the exponents of both halves, times 2^126.
SCALE = """
{
.reg .b32 a;
mov.b32 a, 0x7E807E80;
prmt.b32 $0, $1, 0, SELECTOR;
shr.b32 $0, $0, 1;
mul.bf16x2 $0, $0, a;
}
"""


def scale_asm(byte: int) -> str:
    """`SCALE` for one of a word's four bytes."""
    return SCALE.replace("SELECTOR", hex((byte << 12) | 0x400 | (byte << 4) | 4))


def tile(words, scales, index: int):  # [64, 64] bf16, wgmma's left operand
    """Tile `index` of the weights in shared memory.

    Args:
      words: ref [4 * tiles, 128] uint32.
      scales: ref [32 * tiles] uint32.
      index: static.
    """
    return _interpreted(words, scales, index) if hopper.interpreting() else _in_registers(index)(words, scales)


@functools.cache
def _in_registers(index: int):
    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(), plgpu.RefType()),
        return_type=plgpu.ShapeDtypeStruct((64, 64), jnp.bfloat16, layout=plgpu.Layout.WGMMA),
    )
    def unpack(_, words, scales):
        i32, pair = ir.IntegerType.get_signless(32), ir.VectorType.get((2,), ir.BF16Type.get())
        constant = lambda value: mgpu.c(value, i32)
        thread = arith.remui(mgpu.thread_idx(), constant(128))
        word = _read(words, arith.addi(arith.muli(thread, constant(4)), constant(index * WORDS)), 4)
        exponents = _read(scales, arith.addi(arith.shrui(thread, constant(2)), constant(index * SCALES)), 1)
        scale = [llvm.inline_asm(i32, [exponents], scale_asm(byte), "=r,r") for byte in range(4)]  # (row g, g + 8) by (columns 0-31, 32-63)
        four = llvm.StructType.get_literal([i32] * 4)
        values = {}  # (8 columns, half) -> two values
        for step in range(4):  # of 16 columns
            operands = [vector.extract(word, [], [step]), scale[step // 2], scale[2 + step // 2]]
            out = llvm.inline_asm(four, operands, UNPACK, "=&r,=&r,=&r,=&r,r,r,r")
            for register in range(4):
                right, half = divmod(register, 2)
                values[2 * step + right, half] = mgpu.utils.bitcast(llvm.extractvalue(i32, out, [register]), pair)
        layout = plgpu.Layout.WGMMA.to_mgpu()
        registers = np.empty(layout.registers_shape((64, 64)), dtype=object)
        for at in np.ndindex(*registers.shape):  # two axes are longer than 1: 8 groups of 8 columns, 2 halves of rows
            registers[at] = values[tuple(i for i, n in zip(at, registers.shape, strict=True) if n > 1)]
        return mgpu.FragmentedArray(_registers=registers, _layout=layout, _is_signed=None)

    return unpack


def _read(ref, at, count: int):
    """`count` consecutive words of shared memory."""
    i32 = ir.IntegerType.get_signless(32)
    pointer = mgpu.utils.getelementptr(mgpu.utils.memref_ptr(ref), [at], i32)
    return llvm.load(i32 if count == 1 else ir.VectorType.get((count,), i32), pointer, alignment=4 * count)


def _interpreted(words, scales, index: int):
    """`_in_registers` in jnp. It builds values rather than multiplying patterns by 2^126: XLA on a CPU flushes subnormal numbers."""
    word = words[pl.ds(4 * index, 4), :].reshape(128, 4)  # [thread, step]
    codes = [(((word >> (15 - 3 * r)) & 0x10001) << 3) | ((word >> (6 - 3 * r)) & 0x70007) for r in range(3)]
    codes.append((((word >> 14) & 0x10001) << 3) | (((word >> 10) & 0x30003) << 1) | ((word >> 13) & 0x10001))
    codes = jnp.stack(codes, -1)  # [thread, step, register]
    codes = jnp.stack([codes & 15, codes >> 16], -1)
    magnitude = (codes & 7).astype(jnp.float32)
    value = jnp.where(magnitude < 4, magnitude * 0.5, jnp.where(magnitude < 6, magnitude - 2, 2 * magnitude - 8))
    value = jnp.where(codes > 7, -value, value)
    # thread = (warp, g, q), step, register = (right, half), pair -> rows (warp, half, g), columns (step, right, q, pair)
    value = value.reshape(4, 8, 4, 4, 2, 2, 2).transpose(0, 5, 1, 3, 4, 2, 6).reshape(64, 2, 32)
    exponents = scales[pl.ds(32 * index, 32)]
    exponents = jnp.stack([(exponents >> shift) & 0xFF for shift in (0, 8, 16, 24)], -1)
    exponents = exponents.reshape(4, 8, 2, 2).transpose(0, 2, 1, 3).reshape(64, 2, 1).astype(jnp.float32)
    return (value * jnp.exp2(exponents - 127)).reshape(64, 64).astype(jnp.bfloat16)
