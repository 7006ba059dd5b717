"""A small call under several schedules: whether its results are right, and the same to the bit, and no rule was broken."""

from collections.abc import Callable, Iterable
import dataclasses

import jax
import numpy as np

from pallas_kernels import emulator
from pallas_kernels.bench.small import Small

LEAST = 2e-6  # of the bound: sums of float32 differ by their order


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch of a call.

    Attributes:
      kernel: its name.
      instructions: that warps executed, under the first schedule.
      seconds: that the emulator took, on average.
    """

    kernel: str
    instructions: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a call.

    Attributes:
      op, name: of the call.
      schedules: how many it ran under.
      launches: under the first schedule.
      errors: of each result, the largest over the schedules: |got - wanted| / |wanted|; infinite where integers differ or it is none.
      plain: the same of XLA's form.
      same: whether every schedule gave the same bits.
      findings: broken rules, and what ended a run.
    """

    op: str
    name: str
    schedules: int
    launches: tuple[Launch, ...]
    errors: tuple[float, ...]
    plain: tuple[float, ...]
    same: bool
    findings: tuple[str, ...]

    @property
    def accurate(self) -> bool:
        """Whether no error is more than twice that of XLA's form."""
        pairs = zip(self.errors, self.plain, strict=True)
        return bool(self.errors) and all(error <= max(2 * plain, LEAST) for error, plain in pairs)  # False for NaN

    @property
    def right(self) -> bool:
        return self.accurate and self.same and not self.findings

    @property
    def worst(self) -> tuple[float, float]:
        """Error and XLA's error of the result that is nearest to its bound."""
        pairs = zip(self.errors, self.plain, strict=True)
        return max(pairs, key=lambda pair: pair[0] / max(2 * pair[1], LEAST), default=(float("inf"), float("nan")))


def schedules(count: int) -> list[tuple[int, str]]:
    """Seeds and policies, which take turns."""
    return [(seed, emulator.POLICIES[seed % len(emulator.POLICIES)]) for seed in range(count)]


def examine(case: Small, among: Iterable[tuple[int, str]], *, change: Callable | None = None) -> Outcome:
    """Runs a call under the schedules `among`, pairs of seed and policy.

    Args:
      case: what to run.
      among: such as `schedules(5)`.
      change: spoils each kernel before it runs; see `emulator.Emulated`.
    """
    arguments = case.arguments()
    with case.tuned():
        emulated = emulator.Emulated(case.run, *arguments, change=change)
    wanted, plain = truth(case, arguments)
    return judge(case, emulated, wanted, plain, among)


def truth(case: Small, arguments: tuple) -> tuple[list[np.ndarray], list[float]]:
    """The results in float32, and the errors of XLA's form."""
    with jax.default_matmul_precision("highest"):
        wanted = leaves(jax.jit(case.reference)(*arguments))
    return wanted, [difference(p, w) for p, w in zip(leaves(jax.jit(case.xla)(*arguments)), wanted, strict=True)]


def judge(case: Small, emulated: emulator.Emulated, wanted: list, plain: list[float], among: Iterable[tuple[int, str]]) -> Outcome:
    """Runs what is compiled already."""
    runs, findings, first, same = [], {}, None, True
    errors, among = [0.0] * len(wanted), list(among)
    for seed, policy in among:
        try:
            out, report = emulated(seed=seed, policy=policy)
        except emulator.Fault as fault:
            findings[f"fault: {str(fault).splitlines()[0]}"] = None
            errors = [float("inf")] * len(wanted)
            continue
        runs.append(report.launches)
        findings |= {f"{launch.name}: {said(found)}": None for launch in report.launches for found in launch.reports}
        got = leaves(out)
        errors = [max(e, difference(g, w)) for e, g, w in zip(errors, got, wanted, strict=True)]
        first = got if first is None else first
        same = same and all(a.tobytes() == b.tobytes() for a, b in zip(got, first, strict=True))
    launches = [_launch(list(of)) for of in zip(*runs, strict=True)]
    return Outcome(case.op, case.name, len(among), tuple(launches), tuple(errors), tuple(plain), same, tuple(findings))


def said(found) -> str:
    """A broken rule in a few words: which, and the line of Python."""
    rule, place, *_ = found
    return f"{rule} ({place.rpartition('/')[2]})"


def leaves(out) -> list[np.ndarray]:
    return [np.asarray(a) for a in jax.tree.leaves(out)]


def difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """Relative error in the Euclidean norm; of integers 0 or infinity."""
    if got.shape != wanted.shape:
        return float("inf")
    if wanted.dtype.kind in "biu":
        return 0.0 if np.array_equal(got, wanted) else float("inf")
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    error = np.linalg.norm(got - wanted) / max(np.linalg.norm(wanted), 1e-30)
    return float(error) if np.isfinite(error) else float("inf")


def _launch(runs: list) -> Launch:
    return Launch(runs[0].name, sum(runs[0].executed.values()), float(np.mean([run.seconds for run in runs])))
