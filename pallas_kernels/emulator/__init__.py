"""Runs what Mosaic GPU makes of Pallas kernels, their PTX for Hopper, on a CPU, and says where it breaks a rule that a GPU need not punish.

    out, report = emulator.run(fn, *args, seed=1, policy="late")
    print(report)                                  # a line per launch

    emulated = emulator.Emulated(fn, *args)        # compiled once, for many schedules
    for seed, policy in enumerate(emulator.POLICIES):
        out, report = emulated(seed=seed, policy=policy)

Any function will do: other people's kernels, under jit, vmap and scan, or none at all. What is not a Mosaic kernel runs as on any CPU. A
wrong kernel raises `Fault`, or is in `report.launches[i].reports`; results are to be compared by whoever knows what they should be.

Modelled: the instructions of the PTX ISA that Mosaic writes for sm_90a, one warp at a time (`ptx`), and the machine that they meet: memory
and its order, the async proxy, mbarriers, clusters, bulk copies by tensor maps, wgmma's asynchrony, registers' budgets (`chip`). Not
modelled: time, caches, local memory, SASS (what ptxas makes of the PTX), and more than one launch at a time. Needs the extra `aot`, and no
GPU. What the line of a launch says as "noted" is allowed; a read of shared memory past its ref is only noted, or, where another ref has
values, not seen.
"""

from collections.abc import Callable
import dataclasses
import operator
import threading

from pallas_kernels.emulator import capture, launch
from pallas_kernels.emulator.chip.machine import LIMIT
from pallas_kernels.emulator.launch import POLICIES as POLICIES
from pallas_kernels.emulator.launch import Finding as Finding
from pallas_kernels.emulator.observed import Observed as Observed
from pallas_kernels.emulator.ptx.handlers import Fault as Fault


@dataclasses.dataclass
class Report:
    """The launches of a run, in the order in which they ran, each a `launch.Result`. As text, a line of each."""

    launches: list[launch.Result]

    def __str__(self) -> str:
        return "\n".join(map(str, self.launches)) or "no kernels were launched"


class Emulated:
    """A function with Mosaic kernels at its arguments' shapes, compiled once: each call runs it with another schedule.

    Threads that call it wait for each other: no callback of the function's own may call it.

    Args:
      fn: the function.
      args: its arguments, pytrees of arrays.
      change: (kernel as compiled, host) -> (`Program`, host), called for each launch: may spoil a kernel, for tests of what is noticed.
      blocks: (kernel's name, grid, cluster) -> clusters of a launch to run, each (x, y, z) in the grid of clusters; None for all. What
        other blocks would have written holds garbage; `report.launches[i].written(output)` says which elements were written.
      observe: whether blocks say what they did: `report.launches[i].observed`.
      limit: instructions that a launch may execute, in warps: more are a `Fault`. What only waits, in a loop, ends so.

    Raises:
      RuntimeError: the extra `aot` is not installed.
    """

    def __init__(
        self,
        fn: Callable,
        *args,
        change: Callable | None = None,
        blocks: Callable | None = None,
        observe: bool = False,
        limit: int = LIMIT,
    ):
        limit = _integer("limit", limit, least=1)
        self._alone, self._stop, self._inside = threading.RLock(), threading.Event(), set()
        self._options = {"change": change, "blocks": blocks, "observe": observe, "limit": limit, "stop": self._stop}
        self._schedule: dict = {}
        self._launches: list[launch.Result] = []
        self._error: BaseException | None = None
        self._go, self._kernels = capture.capture(fn, *args, launch=self._launch, stop=self._stop)

    def _launch(self, key, operands, shapes, aliases):
        if self._error is not None:  # XLA may go on after one of its calls has failed
            raise self._error
        self._inside.add(threading.get_ident())
        try:
            done = launch.launch(self._kernels[key], operands, shapes, aliases, **self._options, **self._schedule)
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._inside.discard(threading.get_ident())
        self._launches.append(done)
        return done.outputs

    def __call__(self, *args, seed: int = 0, policy: str = "fair"):
        """(what the function gives, Report).

        Args:
          args: none, for those that it was compiled for; or others with their shapes.
          seed: 0 or more; of the schedule, and of what memory holds that nobody has written.
          policy: who goes next. "fair": any warp; "uneven": some far more often than others; "order": the first that can; "early", "late":
            as "fair", and bulk copies arrive at once, or as late as they may.

        Raises:
          Fault: a kernel did what no kernel may do; the message says what, where, and in which warp.
          NotImplementedError: a kernel has an instruction that is not known here.
          RuntimeError: it was called from its own `change` or `blocks`.
        """
        seed = _check(seed, policy)
        if threading.get_ident() in self._inside:
            raise RuntimeError("an Emulated must not be called while it runs, by its own change or blocks; make another, and call that.")
        with self._alone:
            self._schedule, self._launches, self._error = {"seed": seed, "policy": policy}, [], None
            self._stop.clear()
            try:
                out = self._go(*args)
            except Exception:
                if self._error is None:
                    raise
            if self._error is not None:
                error, self._error = self._error, None
                raise error.with_traceback(None) from None
            return out, Report(self._launches)


def run(fn: Callable, *args, seed: int = 0, policy: str = "fair", **options):
    """(what fn(*args) gives with its kernels emulated, Report). See `Emulated`, whose options these are."""
    _check(seed, policy)
    return Emulated(fn, *args, **options)(seed=seed, policy=policy)


def _check(seed, policy) -> int:
    """The seed, if it and the policy are such."""
    if not isinstance(policy, str) or policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}; got {str(policy)[:80]}.")
    return _integer("seed", seed, least=0)


def _integer(name: str, value, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name} must be an integer, {least} or more; got {str(value)[:80]}.")
    return number
