"""Whether the kernels can be trusted on the GPU at hand: each is run in a process of its own, and held against XLA's form.

    python -m pallas_kernels.check                      # a table, and a verdict in the user's cache
    left_out = check.left_out(key, "20b")               # from the verdict; where there is none, the check runs once

A hang is a verdict, not a hang: processes have time limits, and are killed. A verdict holds for a device, a driver, a jax and a source of
the kernels (`verdicts`). Arrays and devices as they are handed in; knows no model.
"""

from collections.abc import Callable, Sequence
import functools
import logging
import os
import sys

from pallas_kernels.bench import measure
from pallas_kernels.check import selection, verdicts, watching
from pallas_kernels.check.selection import CHECKS as CHECKS
from pallas_kernels.check.selection import PRESETS as PRESETS
from pallas_kernels.check.selection import TOGETHER as TOGETHER
from pallas_kernels.check.verdicts import Key as Key
from pallas_kernels.check.verdicts import key as key
from pallas_kernels.check.watching import Outcome as Outcome
from pallas_kernels.dispatch import KERNELS as KERNELS

SECONDS = 600  # of a whole check, whatever hangs
_AHEAD = 3  # processes that compile beside the one whose kernel runs, where there are cores for them
_TOGETHER = 2  # times a kernel's error that two layers may be off by; XLA's forms are at 0.9
_SAID = 120  # characters of a reason that are logged
_SLOW = 15  # times that a CPU's phases take longer than a GPU's
_log = logging.getLogger(__name__)


def right(error: float, worst: float, times: float = 1) -> bool:
    """Whether numbers of `bench.measure.errors` are those of a kernel that is right, or of several behind each other. False for NaN."""
    return error <= times * measure.ERROR and worst <= measure.WORST


def run(
    kernels: Sequence[str] = CHECKS,
    preset: str = "20b",
    *,
    rehearse: bool = False,
    device: int | None = None,
    compilation_cache: str | None = None,
    without: Sequence[str] = (),
    told: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """What becomes of each kernel on the GPU of this machine, or, rehearsed, in Mosaic's interpreter on small arrays.

    Args:
      kernels: names out of `CHECKS`. "together" comes last, and without kernels that have not passed by then.
      preset: of `PRESETS`, whose shapes are run.
      rehearse: on the CPU, which says nothing of a GPU.
      device: number of the GPU among those that are visible; the default leaves it to JAX.
      compilation_cache: JAX's folder for compiled programs, in which a second check finds those of the first.
      without: kernels that are known not to pass, which "together" is without too.
      told: is called with each outcome as it comes.

    Raises:
      ValueError: there is no such kernel or preset.
    """
    if unknown := [name for name in kernels if name not in CHECKS]:
        raise ValueError(f"kernels must be of {', '.join(CHECKS)}; got {', '.join(unknown)}; use these names.")
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {preset!r}; use one of these.")
    options = [f"--preset={preset}", *(["--rehearse"] if rehearse else [])]
    options += [] if device is None else [f"--device={device}"]
    options += [] if compilation_cache is None else [f"--compilation_cache={compilation_cache}"]

    def command(kernel: str) -> list[str]:
        return [sys.executable, "-m", "pallas_kernels.check.child", f"--kernel={kernel}", *options]

    how = {
        "limits": {phase: seconds * (_SLOW if rehearse else 1) for phase, seconds in watching.LIMITS.items()},
        "ahead": max(1, min(_AHEAD, len(os.sched_getaffinity(0)) // 4)),
        "told": told,
    }
    outcomes = watching.in_turn([k for k in kernels if k != TOGETHER], command, right, most=SECONDS * (3 if rehearse else 1), **how)
    if TOGETHER in kernels:
        if bad := [*without, *(outcome.kernel for outcome in outcomes if outcome.verdict != "passed")]:
            options.append(f"--without={','.join(bad)}")
        outcomes += watching.in_turn([TOGETHER], command, functools.partial(right, times=_TOGETHER), **how)
    return outcomes


def keep(key: Key, preset: str, outcomes: Sequence[Outcome]) -> None:
    """Writes what is known now of kernels to the user's cache; nothing of those that could not be checked."""
    known = [each for each in outcomes if each.verdict != "unchecked"]
    found = {selection.label(o.kernel, preset): {"verdict": o.verdict, "why": o.why, "cases": dict(o.cases)} for o in known}
    if found:
        verdicts.add(key, found)


def left_out(key: Key, preset: str, *, device: int | None = None, compilation_cache: str | None = None, run=run) -> dict[str, str]:
    """Kernels that are not to be trusted with a model's shapes, and why: by the verdict that is kept, or by a check, made now and once.

    Processes that ask at the same time wait for the one that checks. What is left out is logged, in one warning.

    Args:
      key: of the device, `verdicts.key`.
      preset, device, compilation_cache: as for `run`.
      run: what makes the check.
    """
    reasons = _reasons(verdicts.read(key), preset)
    if None in reasons.values():
        with verdicts.alone(key, SECONDS + 60):
            reasons = _reasons(verdicts.read(key), preset)  # another process may have written it
            if missing := [kernel for kernel, reason in reasons.items() if reason is None]:
                _log.warning(
                    "%s never checked on this %s with these versions; done now, once, in a minute or two (kernels='on' or 'off' skips it).",
                    "The kernels were" if len(missing) == len(CHECKS) else f"{', '.join(missing)} were",
                    key.device,
                )
                told = lambda outcome: keep(key, preset, [outcome])  # at once: whoever stops this loses none
                bad = [kernel for kernel, reason in reasons.items() if reason and kernel != TOGETHER]
                outcomes = run(missing, preset, device=device, compilation_cache=compilation_cache, without=bad, told=told)
                reasons |= {each.kernel: _reason(each.verdict, each.why) for each in outcomes}
    bad = {kernel: reason for kernel, reason in reasons.items() if reason}
    if together := bad.pop(TOGETHER, ""):  # which of them it is nobody knows
        bad |= {kernel: f"together with others {together}" for kernel in selection.DECODING if kernel not in bad}
    if bad:
        _log.warning(
            "On this %s XLA's forms run in place of the kernels %s. `python -m pallas_kernels.check` checks again; kernels='on' runs them.",
            key.device,
            ", ".join(f"{kernel} ({reason[:_SAID]})" for kernel, reason in bad.items()),
        )
    return bad


def _reasons(found: verdicts.Found, preset: str) -> dict[str, str | None]:
    """Of each kernel why it is not trusted; "" where it is, None where that is not known."""
    kept = {kernel: found.get(selection.label(kernel, preset)) for kernel in CHECKS}
    return {kernel: None if one is None else _reason(one["verdict"], one["why"]) for kernel, one in kept.items()}


def _reason(verdict: str, why: str) -> str:
    return "" if verdict == "passed" else f"{verdict}: {why}"
