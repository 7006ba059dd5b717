"""A few blocks of a launch at a true shape, emulated and compared with the truth of what they wrote."""

import dataclasses
import math

import numpy as np

from pallas_kernels.bench.large import Block, Large, sample
from pallas_kernels.emulator import capture, launch

BOUND = 2.0**-8  # a bfloat16 result rounds to half of that at most; sums of bfloat16 products are nearer


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What blocks did.

    Attributes:
      op, name, kernel: of the launch.
      ran, of: blocks that ran, and that there are.
      compared: elements of the results.
      error: the relative error to float32 of the result that is farthest from it; infinite where they did not write what they should,
        or something else.
      findings: rules that were broken.
      instructions: that warps executed; seconds: that it took here; bytes: of the largest array.
    """

    op: str
    name: str
    kernel: str
    ran: int
    of: int
    compared: int
    error: float
    findings: tuple[str, ...]
    instructions: int
    seconds: float
    bytes: int

    @property
    def right(self) -> bool:
        """Whether the error is within `BOUND`, and no rule was broken."""
        return self.error <= BOUND and not self.findings

    def row(self) -> list[str]:
        """Kernel, case, blocks that ran, that there are, error, findings, instructions, seconds, GB: cells of a table."""
        numbers = [f"{self.ran:,}", f"{self.of:,}", f"{self.error:.2g}"]
        cost = [f"{self.instructions:,}", f"{self.seconds:.1f}", f"{self.bytes / 1e9:.3f}"]
        return [self.kernel, self.name, *numbers, "; ".join(self.findings) or "none", *cost]


def run(case: Large, *, seed: int = 0, policy: str = "fair", blocks: list[Block] | None = None) -> Outcome:
    """The outcome of some of its blocks: `blocks`, clusters of the grid, or those that `sample` takes.

    Raises:
      Fault: a kernel did what no kernel may do.
      RuntimeError: the extra `aot` is not installed; or the launch has other operands than the case says.
    """
    ((compiled, operands, results, aliases),) = capture.kernels(case.run, *case.shapes)
    its_host = launch.load(compiled)[1]
    clusters = tuple(g // c for g, c in zip(its_host.grid, its_host.cluster, strict=True))
    chosen = [*sample(clusters), *case.more] if blocks is None else blocks
    arrays = case.operands(chosen)
    wanted, given = ([(tuple(a.shape), np.dtype(a.dtype).name) for a in them] for them in (operands, arrays))
    if compiled.name != case.kernel or wanted != given:
        raise RuntimeError(f"{case.kernel} must have the operands {given}, as its true shape says; got {compiled.name} of {wanted}.")
    done = launch.launch(compiled, arrays, results, aliases, seed=seed, policy=policy, blocks=lambda *_: chosen)
    written = [done.written(i) for i in range(len(done.outputs))]
    compared, error = _compare(case, arrays, done.outputs, written)
    return Outcome(
        op=case.op,
        name=case.name,
        kernel=compiled.name,
        ran=len(chosen) * math.prod(its_host.cluster),
        of=math.prod(its_host.grid),
        compared=compared,
        error=error,
        findings=tuple(dict.fromkeys(f"{f.kind} ({f.place.rpartition('/')[2]})" for f in done.reports)),
        instructions=sum(done.executed.values()),
        seconds=done.seconds,
        bytes=max(a.nbytes for a in arrays),
    )


def _compare(case: Large, arrays, outputs, written) -> tuple[int, float]:
    """How many elements were compared, and the error."""
    squares = np.zeros((len(outputs), 2))  # of differences, and of what is wanted
    compared, right, stray = 0, True, [seen.copy() for seen in written]
    for i, index, wanted in case.truth(arrays, written):
        stray[i][index] = False
        if wanted is None:
            continue
        got, wanted = (np.asarray(a, np.float64) for a in (outputs[i][index], wanted))
        right = right and bool(written[i][index].all())
        compared += wanted.size
        squares[i] += np.sum((got - wanted) ** 2), np.sum(wanted**2)
    if not right or not compared or any(seen.any() for seen in stray):
        return compared, math.inf
    errors = [math.sqrt(a / b) if b else (0.0 if a == 0 else math.inf) for a, b in squares]
    return compared, max(math.inf if math.isnan(e) else e for e in errors)
