"""Seconds until the terminal chat has answered its first question: the whole process, from start to exit.

    python -m benchmarks.first_answer --repeats=3

fresh: no compiled program is there yet, and (as after an install that does not compile Python files, such as uv's) no
bytecode either. first: no compiled program, bytecode there. again: both there, what every later start takes.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

_QUESTION = flags.DEFINE_string("question", "What is 27 + 58?", "What to ask.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "nano", "Checkpoint directory, or 'nano', the bundled one.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Times that everything is measured; medians are printed.", lower_bound=1)


def ask(compiled: str, bytecode: str | None = None) -> tuple[float, str]:
    """Seconds, and what was printed, of one process that keeps its compiled programs in the folder `compiled`."""
    command = [sys.executable, "-m", "gptoss_jax.chat", _QUESTION.value]
    command += [f"--checkpoint={_CHECKPOINT.value}", f"--compilation_cache={compiled}"]
    environment = os.environ | ({"PYTHONPYCACHEPREFIX": bytecode} if bytecode else {})
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"the chat must end well; it ended with status {done.returncode}: {done.stderr[-2000:]}")
    return seconds, done.stdout.strip()


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    seconds: dict[str, list[float]] = {"fresh": [], "first": [], "again": []}
    with tempfile.TemporaryDirectory() as folder:
        ask(os.path.join(folder, "unused"))  # leaves the bytecode, and the files in the system's page cache
        for run in range(_REPEATS.value):
            place = lambda name, run=run: os.path.join(folder, f"{name}{run}")
            seconds["fresh"].append(ask(place("compiled-fresh"), place("bytecode"))[0])
            seconds["first"].append(ask(place("compiled"))[0])
            took, answer = ask(place("compiled"))
            seconds["again"].append(took)
    medians = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    print(f"{_QUESTION.value}\n{answer}\n")
    for name, values in seconds.items():
        print(f"{name:6} {medians[name]:6.2f} s  (least {min(values):.2f}, most {max(values):.2f})")
    print(json.dumps(medians))


if __name__ == "__main__":
    app.run(main)
