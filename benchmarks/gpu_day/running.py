"""One piece in a process of its own, with a time limit; what it said is kept however it ends.

Its output is a file, and lines of JSON in it are results. What is left of its group of processes is killed, and the process itself dies
with this one.
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

_ROOT = Path(__file__).parents[2]
_LONGEST = 1 << 20  # characters of a line that is looked at


@dataclasses.dataclass(frozen=True)
class State:
    """What became of a piece.

    Attributes:
      name: of the piece.
      status: "done", "failed" or "cut"; "begun" while it runs, and where whoever ran it was killed.
      why: in words, "" where it is done.
      seconds: that it took.
      key: of what it was done with, where and how; with another one it is done again.
    """

    name: str
    status: str
    why: str
    seconds: float
    key: str


def run(name: str, key: str, command: Sequence[str], folder: Path, limit: float, environment: Mapping[str, str]) -> State:
    """Does a piece: files NAME.log and NAME.json in the folder, and NAME.lines where the program writes its results to one."""
    folder.mkdir(parents=True, exist_ok=True)
    lines(folder, name).unlink(missing_ok=True)
    log, began = folder / f"{name}.log", time.monotonic()
    with log.open("wb") as file:
        write(folder / f"{name}.json", json.dumps(dataclasses.asdict(State(name, "begun", "the run ended before it did", 0.0, key))))
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "benchmarks.gpu_day.mortal", *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=_ROOT,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
    seconds = time.monotonic() - began
    if status is None:
        state = State(name, "cut", f"not over after {limit:.0f} s", seconds, key)
    elif status:
        ended = f"ended with status {status}" if status > 0 else f"died of {signal.Signals(-status).name}"
        state = State(name, "failed", f"{ended}: {last_words(log)}", seconds, key)
    else:
        state = State(name, "done", "", seconds, key)
    write(folder / f"{name}.json", json.dumps(dataclasses.asdict(state)))
    return state


def state(folder: Path, name: str) -> State | None:
    """What became of a piece in an earlier run; None where nothing is known."""
    try:
        return State(**json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def lines(folder: Path, name: str) -> Path:
    """The file that a piece's program may write JSON lines to."""
    return folder / f"{name}.lines"


def results(folder: Path, name: str) -> list[dict]:
    """What a piece has found, even one that was killed."""
    found = []
    for path in (folder / f"{name}.log", lines(folder, name)):
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("{") and len(line) < _LONGEST:
                    with contextlib.suppress(ValueError, RecursionError):
                        found.append(json.loads(line))
    return [each for each in found if isinstance(each, dict)]


def last_words(log: Path) -> str:
    """The end of what a program printed."""
    words = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return words[-1].strip()[:300] if words else "it printed nothing"


def write(path: Path, text: str) -> None:
    """A file, whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
