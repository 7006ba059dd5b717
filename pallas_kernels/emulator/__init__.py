"""Runs what Mosaic GPU makes of Pallas kernels, their PTX for Hopper, on a CPU, and says where it breaks a rule that a GPU punishes silently.

    out, report = emulator.run(fn, *args, seed=1, policy="late")

Needs the extra `aot`.
"""

from collections.abc import Callable
import dataclasses

from pallas_kernels.emulator import capture, launch
from pallas_kernels.emulator.chip.memory import Fault as Fault
from pallas_kernels.emulator.launch import POLICIES as POLICIES


@dataclasses.dataclass
class Report:
    """The launches of a run, in order, each a `launch.Result`."""

    launches: list


class Emulated:
    """A function with Mosaic kernels at its arguments' shapes, compiled once: each call runs it with another schedule."""

    def __init__(self, fn: Callable, *args, change=None):
        self._change, self._launches = change, []
        self._go, self._kernels = capture.capture(fn, *args, launch=self._launch)

    def _launch(self, key, operands, shapes, aliases):
        done = launch.launch(self._kernels[key], operands, shapes, aliases, seed=self._seed, policy=self._policy, change=self._change)
        self._launches.append(done)
        return done.outputs

    def __call__(self, *args, seed: int = 0, policy: str = "fair"):
        """(what the function gives, Report). Without `args` of those that it was compiled for; else of others with their shapes."""
        self._seed, self._policy, self._launches = seed, policy, []
        out = self._go(*args)
        return out, Report(self._launches)


def run(fn: Callable, *args, seed: int = 0, policy: str = "fair"):
    """(what fn(*args) gives with its kernels emulated, Report)."""
    return Emulated(fn, *args)(seed=seed, policy=policy)
