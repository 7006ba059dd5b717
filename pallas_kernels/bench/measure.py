"""What a case takes on the GPU at hand: first whether it is right, then its time beside the least that the device allows.

A kernel of ten microseconds is shorter than its launch by Python. So a program runs the case many times, one after another, each time
on arguments of its own (together more than the L2 cache holds), and several such programs are queued before anybody waits.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
import statistics
import time

import jax
import jax.numpy as jnp

from pallas_kernels.bench import Case

# Rounding the results, or one intermediate, to bfloat16 gives an error of 0.0011 (relative, root mean square); XLA's own bfloat16 forms
# of these ops are at 0.0016 to 0.0022. The bound is twice that. An element may be further off: by this part of the largest.
ERROR, WORST = 2.0**-8, 2.0**-5

_COLD = 256 * 2**20  # bytes of arguments, several times an L2 cache, that go by before one is used again
_LONG = 1e-3  # seconds that a program should take, far more than its launch
_MOST_BYTES, _MOST_SETS = 16 * 2**30, 64
_SMALL = 2**16  # bytes of an array that all sets share: it is in the cache anyway, and each argument is work for the host
_PROGRAMS, _REPEATS = 16, 9  # programs queued at a time, and how often that is timed

# One run after the other, as in a program with a data dependence between them. Only GPUs read this.
_OPTIONS = {"xla_gpu_command_buffer_scheduling_mode": "SERIALIZE"}


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What the device was measured to do: bytes a second of a copy (read and written together), bfloat16 operations a second."""

    bandwidth: float
    flops: float

    def floor(self, case: Case) -> float:
        """Seconds below which no kernel for this case can be; a little less where it mostly reads, for a copy also writes."""
        return max(case.bytes / self.bandwidth, case.flops / self.flops)


@dataclasses.dataclass(frozen=True)
class Result:
    """A case's outcome. `seconds` is None where the results are wrong.

    Attributes:
      error: of all results of one dtype kind, |got - wanted| / |wanted|, the largest.
      worst: largest difference as a part of the largest element.
      floor: seconds, of `Ceilings`.
      seconds: of one run; the median.
      launched: part of the time for which the host was still launching; near 1, it is the host that was measured.
    """

    op: str
    name: str
    error: float
    worst: float
    floor: float
    seconds: float | None = None
    launched: float | None = None

    @property
    def right(self) -> bool:
        return self.error <= ERROR and self.worst <= WORST  # False for NaN

    @property
    def ratio(self) -> float | None:
        """How many times the floor it takes."""
        return None if self.seconds is None else self.seconds / self.floor


def measure(case: Case, ceilings: Ceilings, *, clock: Callable[[], float] = time.perf_counter) -> Result:
    """Check a case, and time it if it is right."""
    result = Result(case.op, case.name, *errors(case), ceilings.floor(case))
    if not result.right:
        return result
    seconds, launched = _time(case, result.floor, clock)
    return dataclasses.replace(result, seconds=seconds, launched=launched)


def errors(case: Case) -> tuple[float, float]:
    """A run's `error` and `worst` against the reference. Integers and booleans must be equal; if not, both are infinite."""
    return compare(case, program(case)(*arguments(case)), wanted(case))


def arguments(case: Case) -> tuple:
    """The arguments that a case is checked with."""
    return jax.jit(case.arguments)(jax.random.key(0))


def program(case: Case) -> jax.stages.Wrapped:
    """What is checked, as a jitted function of the arguments."""
    return jax.jit(case.run, donate_argnums=case.donate)


def wanted(case: Case):
    """What the reference makes of `arguments`."""
    with jax.default_matmul_precision("highest"):
        return jax.jit(case.reference)(*arguments(case))


def compare(case: Case, got, wanted) -> tuple[float, float]:
    """`error` and `worst` of results, as `errors` has them."""
    if jax.tree.map(jnp.shape, got) != jax.tree.map(jnp.shape, wanted):
        raise ValueError(f"{case.op}, {case.name}: the kernel and its reference give different shapes.")
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    found = [tuple(map(float, _difference(a, b))) for a, b in pairs]
    return tuple(_largest(column) for column in zip(*found, strict=True))


def ceilings(*, clock: Callable[[], float] = time.perf_counter, scale: int = 2**13) -> Ceilings:
    """Measure this device: a copy of 16 * scale^2 bytes, and a product of two matrices of scale^2."""
    one = lambda *shape: lambda key: (jax.random.normal(key, shape, jnp.float32).astype(jnp.bfloat16),)
    size = 8 * scale * scale
    copy = Case("copy", "", lambda x: x + jnp.bfloat16(1), jnp.asarray, one(8, scale, scale), 2 * 2 * size, size)
    two = lambda key: tuple(one(scale, scale)(k)[0] for k in jax.random.split(key))
    product = Case("product", "", jnp.matmul, jnp.matmul, two, 3 * 2 * scale**2, 2 * scale**3)
    return Ceilings(copy.bytes / _time(copy, _LONG, clock)[0], product.flops / _time(product, _LONG, clock)[0])


def _time(case: Case, floor: float, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of one run, and the part of them for which the host was launching."""
    count = sets(case, floor)
    draw = jax.jit(case.arguments)
    given, varying = [], []
    for i in range(count):
        drawn = draw(jax.random.key(i))
        given.append([drawn[place] for place in case.donate])
        leaves, structure = jax.tree.flatten([None if place in case.donate else a for place, a in enumerate(drawn)])
        own = _own(leaves, bool(case.donate))
        shared = [None if keep else a for a, keep in zip(leaves, own, strict=True)]
        varying.append([a if keep else None for a, keep in zip(leaves, own, strict=True)])
    del drawn, leaves
    program = jax.jit(functools.partial(_run_all, case, structure), donate_argnums=0, compiler_options=_OPTIONS)
    for _ in range(2):  # compiles; then records what will be replayed
        given, out = program(given, varying, shared)
        jax.block_until_ready((given, out))
    seconds, launching = [], []
    for _ in range(_REPEATS):
        start = clock()
        for _ in range(_PROGRAMS):
            given, out = program(given, varying, shared)
        launched = clock()
        jax.block_until_ready((given, out))
        end = clock()
        seconds.append((end - start) / (_PROGRAMS * count))
        launching.append((launched - start) / (end - start))
    return statistics.median(seconds), statistics.median(launching)


def sets(case: Case, floor: float) -> int:
    """How many sets of arguments a program takes: enough to empty the L2 cache and to outlast a launch, as far as memory allows."""
    size = max(1, sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(case.shapes())))
    wanted = max(math.ceil(_COLD / size), math.ceil(_LONG / floor), 2)
    return max(1, min(wanted, _MOST_SETS, _MOST_BYTES // size))


def _own(leaves: list, donates: bool) -> list[bool]:
    """Which arrays each set has of its own: large ones; all, where nothing else would tell runs apart, for XLA would run them once."""
    large = [a.nbytes >= _SMALL for a in leaves]
    return large if any(large) or donates else [True] * len(leaves)


def _run_all(case: Case, structure, given: list, varying: list, shared: list) -> tuple[list, list]:
    run = jax.jit(case.run)  # one function in the program, called often: Mosaic compiles its kernels once
    new, results = [], []
    for donated, own in zip(given, varying, strict=True):
        rest = jax.tree.unflatten(structure, [b if a is None else a for a, b in zip(own, shared, strict=True)])
        places = dict(zip(case.donate, donated, strict=True))
        # Without the barrier XLA multiplies what several runs share, an x by all their weights, as one product.
        out = run(*jax.lax.optimization_barrier([places.get(i, a) for i, a in enumerate(rest)]))
        updated, others = _split(donated, jax.tree.leaves(out))
        new.append(updated)
        results.append(others)
    return new, results


def _split(donated: list, outputs: list) -> tuple[list, list]:
    """Outputs that take the places of donated arrays (the first of the same shape and dtype), and the others."""
    outputs = list(outputs)

    def replace(array):
        found = next((i for i, o in enumerate(outputs) if (o.shape, o.dtype) == (array.shape, array.dtype)), None)
        if found is None:
            raise ValueError(f"no output of shape {array.shape} and dtype {array.dtype} takes the place of a donated argument.")
        return outputs.pop(found)

    return jax.tree.map(replace, donated), outputs


@jax.jit
def _difference(got: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
    if not jnp.issubdtype(wanted.dtype, jnp.floating):
        off = jnp.where(jnp.array_equal(got, wanted), 0.0, jnp.inf)
        return off, off
    got, wanted = got.astype(jnp.float32), wanted.astype(jnp.float32)
    size, top = jnp.linalg.norm(wanted.ravel()), jnp.max(jnp.abs(wanted))
    off = jnp.abs(got - wanted)
    return jnp.linalg.norm(off.ravel()) / jnp.maximum(size, 1e-30), jnp.max(off) / jnp.maximum(top, 1e-30)


def _largest(values) -> float:
    return math.nan if any(map(math.isnan, values)) else max(values)
