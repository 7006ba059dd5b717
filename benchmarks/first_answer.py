"""What a start costs: beside `import jax`, and in seconds until the terminal chat has answered its first question.

    python -m benchmarks.first_answer --repeats=5

Whole processes, from start to exit. fresh: no program is kept yet, and (as after an install that does not compile Python files, such as
uv's) no bytecode either. first: no program kept, bytecode there. again: both there, what every later start takes. Then in pairs, each
beside `import jax`, which is what no start can do without: `import gptoss_jax`, a first use of its `LLM`, and again.
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


def seconds_of(command: list[str], bytecode: str | None = None) -> tuple[float, str]:
    """Seconds, and what was printed, of one process of Python that may leave and find bytecode."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPYCACHEPREFIX": bytecode} if bytecode else {}
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"the process must end well; it ended with status {done.returncode}: {done.stderr[-2000:]}")
    return seconds, done.stdout.strip()


def chat(compiled: str) -> list[str]:
    """The command that asks, and keeps its programs in the folder `compiled`."""
    return ["-m", "gptoss_jax.chat", _QUESTION.value, f"--checkpoint={_CHECKPOINT.value}", f"--compilation_cache={compiled}"]


def beside_jax(command: list[str]) -> list[float]:
    """How many times as long as `import jax` a command takes: of alternating pairs, after one that does not count."""
    seconds_of(command)
    return [seconds_of(command)[0] / seconds_of(["-c", "import jax"])[0] for _ in range(_REPEATS.value)]


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    seconds: dict[str, list[float]] = {"fresh": [], "first": [], "again": []}
    with tempfile.TemporaryDirectory() as folder:
        seconds_of(chat(os.path.join(folder, "unused")))  # leaves the bytecode, and the files in the system's page cache
        for run in range(_REPEATS.value):
            place = lambda name, run=run: os.path.join(folder, f"{name}{run}")
            seconds["fresh"].append(seconds_of(chat(place("compiled-fresh")), place("bytecode"))[0])
            seconds["first"].append(seconds_of(chat(place("compiled")))[0])
            took, answer = seconds_of(chat(place("compiled")))
            seconds["again"].append(took)
        ratios = {
            "import gptoss_jax": beside_jax(["-c", "import gptoss_jax"]),
            "gptoss_jax.LLM": beside_jax(["-c", "import gptoss_jax; gptoss_jax.LLM"]),
            "again": beside_jax(chat(place("compiled"))),
        }
    medians = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    print(f"{_QUESTION.value}\n{answer}\n")
    for name, values in seconds.items():
        print(f"{name:6} {medians[name]:6.2f} s  (least {min(values):.2f}, most {max(values):.2f})")
    for name, values in ratios.items():
        print(f"{name:17} {statistics.median(values):5.2f} times `import jax`  (least {min(values):.2f}, most {max(values):.2f})")
    print(json.dumps(medians | {f"{name} / import jax": round(statistics.median(values), 2) for name, values in ratios.items()}))


if __name__ == "__main__":
    app.run(main)
