"""A batch job on a real model that is killed again and again, and what is left of it: nothing lost, nothing twice, the same bytes.

    python -m benchmarks.kill_batch --kills=50

Starts `python -m gptoss_jax.batch` on questions for nano, kills it with SIGKILL at random moments, while it starts, answers or writes, and
starts it again. The results must be those of a job that nobody killed, byte for byte, and no result may be computed twice once it is in
the journal.
"""

import dataclasses
import json
import os
from pathlib import Path
import random
import subprocess
import sys
import tempfile
import time

from absl import app, flags

_WHILE_STARTING = 0.2  # share of the kills that do not wait for a result
_PATIENCE = 600  # seconds for one start


@dataclasses.dataclass(frozen=True)
class Killed:
    """What came of it.

    Attributes:
      kills: how often it was killed, of those while it was answering.
      finished: how often it came to its end, each time with the same output; it then began anew.
      mean_seconds: from a start to its end.
    """

    kills: int
    answering: int
    finished: int
    mean_seconds: float


def questions(count: int, seed: int) -> str:
    """Lines of all forms, greedy and drawn, and some that are no requests."""
    rng, lines = random.Random(seed), []
    for i in range(count):
        asked = [{"role": "user", "content": f"What is {rng.randint(1, 99)} + {rng.randint(1, 99)}?"}]
        effort, heat = rng.choice(("low", "medium", "high")), rng.choice((0, 0, 1.0))
        openai = {"custom_id": f"request-{i}", "method": "POST"}
        chat = openai | {"url": "/v1/chat/completions"}
        chat["body"] = {"messages": asked, "reasoning_effort": effort, "temperature": heat, "max_tokens": 100}
        responses = openai | {"url": "/v1/responses"}
        responses["body"] = {"input": asked, "reasoning": {"effort": effort}, "temperature": heat, "max_output_tokens": 100}
        plain = {"id": i, "messages": asked, "reasoning_effort": effort, "temperature": heat, "max_tokens": 60, "n": rng.choice((1, 1, 2))}
        lines.append(rng.choice([json.dumps(form) for form in (chat, responses, plain, plain, plain)] + ["{no json"]))
    return "\n".join(lines) + "\n"


def kill(folder: Path, *, kills: int, requests: int, seed: int, spread: float = 1.0, arguments: tuple[str, ...] = ()) -> Killed:
    """Kills a job so often, in a folder.

    Args:
      spread: most seconds between the first new result of a start and its end.
      arguments: flags of the job.

    Raises:
      ValueError: a result was lost, or differs, or was made again; or a job did not end well.
    """
    rng, given, output = random.Random(seed), folder / "requests.jsonl", folder / "out.jsonl"
    journal = output.with_name("out.jsonl.partial")
    given.write_text(questions(requests, seed))
    whole = folder / "whole.jsonl"
    _end_well(_start(given, whole, arguments))
    done = answering = finished = 0
    seconds = []
    while done < kills or not finished:
        before, began = _journal(journal), time.monotonic()
        process = _start(given, output, arguments)
        if done == kills:
            _end_well(process)
        else:
            early = rng.random() < _WHILE_STARTING
            _wait(process, journal, len(before), rng.uniform(0, 5 if early else spread), early)
        if process.poll() is None:
            process.kill()
            process.wait()
            done += 1
            answering += not early
        _end_well(process, killed=True)
        seconds.append(time.monotonic() - began)
        if output.exists():
            if output.read_bytes() != whole.read_bytes():
                raise ValueError(f"the output must be that of a job that nobody killed; {output} is not {whole}.")
            output.unlink()
            journal.unlink(missing_ok=True)
            finished += 1
        elif not _journal(journal).startswith(before):
            raise ValueError(f"what is in the journal must stay there; some of the first {len(before):,} bytes of {journal} changed.")
    return Killed(done, answering, finished, sum(seconds) / len(seconds))


def _start(given: Path, output: Path, arguments: tuple[str, ...]) -> subprocess.Popen:
    command = [sys.executable, "-m", "gptoss_jax.batch", f"--input={given}", f"--output={output}", "--context=512", *arguments]
    environment = os.environ | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS") or "cpu"}
    log = open(given.with_name("log"), "ab")
    with log:
        return subprocess.Popen(command, cwd=Path(__file__).parent.parent, env=environment, stdout=log, stderr=log)


def _wait(process: subprocess.Popen, journal: Path, size: int, seconds: float, early: bool) -> None:
    """Until the moment of the kill, or the end."""
    deadline = time.monotonic() + _PATIENCE
    while not early and process.poll() is None and not (journal.exists() and journal.stat().st_size > max(size, 300)):
        if time.monotonic() > deadline:
            raise ValueError(f"a start must give a result within {_PATIENCE} seconds; see {journal.with_name('log')}.")
        time.sleep(0.002)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass


def _end_well(process: subprocess.Popen, killed: bool = False) -> None:
    status = process.wait(_PATIENCE)
    if status != 0 and not (killed and status == -9):
        raise ValueError(f"a job must end with status 0; it ended with {status}; see the file 'log' beside its output.")


def _journal(path: Path) -> bytes:
    """Its whole lines."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def define_flags(to: flags.FlagValues) -> None:
    flags.DEFINE_integer("kills", 50, "How often.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("requests", 400, "Lines of the input.", lower_bound=10, flag_values=to)
    flags.DEFINE_integer("seed", 0, "Of the moments and the questions.", flag_values=to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    with tempfile.TemporaryDirectory() as folder:
        killed = kill(Path(folder), kills=given.kills, requests=given.requests, seed=given.seed)
    print(f"{killed.kills} kills, {killed.answering} of them while it was answering; {killed.finished} jobs came to their end with the")
    print(f"bytes of one that nobody killed; a start and its end took {killed.mean_seconds:.1f} s on average")
    print(json.dumps(dataclasses.asdict(killed)))


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
