"""Everything that is worth measuring on a Hopper GPU, in order of worth, within a budget of seconds; started again, it does the rest.

    python -m benchmarks.gpu_day --out=DIR                        # eight minutes
    python -m benchmarks.gpu_day --out=DIR --budget=900 --peer_python=/path/to/python      # one that has torch and transformers
    python -m benchmarks.gpu_day --out=DIR --rehearse             # all of it on the CPU, at small shapes

In DIR: RESULTS.md (tables, and what did not run and why), results.jsonl, TUNING.txt (rows for the tuning tables), pieces/ (what each
program printed; of a rehearsal rehearsed/), compiled/ (JAX's compilation cache, which all pieces share). A piece that is done is not done
again, unless the device, the driver, jax or the kernels are others: it then counts as not run. One that failed or was cut comes after those
that have not begun. A killed run goes on where it was.

Nothing is compiled before the device is there: XLA chooses the tiles of its own products by timing them, and a program that was compiled
without a GPU holds placeholders instead; and JAX's cache looks programs up by the device's own description. Mosaic's kernels, which need no
timing, take a second each. What the first pieces compile, the later ones and the next run find in compiled/.

The exit status is 0 if every piece that could run is done, 1 if one is not, and where there is no Hopper.
"""

import hashlib
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

from absl import app, flags

from benchmarks.gpu_day import folder as folders
from benchmarks.gpu_day import pieces, report, running
from benchmarks.gpu_day.pieces import PIECES, Piece
from pallas_kernels.check import selection

_SLOW = 6  # times that a CPU may take longer over a piece
_PROBED = 120  # seconds


def define_flags(to: flags.FlagValues) -> None:
    """Adds this program's flags to a set of them."""
    flags.DEFINE_string("out", None, "Folder for results; one that is there is gone on with.", required=True, flag_values=to)
    flags.DEFINE_float("budget", 480, "Seconds in all.", lower_bound=1, flag_values=to)
    flags.DEFINE_bool("rehearse", False, "On the CPU at small shapes, whatever the budget.", to)
    flags.DEFINE_string("peer_python", None, "Interpreter with torch and transformers; default this one, if it has them.", to)
    flags.DEFINE_list("only", [], "Names of pieces; the default is all.", to)


class Day:
    """A run: what is left to do, and the time that is left."""

    def __init__(self, given: flags.FlagValues, folder: Path):
        self._given, self._folder = given, folder
        self._places = folder / ("rehearsed" if given.rehearse else "pieces")
        self._rehearse, self._began = given.rehearse, time.monotonic()
        self.skipped: dict[str, str] = {}
        self._environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **({"JAX_PLATFORMS": "cpu", "NPROC": "32"} if given.rehearse else {}),
        }
        self.about = self._probe()
        self._peer = given.peer_python or (sys.executable if self.about["peer"] else None)
        self.skipped |= {piece.name: "not asked for" for piece in PIECES if given.only and piece.name not in given.only}

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return float("inf") if self._rehearse else self._given.budget - (time.monotonic() - self._began)

    def wanted(self) -> list[Piece]:
        """Pieces that are not done: first those that were never begun, then those that failed or were cut."""
        chosen = [piece for piece in PIECES if not self._given.only or piece.name in self._given.only]
        open_, again = [], []
        for piece in chosen:
            state = self._state(piece)
            if state is None or state.status == "begun":  # and the run was killed
                open_.append(piece)
            elif state.status != "done":
                again.append(piece)
        return open_ + again

    def cannot(self, piece: Piece) -> str:
        """Why a piece is not begun now; "" if it is."""
        if piece.peer and not self._peer:
            return "torch and transformers are not here; give --peer_python"
        if not self._rehearse and piece.gigabytes > self.about["gigabytes"]:
            return f"it needs {piece.gigabytes:g} GB, the device has {self.about['gigabytes']:g}"
        if self.left < piece.least:
            return f"{max(0.0, self.left):.0f} s were left, it needs {piece.least:g}"
        return ""

    def do(self, piece: Piece) -> running.State:
        """Runs a piece."""
        limit = piece.limit * _SLOW if self._rehearse else min(piece.limit, self.left)
        places = {"lines": str(running.lines(self._places, piece.name)), "out": str(self._folder), "peer": self._peer or ""}
        command = pieces.command(piece, self._rehearse, places, self.left_out())
        return running.run(piece.name, self._key(piece), command, self._places, limit, self._environment)

    def left_out(self) -> list[str]:
        """Kernels that did not pass their check, in this run or one before."""
        checks = [line for piece in PIECES if piece.name.startswith("check") for line in self._found(piece)[1] if "verdict" in line]
        bad = {line["kernel"] for line in checks if line["verdict"] not in ("passed", "unchecked")}
        return sorted((bad | set(selection.DECODING if selection.TOGETHER in bad else ())) - {selection.TOGETHER})

    def write(self) -> str:
        """Writes the tables. Returns the summary."""
        return report.write(self._folder, {piece: self._found(piece) for piece in PIECES}, self.about, self.skipped, self._rehearse)

    def _found(self, piece: Piece) -> tuple[running.State | None, list[dict]]:
        """What became of a piece, and what it found; nothing of one that was done elsewhere or with other kernels."""
        state = self._state(piece)
        return state, running.results(self._places, piece.name) if state is not None else []

    def _state(self, piece: Piece) -> running.State | None:
        """Of an earlier run with the same device and kernels."""
        state = running.state(self._places, piece.name)
        return state if state is not None and state.key == self._key(piece) else None

    def _key(self, piece: Piece) -> str:
        facts = [self.about[name] for name in ("device", "driver", "jax", "jaxlib", "kernels")]
        given = piece.rehearsal if self._rehearse else piece.command
        return hashlib.sha256(json.dumps([facts, self._rehearse, given]).encode()).hexdigest()[:16]

    def _probe(self) -> dict:
        command = [sys.executable, "-m", "benchmarks.gpu_day.probe"]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, env=self._environment, cwd=root, capture_output=True, text=True, timeout=_PROBED)
        if done.returncode:
            last = (done.stderr.strip() or f"it ended with status {done.returncode}").splitlines()[-1]
            raise ValueError(f"the device does not answer: {last[:300]}")
        return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> int | str:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if unknown := set(given.only) - {piece.name for piece in PIECES}:
        raise app.UsageError(f"--only must name pieces of {', '.join(piece.name for piece in PIECES)}; got {', '.join(sorted(unknown))}")
    if not given.out:
        raise app.UsageError("--out must name a folder; got an empty name; pass such as --out=day.")
    if given.peer_python is not None and not shutil.which(given.peer_python):
        raise app.UsageError(f"--peer_python must be an interpreter; {given.peer_python!r} is none; pass the path of one that has torch.")
    try:
        with folders.held(given.out) as folder:
            return _in(folder, given)
    except (ValueError, subprocess.TimeoutExpired) as error:
        return f"error: {error}"


def _in(folder: Path, given: flags.FlagValues) -> int | str:
    """A run in a folder that is held; its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is killed, and what is known written
    try:
        day = Day(given, folder)
        if not day.about["hopper"] and not given.rehearse:
            return f"There is no Hopper GPU (H100, H200) here to measure on: JAX runs on {day.about['device']}; --rehearse tries all of it."
        print(", ".join(f"{name} {value}" for name, value in day.about.items()), flush=True)
        try:
            return int(_do(day) > 0)
        finally:
            print(f"\n{day.write()}\n\n{folder / 'RESULTS.md'}", flush=True)
    except KeyboardInterrupt:
        return 130


def _do(day: Day) -> int:
    """Does what is wanted, as far as it can be done; returns how many pieces failed."""
    failed = 0
    for piece in day.wanted():
        if why := day.cannot(piece):
            day.skipped[piece.name] = f"not now: {why}"
            print(f"{piece.name}: {day.skipped[piece.name]}", flush=True)
            continue
        print(f"{piece.name}: {piece.what} ...", flush=True)
        state = day.do(piece)
        failed += state.status != "done"
        print(f"{piece.name}: {state.status} in {state.seconds:.0f} s{f', {state.why}' if state.why else ''}", flush=True)
        day.write()
    return failed


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
