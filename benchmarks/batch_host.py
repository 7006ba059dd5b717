"""What a batch job costs the host besides the model: microseconds a request, memory that grows, and seconds until it goes on.

    python -m benchmarks.batch_host --requests=100000

The model is one that answers at once, so that all the time is the job's own: reading and checking a line, making the result, writing it to
the journal, and at the end the output. Beside it the time of the model's stand-in, which is taken off.
"""

from collections.abc import Iterable, Iterator
import json
import os
from pathlib import Path
import tempfile
import time
from types import SimpleNamespace

from absl import app, flags

from benchmarks import child
from gptoss_jax.batch import source
from gptoss_jax.batch.draining import Draining
from gptoss_jax.batch.job import Job
from gptoss_jax.batch.shards import Shard
from gptoss_jax.harmony import Message
from gptoss_jax.openai.asked import Defaults
from gptoss_jax.turns.builder import SAID
from gptoss_jax.turns.task import Outcome, Task

_REQUESTS = flags.DEFINE_integer("requests", 100_000, "Lines of the input.", lower_bound=20)
_TOKENS = flags.DEFINE_integer("tokens", 200, "Tokens of an answer.", lower_bound=1)
_FORM = flags.DEFINE_enum("form", "chat", ["plain", "chat", "responses"], "Form of the lines.")
_FOLDER = flags.DEFINE_string("folder", None, "Where to write; a temporary one by default.")
_SLOTS = 64


class Instant:
    """A model that answers every task with the same words; it stops after `most` of them, as a job does that is killed."""

    def __init__(self, most: int):
        self.model, self.most, self.seconds = SimpleNamespace(tokenizer=None), most, 0.0
        self.resident: dict[int, int] = {}
        text, thought, count = "word " * _TOKENS.value, "thought " * 20, _TOKENS.value
        messages = (
            Message("assistant", thought, (0, 20), channel="analysis", end="<|end|>", content=(3, 19)),
            Message("assistant", text, (20, count), channel="final", end="<|return|>", content=(23, count - 1)),
        )
        said = {"text": text, "reasoning": thought, "tool_calls": (), "finish_reason": "stop", "said": messages, "error": None}
        parsed = SimpleNamespace(messages=messages, commentary="")
        self._answer = SimpleNamespace(**said, **dict.fromkeys(SAID), tokens=tuple(range(count)), parsed=parsed)

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        waiting: list[Task] = []
        for count, task in enumerate(tasks, 1):
            began = time.perf_counter()
            waiting.append(task)
            if count in (_REQUESTS.value // 10, _REQUESTS.value):
                self.resident[count] = _resident()
            ready = [waiting.pop(0)] if len(waiting) >= 2 * _SLOTS else []
            outcomes = [Outcome(task, (self._answer,) * task.n, 100) for task in ready]
            self.seconds += time.perf_counter() - began
            yield from outcomes
            if count >= self.most:
                break
        yield from (Outcome(task, (self._answer,), 100) for task in waiting)


def _line(i: int) -> str:
    asked = "How many of the numbers below a hundred are prime, and which of them is the largest? " * 4
    messages = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": f"{asked} {i}"}]
    if _FORM.value == "plain":
        return json.dumps({"id": f"request-{i}", "messages": messages, "temperature": 0.7, "max_tokens": 512})
    body = {"model": "gpt-oss-20b", "temperature": 0.7}
    chat = {"url": "/v1/chat/completions", "body": body | {"messages": messages, "max_tokens": 512}}
    responses = {"url": "/v1/responses", "body": body | {"input": messages, "max_output_tokens": 512}}
    return json.dumps({"custom_id": f"request-{i}", "method": "POST", **(chat if _FORM.value == "chat" else responses)})


def _measure(folder: Path) -> dict:
    requests, given, output = _REQUESTS.value, folder / "requests.jsonl", folder / "results.jsonl"
    with open(given, "w", encoding="utf-8") as file:
        file.writelines(_line(i) + "\n" for i in range(requests))
    llm = Instant(requests)
    began = time.perf_counter()
    with Draining(0) as draining, _job(given, output) as job:
        opened = time.perf_counter()
        job.run(llm, draining)
        answered = time.perf_counter()
        missing = job.journal.missing
    with Draining(0) as draining:
        again = time.perf_counter()
        with _job(given, output) as job:
            job.run(Instant(1), draining)  # looks for what is missing; there is nothing
            resumed = time.perf_counter()
            size = job.journal.path.stat().st_size
            job.finish()
    written = time.perf_counter()
    return {
        "requests": requests,
        "form": _FORM.value,
        "missing": missing,
        "microseconds_a_request": (answered - opened - llm.seconds) / requests * 1e6,
        "survey_seconds": opened - began,
        "resume_seconds": resumed - again,
        "write_seconds": written - resumed,
        "resident_mb": llm.resident[requests // 10] / 1e6,
        "grown_mb": (llm.resident[requests] - llm.resident[requests // 10]) / 1e6,
        "peak_mb": child.peak_gb() * 1e3,
        "journal_mb": size / 1e6,
    }


def _job(given: Path, output: Path) -> Job:
    return Job(source.survey(given), output, {}, Defaults(), Shard())


def _resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    with tempfile.TemporaryDirectory(dir=_FOLDER.value) as folder:
        result = _measure(Path(folder))
    count = result["requests"]
    print(f"{count:,} requests of form {result['form']}, answers of {_TOKENS.value} tokens, journal {result['journal_mb']:,.0f} MB")
    print(f"host       {result['microseconds_a_request']:8.1f} microseconds a request, the model's stand-in not counted")
    print(f"memory     {result['grown_mb']:8.1f} MB grown from request {count // 10:,} ({result['resident_mb']:.0f} MB) to {count:,}")
    print(f"peak       {result['peak_mb']:8.1f} MB, of all of it")
    print(f"start      {result['survey_seconds']:8.2f} s to read the input once")
    print(f"resume     {result['resume_seconds']:8.2f} s from the start to the first request that is missing, all others being done")
    print(f"output     {result['write_seconds']:8.2f} s to write it")
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
