"""A kernel that can be run: its instructions as functions (warp, lanes) -> what comes next. `lanes` is None where all 32 take part.

PTX ISA: "Special Registers" (a grid and its clusters; %smid and %clock are 0), "Control Flow Instructions" (bra, ret, exit; no calls), mov
of "Data Movement". Instructions that say only when something happens (prefetch, membar, nanosleep, pmevent, griddepcontrol) do nothing.
"""

import numpy as np

from pallas_kernels.emulator.chip import access, barriers, exchange, tma, wgmma  # noqa: F401  they say what they handle
from pallas_kernels.emulator.chip.memory import PARAM_BASE, SHARED_BASE
from pallas_kernels.emulator.ptx import alu
from pallas_kernels.emulator.ptx.handlers import ENDED, HANDLERS, LANES, handles, merge
from pallas_kernels.emulator.ptx.parse import WIDTH, Address, Instruction, Kernel


class Program:
    """A kernel that can be run.

    Attributes:
      code: a function per instruction.
      sources: per instruction the registers that it reads, by name and number.
    """

    def __init__(self, kernel: Kernel):
        self.kernel, self.instructions = kernel, kernel.code
        self.number = {name: i for i, name in enumerate(kernel.registers)}
        self.constants, self.specials = {}, {}
        self.sources, self.code, self.machine = [], [], None
        self._reads = []
        for instruction in kernel.code:
            self._reads = []
            self.code.append(self._compile(instruction))
            self.sources.append(self._reads)
        self.registers = len(self.number)

    def prepare(self, warp) -> None:
        """Constants and special registers of a warp."""
        for number, array in self.constants.values():
            warp.R[number] = array
        for name, number in self.specials.items():
            warp.R[number] = self._special(name, warp)

    def _special(self, name: str, warp):
        block, launch = warp.block, warp.block.machine.launch
        axes = {"x": 0, "y": 1, "z": 2}
        thread = np.arange(LANES, dtype=np.uint32) + np.uint32(warp.index * LANES)
        full = lambda value: np.full(LANES, value, np.uint32)
        base, _, axis = name[1:].partition(".")
        a = axes.get(axis, 0)
        table = {
            "tid": lambda: thread if a == 0 else full(0),
            "ntid": lambda: full(launch.threads if a == 0 else 1),
            "ctaid": lambda: full(block.ids[a]),
            "nctaid": lambda: full(launch.grid[a]),
            "laneid": lambda: np.arange(LANES, dtype=np.uint32),
            "warpid": lambda: full(warp.index),
            "cluster_ctaid": lambda: full(block.ids[a] % launch.cluster[a]),
            "cluster_nctaid": lambda: full(launch.cluster[a]),
            "cluster_ctarank": lambda: full(block.rank),
            "cluster_nctarank": lambda: full(int(np.prod(launch.cluster))),
            "clusterid": lambda: full(block.ids[a] // launch.cluster[a]),
            "nclusterid": lambda: full(launch.grid[a] // launch.cluster[a]),
            "smid": lambda: full(0),
            "clock": lambda: full(0),
        }
        return table[base]()

    def source(self, operand, dtype) -> int:
        """Number of the register that holds an operand."""
        if isinstance(operand, str) and operand in self.number and operand not in self.specials:
            n = self.number[operand]
            self._reads.append((operand, n))
            return n
        if isinstance(operand, str) and operand.startswith("%"):
            if operand not in self.specials:
                self.specials[operand] = self.number[operand] = len(self.number)
            return self.specials[operand]
        if isinstance(operand, str):
            operand = self.symbol(operand)
        if isinstance(operand, tuple) and operand[0] in ("f32", "f64"):
            operand = operand[1]
        if not isinstance(operand, int):
            raise NotImplementedError
        dtype = np.uint32 if dtype is None else dtype
        value = bool(operand) if dtype is bool else operand & (2 ** (8 * dtype().itemsize) - 1)
        key = value, np.dtype(dtype).str
        if key not in self.constants:
            name = f"={value}:{np.dtype(dtype).str}"
            self.number[name] = len(self.number)
            self.constants[key] = self.number[name], np.full(LANES, value, dtype)
        return self.constants[key][0]

    def symbol(self, name: str) -> int:
        if name in self.kernel.params:
            return PARAM_BASE + self.kernel.params[name][0]
        if name in self.kernel.shared:
            return SHARED_BASE
        if name == "global_scratch":
            return 0
        raise NotImplementedError

    def dest(self, operand: str) -> int | None:
        return None if operand == "_" else self.number[operand]

    def address(self, operand: Address, dtype=np.uint64):
        """warp -> addresses of lanes, int64."""
        offset = operand.offset
        if operand.base is None:
            fixed = np.full(LANES, offset, np.int64)
            return lambda R: fixed
        if operand.base not in self.number:
            fixed = np.full(LANES, self.symbol(operand.base) + offset, np.int64)
            return lambda R: fixed
        n = self.source(operand.base, dtype)
        return lambda R: R[n].astype(np.int64) + offset

    def _compile(self, i: Instruction):
        try:
            run = self._function(i)
        except (NotImplementedError, KeyError, StopIteration, ValueError) as error:  # of modifiers, types and forms
            said = f"the emulator does not know the instruction {i.name} ({i.text}), in {self.kernel.name} at {i.loc}."
            raise NotImplementedError(said) from error
        return run if i.predicate is None or i.op[0] == "bra" else self._predicated(i, run)

    def _function(self, i: Instruction):
        if i.op[0] in HANDLERS:
            return HANDLERS[i.op[0]](self, i)
        if (found := alu.function(i.op)) is None:
            raise NotImplementedError
        return self._arithmetic(i, *found)

    def _predicated(self, i: Instruction, run):
        name, negated = i.predicate
        p = self.source(name, bool)

        def predicated(w, m):
            q = w.R[p]
            if negated:
                q = ~q
            if m is not None:
                q = q & m
            if q.all():
                return run(w, None)
            return run(w, q) if q.any() else None

        return predicated

    def _arithmetic(self, i: Instruction, fn, kinds):
        target, *operands = i.operands
        if isinstance(target, tuple) or isinstance(operands[0], tuple) and operands[0][0] not in ("f32", "f64", "not"):
            return self._vector_move(i)
        d = self.dest(target)
        negate = [isinstance(o, tuple) and o[0] == "not" for o in operands]
        operands = [o[1] if n else o for o, n in zip(operands, negate, strict=True)]
        numbers = [self.source(o, k) for o, k in zip(operands, kinds, strict=True)]
        if i.op[0] in ("shl", "shr") and isinstance(operands[1], int):
            fn = alu.shift_by(i.op, operands[1])
        if any(negate):
            inner, at = fn, negate
            fn = lambda *x: inner(*(~a if n else a for a, n in zip(x, at, strict=True)))
        if i.op[0] == "mov":
            (a,) = numbers

            def move(w, m):
                w.R[d] = w.R[a] if m is None else merge(m, w.R[a], w.R[d])

            return move
        if len(numbers) == 2:
            a, b = numbers

            def binary(w, m):
                R = w.R
                value = fn(R[a], R[b])
                R[d] = value if m is None else merge(m, value, R[d])

            return binary

        def general(w, m):
            R = w.R
            value = fn(*[R[n] for n in numbers])
            R[d] = value if m is None else merge(m, value, R[d])

        return general

    def _vector_move(self, i: Instruction):
        """mov that packs or unpacks."""
        target, source = i.operands
        if isinstance(target, tuple):
            s, ds = self.source(source, WIDTH[i.op[-1]]), [self.dest(t) for t in target]
            bits = 8 * WIDTH[i.op[-1]]().itemsize // len(ds)
            part = WIDTH[f"b{bits}"]

            def unpack(w, m):
                words = np.ascontiguousarray(w.R[s]).view(part).reshape(LANES, len(ds))
                for k, d in enumerate(ds):
                    if d is not None:
                        w.R[d] = words[:, k].copy() if m is None else merge(m, words[:, k], w.R[d])

            return unpack
        whole = WIDTH[i.op[-1]]
        part = WIDTH[f"b{8 * whole().itemsize // len(source)}"]
        d, ss = self.dest(target), [self.source(o, part) for o in source]

        def pack(w, m):
            parts = [np.zeros(LANES, part) if w.R[s] is None else w.R[s] for s in ss]  # a half may be undefined
            value = np.stack(parts, 1).view(whole).reshape(LANES)
            w.R[d] = value if m is None else merge(m, value, w.R[d])

        return pack


@handles("bra")
def _branch(program, i):
    (target,) = i.operands
    if i.predicate is None:
        return lambda w, m: target
    name, negated = i.predicate
    p = program.source(name, bool)

    def branch(w, m):
        q = w.R[p]
        if negated:
            q = ~q
        taken = q if m is None else q & m
        if not taken.any():
            return None
        if taken.all() if m is None else (taken == m).all():
            return target
        return taken, target

    return branch


@handles("ret", "exit")
def _end(program, i):
    return lambda w, m: ENDED


@handles("prefetch", "membar", "nanosleep", "pmevent", "griddepcontrol")
def _nothing(program, i):
    return lambda w, m: None
