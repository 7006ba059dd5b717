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
modelled: time, caches, SASS (what ptxas makes of the PTX), and more than one launch at a time. Needs the extra `aot`, and no GPU.
"""

from collections.abc import Callable
import dataclasses

from pallas_kernels.emulator import capture, launch
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

    Args:
      fn: the function.
      args: its arguments, pytrees of arrays.
      change: (kernel as compiled, host) -> (`Program`, host), called for each launch: may spoil a kernel, for tests of what is noticed.
      blocks: (kernel's name, grid, cluster) -> clusters of a launch to run, each (x, y, z) in the grid of clusters; None for all. What
        other blocks would have written holds garbage; `report.launches[i].written(output)` says which elements were written.
      observe: whether blocks say what they did: `report.launches[i].observed`.

    Raises:
      RuntimeError: the extra `aot` is not installed.
    """

    def __init__(self, fn: Callable, *args, change: Callable | None = None, blocks: Callable | None = None, observe: bool = False):
        self._options = {"change": change, "blocks": blocks, "observe": observe}
        self._schedule: dict = {}
        self._launches: list[launch.Result] = []
        self._error: BaseException | None = None
        self._go, self._kernels = capture.capture(fn, *args, launch=self._launch)

    def _launch(self, key, operands, shapes, aliases):
        if self._error is not None:  # XLA may go on after one of its calls has failed
            raise self._error
        try:
            done = launch.launch(self._kernels[key], operands, shapes, aliases, **self._options, **self._schedule)
        except BaseException as error:
            self._error = error
            raise
        self._launches.append(done)
        return done.outputs

    def __call__(self, *args, seed: int = 0, policy: str = "fair"):
        """(what the function gives, Report).

        Args:
          args: none, for those that it was compiled for; or others with their shapes.
          seed: of the schedule, and of what memory holds that nobody has written.
          policy: who goes next. "fair": any warp; "uneven": some far more often than others; "order": the first that can; "early", "late":
            as "fair", and bulk copies arrive at once, or as late as they may.

        Raises:
          Fault: a kernel did what no kernel may do; the message says what, where, and in which warp.
          NotImplementedError: a kernel has an instruction that is not known here.
        """
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}; got {str(policy)[:80]}.")
        self._schedule, self._launches, self._error = {"seed": seed, "policy": policy}, [], None
        try:
            out = self._go(*args)
        except Exception:
            if self._error is None:
                raise
        if self._error is not None:
            error, self._error = self._error, None
            raise error.with_traceback(None) from None
        return out, Report(self._launches)


def run(fn: Callable, *args, seed: int = 0, policy: str = "fair", blocks: Callable | None = None, observe: bool = False):
    """(what fn(*args) gives with its kernels emulated, Report). See `Emulated`."""
    return Emulated(fn, *args, blocks=blocks, observe=observe)(seed=seed, policy=policy)
