"""Arithmetic, as functions of arrays of lanes. Registers hold bits: unsigned integers of their width, predicates bool.

PTX ISA: "Integer Arithmetic", "Floating Point", "Comparison and Selection", "Logic and Shift" and "Half Precision" instructions. Exact but
for ex2, lg2, rsqrt, sqrt, rcp, tanh, sin and cos, which are the nearest float32 (the approximations of a GPU are off by some units in the
last place), and fma, which is rounded twice (to float64, then float32). Not modelled: add.cc and its kin, dp4a, float64, saturation but of
cvt.
"""

import numpy as np

from pallas_kernels.emulator.ptx.floats import HALF, convert, halves, pairs
from pallas_kernels.emulator.ptx.parse import NUMBER, WIDTH

f32, f64, u8, u32, u64, i64 = np.float32, np.float64, np.uint8, np.uint32, np.uint64, np.int64
SIGNED = {kind: t for kind, t in NUMBER.items() if kind[0] == "s"}
_NIBBLES = u32([0, 4, 8, 12])
COMPARE = {
    **{"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal},
    **{"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal},
}
UNORDERED = {"equ": "eq", "neu": "ne", "ltu": "lt", "leu": "le", "gtu": "gt", "geu": "ge"}


def _float(fn):
    """Of float32 bits, of one to three arrays."""

    def run(a, b=None, c=None):
        if b is None:
            return fn(a.view(f32)).view(u32)
        return (fn(a.view(f32), b.view(f32)) if c is None else fn(a.view(f32), b.view(f32), c.view(f32))).view(u32)

    return run


def _signed(fn, kind):
    t = SIGNED.get(kind)
    return fn if t is None else lambda *x: fn(*(a.view(t) for a in x)).astype(t, copy=False).view(WIDTH[kind])


def _fma(a, b, c):
    return (a.astype(f64) * b.astype(f64) + c.astype(f64)).astype(f32)


def _fma_down(a, b, c):
    exact = a.astype(f64) * b.astype(f64) + c.astype(f64)
    near = exact.astype(f32)
    return np.where(near.astype(f64) > exact, np.nextafter(near, f32(-np.inf)), near)


def _shift(left: bool, kind: str):
    bits = WIDTH[kind]().itemsize * 8
    t = WIDTH[kind]
    if left:
        return lambda a, n: np.where(n >= bits, t(0), a << np.minimum(n, bits - 1).astype(t))
    if kind[0] == "s":
        s = SIGNED[kind]
        return lambda a, n: (a.view(s) >> np.minimum(n, bits - 1).astype(s)).view(t)
    return lambda a, n: np.where(n >= bits, t(0), a >> np.minimum(n, bits - 1).astype(t))


def _bfe(kind):
    t, bits = WIDTH[kind], WIDTH[kind]().itemsize * 8

    def run(a, pos, length):
        pos, length = pos & u32(0xFF), length & u32(0xFF)
        mask = np.where(length >= bits, t(2**bits - 1), (t(1) << np.minimum(length, bits - 1).astype(t)) - t(1))
        field = _shift(False, "u" + kind[1:])(a, pos) & mask
        if kind[0] == "u":
            return field
        top = np.minimum(pos + length - u32(1), u32(bits - 1))
        sign = (a >> top.astype(t)) & t(1)
        return np.where(length == 0, t(0), np.where(sign == 1, field | ~mask, field))

    return run


def _permute(a, b, selector):
    both = np.stack([a, b], 1).view(u8)
    nibbles = (selector[:, None] >> _NIBBLES) & u32(15)
    bytes_ = np.take_along_axis(both, (nibbles & u32(7)).astype(np.intp), 1)
    sign = nibbles > 7
    if sign.any():
        bytes_ = np.where(sign, np.where(bytes_ & u8(128), u8(255), u8(0)), bytes_)
    return np.ascontiguousarray(bytes_).view(u32).ravel()


_TABLES = {
    0xC0: lambda a, b, c: a & b,
    0xA0: lambda a, b, c: a & c,
    0xFC: lambda a, b, c: a | b,
    0x3C: lambda a, b, c: a ^ b,
    0x80: lambda a, b, c: a & b & c,
    0xFE: lambda a, b, c: a | b | c,
    0x96: lambda a, b, c: a ^ b ^ c,
    0xEA: lambda a, b, c: a & b | c,
    0xF8: lambda a, b, c: a | b & c,
    0x78: lambda a, b, c: a ^ b & c,
    0x6A: lambda a, b, c: a & b ^ c,
    0xE0: lambda a, b, c: a & (b | c),
    0xA8: lambda a, b, c: (a | b) & c,
    0xCA: lambda a, b, c: a & b | ~a & c,
}


def _look_up(a, b, c, table):
    table = int(table[0])
    if table in _TABLES:
        return _TABLES[table](a, b, c)
    out = np.zeros_like(a)
    for case in range(8):
        if table >> case & 1:
            out = out | ((a if case & 4 else ~a) & (b if case & 2 else ~b) & (c if case & 1 else ~c))
    return out


def shift_by(op: tuple[str, ...], count: int):
    """What a shift is where it is by a constant."""
    kind, bits = op[-1], WIDTH[op[-1]]().itemsize * 8
    t = SIGNED.get(kind) if op[0] == "shr" else None
    if count >= bits and t is None:
        return lambda a, n: np.zeros_like(a)
    by = (t or WIDTH[kind])(min(count, bits - 1))
    if op[0] == "shl":
        return lambda a, n: a << by
    return (lambda a, n: a >> by) if t is None else (lambda a, n: (a.view(t) >> by).view(a.dtype))


def _divide(fn_of_quotient, kind):
    def run(a, b):
        t = SIGNED.get(kind)
        x, y = ((v.view(t) if t else v).astype(object) for v in (a, b))
        out = []
        for p, q in zip(x, y, strict=True):
            quotient = 0 if q == 0 else abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1)
            out.append(int(fn_of_quotient(p, q, quotient)) & (2 ** (WIDTH[kind]().itemsize * 8) - 1))
        return np.array(out, WIDTH[kind])

    return run


def _high(kind):
    bits, t = WIDTH[kind]().itemsize * 8, SIGNED.get(kind)

    def run(a, b):
        x, y = ((v.view(t) if t else v).astype(object) for v in (a, b))
        return np.array([int((p * q) >> bits) & (2**bits - 1) for p, q in zip(x, y, strict=True)], WIDTH[kind])

    def run32(a, b):
        wide = i64 if t else u64
        x, y = ((v.view(t) if t else v).astype(wide) for v in (a, b))
        return ((x * y) >> wide(bits)).astype(wide).view(u64).astype(WIDTH[kind])

    return run32 if bits <= 32 else run


def _wide(kind):
    bits = WIDTH[kind]().itemsize * 8
    t = SIGNED.get(kind)
    wide, out = (np.dtype(f"i{bits // 4}"), WIDTH[f"b{bits * 2}"]) if t else (np.dtype(f"u{bits // 4}"), WIDTH[f"b{bits * 2}"])
    return lambda a, b: ((a.view(t) if t else a).astype(wide) * (b.view(t) if t else b).astype(wide)).view(out)


def function(op: tuple[str, ...]):
    """(function of source arrays, source dtypes) of an arithmetic instruction; None if it is none."""
    name, kind = op[0], op[-1]
    t = WIDTH.get(kind)
    if name == "mov" and t:
        return (lambda a: a), [t]
    if name == "cvt":
        return convert(op)
    if name in ("and", "or", "xor"):
        return {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[name], [t, t]
    if name == "not":
        return np.invert, [t]
    if name == "selp":
        return (lambda a, b, p: np.where(p, a, b)), [t, t, bool]
    if name in ("shl", "shr"):
        return _shift(name == "shl", kind), [t, u32]
    if name == "bfe":
        return _bfe(kind), [t, u32, u32]
    if name == "prmt":
        return _permute, [u32] * 3
    if name == "lop3":
        return _look_up, [u32] * 4
    if name == "setp":
        return _compare(op, t)
    if kind == "f32":
        return _float_function(op)
    if kind in ("bf16x2", "f16x2", "bf16", "f16"):
        base = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "fma": _fma, "max": np.fmax, "min": np.fmin}
        base |= {"neg": np.negative, "abs": np.abs}
        if name not in base:
            return None
        if name in ("neg", "abs"):
            return ((pairs if kind.endswith("x2") else halves)(base[name], kind.removesuffix("x2"))), [t]
        return (pairs if kind.endswith("x2") else halves)(base[name], kind.removesuffix("x2")), [t] * (3 if name == "fma" else 2)
    if t is None or t is bool:
        return None
    if name in ("add", "sub"):
        return {"add": np.add, "sub": np.subtract}[name], [t, t]
    if name in ("min", "max"):
        return _signed({"min": np.minimum, "max": np.maximum}[name], kind), [t, t]
    if name in ("neg", "abs"):
        return _signed({"neg": np.negative, "abs": np.abs}[name], "s" + kind[1:]), [t]
    if name == "mul" and "lo" in op:
        return np.multiply, [t, t]
    if name == "mul" and "hi" in op:
        return _high(kind), [t, t]
    if name == "mul" and "wide" in op:
        return _wide(kind), [t, t]
    if name == "mad" and "lo" in op:
        return (lambda a, b, c: a * b + c), [t, t, t]
    if name == "mad" and "wide" in op:
        wide = _wide(kind)
        return (lambda a, b, c: wide(a, b) + c), [t, t, WIDTH[f"b{t().itemsize * 16}"]]
    if name == "div":
        return _divide(lambda p, q, n: n if q else -1, kind), [t, t]
    if name == "rem":
        return _divide(lambda p, q, n: p - q * n, kind), [t, t]
    if name == "popc":
        return (lambda a: np.array([bin(int(v)).count("1") for v in a], u32)), [t]
    if name == "clz":
        return (lambda a: np.array([32 - int(v).bit_length() for v in a], u32)), [t]
    return None


def _compare(op, t):
    word, kind = op[1], op[-1]
    combine = next((o for o in op[2:-1] if o in ("and", "or", "xor")), None)
    convert = {k: (lambda a, s=s: a.view(s)) for k, s in SIGNED.items()} | {k: v[0] for k, v in HALF.items()}
    convert["f32"] = lambda a: a.view(f32)
    to = convert.get(kind, lambda a: a)
    if word in UNORDERED:
        compare = lambda a, b: COMPARE[UNORDERED[word]](a, b) | np.isnan(a) | np.isnan(b)
    elif word in ("num", "nan"):
        compare = lambda a, b: (np.isnan(a) | np.isnan(b)) == (word == "nan")
    elif word == "ne" and kind in ("f32", "f16", "bf16"):
        compare = lambda a, b: (a != b) & ~np.isnan(a) & ~np.isnan(b)
    else:
        compare = COMPARE[word]
    if combine is None:
        return (lambda a, b: compare(to(a), to(b))), [t, t]
    join = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[combine]
    return (lambda a, b, c: join(compare(to(a), to(b)), c)), [t, t, bool]


def _flush(x):
    subnormal = np.abs(x) < f32(2.0**-126)
    return np.where(subnormal, f32(0) * x, x) if subnormal.any() else x


def _float_function(op):
    name = op[0]
    two = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
    if name in two:
        return _float(two[name]), [u32, u32]
    if name in ("max", "min"):
        table = {"max": (np.fmax, np.maximum), "min": (np.fmin, np.minimum)}
        return _float(table[name]["NaN" in op]), [u32, u32]
    if name == "fma":
        return _float(_fma_down if "rm" in op else _fma), [u32] * 3
    one = {
        "neg": np.negative,
        "abs": np.abs,
        "ex2": lambda a: np.exp2(a.astype(f64)).astype(f32),
        "lg2": lambda a: np.log2(a.astype(f64)).astype(f32),
        "rsqrt": lambda a: (1 / np.sqrt(a.astype(f64))).astype(f32),
        "sqrt": lambda a: np.sqrt(a.astype(f64)).astype(f32),
        "rcp": lambda a: (1 / a.astype(f64)).astype(f32),
        "tanh": lambda a: np.tanh(a.astype(f64)).astype(f32),
        "sin": lambda a: np.sin(a.astype(f64)).astype(f32),
        "cos": lambda a: np.cos(a.astype(f64)).astype(f32),
    }
    if name in one:
        fn = one[name]
        return _float((lambda a: _flush(fn(_flush(a)))) if "ftz" in op else fn), [u32]
    return None
