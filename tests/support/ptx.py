"""A numpy emulator of the straight-line PTX that kernels carry inline, so that the exact text is tested without a GPU."""

import re

import numpy as np

U32 = np.uint32


def run(text: str, outputs: int, *inputs: np.ndarray) -> list[np.ndarray]:
    """Runs `text` on arrays of 32-bit registers: $0 .. $(outputs-1) are what it writes, the following ones `inputs`."""
    shape = np.broadcast_shapes(*(np.shape(x) for x in inputs))
    registers = {f"${outputs + i}": np.broadcast_to(np.asarray(x, U32), shape) for i, x in enumerate(inputs)}

    def value(name: str) -> np.ndarray:
        return registers[name] if name in registers else np.full(shape, int(name, 0) & 0xFFFFFFFF, U32)

    for line in re.sub(r"[{}]", "", text).split(";"):
        name, _, operands = line.strip().partition(" ")
        if name in ("", ".reg"):
            continue
        to, *operands = (operand.strip() for operand in operands.split(","))
        registers[to] = OPERATIONS[name](*map(value, operands))
    return [registers[f"${i}"] for i in range(outputs)]


def bfloat16(bits: np.ndarray) -> np.ndarray:
    """The low 16 bits as a number, float64."""
    return ((bits & U32(0xFFFF)) << U32(16)).view(np.float32).astype(np.float64)


def _round(values: np.ndarray) -> np.ndarray:
    """To the nearest bfloat16's bits, ties to even; subnormal numbers stay."""
    bits = values.astype(np.float32).view(U32)
    return (bits + U32(0x7FFF) + ((bits >> U32(16)) & U32(1))) >> U32(16)


def _multiply_pairs(a, b):
    low, high = (_round(bfloat16(a >> U32(shift)) * bfloat16(b >> U32(shift))) for shift in (0, 16))
    return low | (high << U32(16))


def _permute(a, b, selector):
    source = [(x >> U32(8 * i)) & U32(255) for x in (a, b) for i in range(4)]
    out = np.zeros_like(a)
    for i in range(4):
        nibble = (int(selector.flat[0]) >> (4 * i)) & 15
        out |= source[nibble & 7] << U32(8 * i)  # the sign-replicating forms (8 and more) are not used
        assert nibble < 8
    return out


def _look_up(a, b, c, table):
    out, table = np.zeros_like(a), int(table.flat[0])
    for case in range(8):
        if table >> case & 1:
            out |= (a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c)
    return out


OPERATIONS = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "shl.b32": lambda a, b: a << b,
    "shr.b32": lambda a, b: a >> b,
    "lop3.b32": _look_up,
    "prmt.b32": _permute,
    "mul.bf16x2": _multiply_pairs,
}
