"""A check in a process of its own, watched from outside: whatever it does, hang, crash, print or eat memory, becomes an `Outcome`.

    child = Child(command, limits); outcome = child.watch("route", bounds)

The process is told "go" in its standard input before it runs a kernel, and dies with it; it says how far it has come through a pipe of its
own, a line of JSON a phase (`pallas_kernels.check.child`). Each phase has a time limit. What is left of its group of processes is killed.
Knows no JAX.
"""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
from pathlib import Path
import selectors
import signal
import subprocess
import time
from typing import Literal

Verdict = Literal["passed", "wrong", "failed", "crashed", "hung", "unchecked"]
LIMITS = {"start": 90, "device": 60, "reference": 60, "compile": 60, "run": 20, "done": 20, "end": 10}  # seconds of each phase
_BLAMED = ("compile", "run")  # phases in which the kernel is at work; what goes wrong in others says nothing of it
_LINE, _TAIL = 1 << 16, 2000  # bytes of a line that a child may say; characters that are kept of what it prints
_KILLED = 10  # seconds in which a killed process must be gone
_ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a kernel's check.

    Attributes:
      kernel: its name.
      verdict: "passed"; "wrong": numbers; "failed": an error, or words that no check says; "crashed": a signal; "hung": a time limit;
        "unchecked": something else stood in the way, and nothing is known of the kernel.
      why: in words, "" where it passed.
      cases: name -> {"error", "worst"}, of those that came to their end.
      seconds: that it took.
      stuck: the process could not be killed.
    """

    kernel: str
    verdict: Verdict
    why: str = ""
    cases: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    stuck: bool = False


class Child:
    """A check that starts at once, and waits for `watch` before it runs a kernel.

    Args:
      command: what to start; it gets --report=NUMBER besides, a file descriptor to write to.
      limits: seconds of each phase, as `LIMITS`.
    """

    def __init__(self, command: Sequence[str], limits: Mapping[str, float] = LIMITS):
        self._limits, self._tail, self._said, self._stuck = limits, b"", b"", False
        self._reports, report = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*command, f"--report={report}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(report,),
                start_new_session=True,
                cwd=_ROOT,
            )
        except BaseException:
            os.close(self._reports)
            raise
        finally:
            os.close(report)

    def watch(self, kernel: str, right: Callable[[float, float], bool]) -> Outcome:
        """Lets it go, and waits until it ends or must. `right(error, worst)` says whether numbers are; call this once."""
        began, cases = time.monotonic(), {}
        verdict, why = "unchecked", "the check was interrupted"
        try:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(b"go\n")
                self._process.stdin.flush()
            verdict, why = self._follow(cases, right)
        finally:
            self.close()
        return Outcome(kernel, verdict, why, cases, time.monotonic() - began, self._stuck)

    def close(self) -> None:
        """Kills what is left of it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(_KILLED)
        except subprocess.TimeoutExpired:  # in the driver, whom no signal reaches
            self._stuck = True
        if self._reports >= 0:
            os.close(self._reports)
            self._reports = -1
        for file in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                file.close()

    def _follow(self, cases: dict, right: Callable[[float, float], bool]) -> tuple[Verdict, str]:
        phase, case, wrong = "start", "", ""
        for line in self._lines():
            at = f" {'after' if phase == 'done' else 'in'} {case!r}" if case else ""
            if line is None:
                return self._late(phase, at)
            try:
                told = json.loads(line)
                phase_told, case = told["phase"], str(told.get("case", ""))[:200]
                if phase_told == "failed":
                    return self._failed(phase, at, str(told["kind"]), str(told["message"]))
                if phase_told == "done":
                    numbers = {name: float(told[name]) for name in ("error", "worst")}
                    cases[case] = numbers
                    if not right(**numbers) and not wrong:
                        wrong = f"{case!r} is off by {numbers['error']:.3g}, at worst {numbers['worst']:.3g}"
                    if not bool(told["same"]) and not wrong:
                        wrong = f"{case!r} differs from run to run"
                self._limits[phase_told]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                return _blame(phase, "failed"), f"it said what no check says{at}: {line[:80]!r}"
            phase = phase_told
            if phase == "end":
                return ("wrong", wrong) if wrong else ("passed", "")
        return self._ended(phase, f" in {case!r}" if case else "")

    def _lines(self) -> Iterable[bytes | None]:
        """What it says, line by line; None where a phase's time is over."""
        phase, began = "start", time.monotonic()
        with selectors.DefaultSelector() as selector:
            for file in (self._reports, self._process.stdout.fileno()):
                selector.register(file, selectors.EVENT_READ)
            while self._reports in selector.get_map():
                left = began + self._limits.get(phase, 0) - time.monotonic()
                events = selector.select(max(0, left)) if left > 0 else []
                if not events and began + self._limits.get(phase, 0) <= time.monotonic():
                    yield None
                    return
                for key, _ in events:
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(key.fd)
                    elif key.fd == self._reports:
                        self._said += data
                    else:
                        self._tail = (self._tail + data)[-_TAIL:]
                *lines, self._said = self._said.split(b"\n")
                if len(self._said) > _LINE:
                    lines.append(self._said)
                for line in lines:
                    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
                        phase = json.loads(line).get("phase")
                    began = time.monotonic()
                    yield line

    def _late(self, phase: str, at: str) -> tuple[Verdict, str]:
        limit = f"{self._limits[phase]:g} s"
        if phase == "run":
            return "hung", f"it was not done{at} after {limit}"
        if phase == "compile":
            return "hung", f"it was not compiled{at} after {limit}"
        return "unchecked", f"the check was not over with '{phase}'{at} after {limit}"

    def _failed(self, phase: str, at: str, kind: str, message: str) -> tuple[Verdict, str]:
        what = f"{kind}{at}: {' '.join(message.split())[:300]}"
        memory = kind == "MemoryError" or "RESOURCE_EXHAUSTED" in message or "out of memory" in message.lower()
        return ("unchecked", f"there was not enough memory ({what})") if memory else (_blame(phase, "failed"), what)

    def _ended(self, phase: str, at: str) -> tuple[Verdict, str]:
        """It has closed its pipe, and not said why."""
        until = time.monotonic() + self._limits["end"]
        while (status := self._status()) is None and time.monotonic() < until:
            time.sleep(0.01)
        tail = " ".join(self._tail.decode(errors="replace").split())[-300:]
        last = f"; its last words: {tail}" if tail else ""
        if status is None:
            return _blame(phase, "failed"), f"it fell silent{at}{last}"
        if status == -signal.SIGKILL:  # not by this process
            return "unchecked", f"it was killed{at}, as where memory runs out{last}"
        if status < 0:
            return _blame(phase, "crashed"), f"it died of {signal.Signals(-status).name}{at}{last}"
        return _blame(phase, "failed"), f"it ended with status {status}{at}, without a result{last}"

    def _status(self) -> int | None:
        """Its exit status, or minus a signal; None while it runs. It stays a zombie, so that its group can be killed."""
        ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _blame(phase: str, verdict: Verdict) -> Verdict:
    return verdict if phase in _BLAMED else "unchecked"


def in_turn(
    kernels: Sequence[str],
    command: Callable[[str], Sequence[str]],
    right: Callable[[float, float], bool],
    *,
    limits: Mapping[str, float] = LIMITS,
    most: float = 600,
    ahead: int = 1,
    told: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """The kernels' outcomes: they run one after the other, while the next ones' processes start, and compile.

    Args:
      kernels: names.
      command: what checks one.
      right: whether (error, worst) are.
      limits: seconds of each phase of one.
      most: seconds of all; those that are not begun by then are unchecked, and so are those after one that cannot be killed, and after two
        in a row that could not be checked.
      ahead: processes that wait beside the one that runs.
      told: is called with each outcome.
    """
    began, outcomes, waiting, stop = time.monotonic(), [], collections.deque(), ""
    coming = collections.deque(kernels)
    try:
        for kernel in kernels:
            if not stop and time.monotonic() - began > most:
                stop = f"{most:g} s were over"
            while coming and len(waiting) <= ahead and not stop:
                waiting.append(Child(command(coming.popleft()), limits))
            outcome = Outcome(kernel, "unchecked", stop) if stop else waiting.popleft().watch(kernel, right)
            if outcome.stuck:
                stop = f"the process that checked {kernel} cannot be killed"
            elif not stop and [each.verdict for each in (*outcomes[-1:], outcome)] == ["unchecked"] * 2:
                stop = f"nothing can be checked here: {outcome.why}"
            outcomes.append(outcome)
            told(outcome)
    finally:
        for child in waiting:
            child.close()
    return outcomes
