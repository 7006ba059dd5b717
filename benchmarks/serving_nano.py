"""What the server costs beside `llm.run`: the same tasks, streamed over HTTP and run in one call, in turn; and many streams at once.

    python -m benchmarks.serving_nano --streams=64 --slots=16 --repeats=5
    python -m benchmarks.serving_nano --streams=64 --tokens=200            # through ends of turns, to that many tokens
    python -m benchmarks.serving_nano --streams=1000 --repeats=3 --alone   # no llm.run beside it

Ours is started in a process of its own, the client shares the machine with it. Each pair is an `llm.run` in this process, then its tasks
over HTTP, all at once, whose texts must come out the same. Reported of each pair: the ratio of tokens a second, the longest silence of a
running stream, and the server's CPU time a streamed token above that of `llm.run`, which is what HTTP, events and asyncio cost; then the
server's memory and open files before and after. On a machine that others share only ratios of pairs mean anything.
"""

import asyncio
from collections.abc import Iterator
import contextlib
import json
import os
from pathlib import Path
import resource
import socket
import statistics
import subprocess
import sys
import time

from absl import app, flags
import numpy as np

from benchmarks.load import asking, figures
from benchmarks.load.wire import Server, asked
from benchmarks.load.work import PATHS
import gptoss_jax as gj

_START_SECONDS = 300
_TICKS = os.sysconf("SC_CLK_TCK")


def define_flags(to: flags.FlagValues) -> None:
    number = flags.DEFINE_integer
    flags.DEFINE_string("checkpoint", "nano", "Whose.", flag_values=to)
    flags.DEFINE_enum("endpoint", "chat", ["chat", "responses"], "How to ask.", flag_values=to)
    number("streams", 64, "How many, all at once.", lower_bound=1, flag_values=to)
    number("slots", 16, "Of the server, and of llm.run.", lower_bound=1, flag_values=to)
    number("tokens", 0, "Of each answer; 0: to the end of its turn.", lower_bound=0, flag_values=to)
    number("context", 1024, "Of both.", lower_bound=64, flag_values=to)
    number("repeats", 5, "Pairs.", lower_bound=1, flag_values=to)
    flags.DEFINE_bool("alone", False, "No llm.run beside it.", flag_values=to)
    flags.DEFINE_multi_string("server_flag", [], "Further flags of the server.", flag_values=to)


def questions(count: int) -> list[str]:
    return [f"What is {a} + {b}?" for a, b in np.random.default_rng(0).integers(10, 99, (count, 2)).tolist()]


@contextlib.contextmanager
def running_server(given: flags.FlagValues) -> Iterator[tuple[Server, int]]:
    """Ours, until it answers /health, and its process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gptoss_jax.serve", f"--checkpoint={given.checkpoint}", f"--port={port}"]
    command += [f"--slots={given.slots}", f"--context={given.context}", *given.server_flag]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=Path(__file__).parent.parent)
    server = Server(f"http://127.0.0.1:{port}/v1")
    try:
        until = time.monotonic() + _START_SECONDS
        while not asyncio.run(healthy(server)):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server must answer /health; it did not, and ended with {process.poll()}: {' '.join(command)}")
            time.sleep(0.2)
        yield server, process.pid
    finally:
        process.terminate()
        process.wait(60)


async def healthy(server: Server) -> bool:
    try:
        async with asked(server, "GET", "/health") as answer:
            return answer.status == 200
    except OSError:
        return False


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def preemptions(server: Server) -> int:
    """Times that a request lost its pages, as the server counts them."""
    async with asked(server, "GET", "/metrics") as answer:
        lines = (await answer.body()).decode().splitlines()
    return round(float(next(line.split()[-1] for line in lines if line.startswith("vllm:num_preemptions_total{"))))


def held(process: int) -> dict[str, float]:
    """Megabytes that a process is resident in, and its open files."""
    pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    return {"resident_mb": pages * resource.getpagesize() / 1e6, "open_files": len(os.listdir(f"/proc/{process}/fd"))}


def locally(llm: gj.LLM, given: flags.FlagValues) -> dict:
    """One `llm.run` of all questions."""
    length = {"max_tokens": given.tokens, "ignore_eos": True} if given.tokens else {"max_tokens": given.context // 2}
    sampling = gj.Sampling(temperature=0, **length)
    tasks = [gj.Task(key=i, messages=text, sampling=sampling) for i, text in enumerate(questions(given.streams))]
    began, used = time.perf_counter(), time.process_time()
    done = list(llm.run(tasks))
    seconds, used = time.perf_counter() - began, time.process_time() - used
    answers = [one.answers[0] for one in sorted(done, key=lambda one: one.task.key)]
    tokens = sum(len(one.tokens) for one in answers)
    return {"seconds": seconds, "cpu": used, "tokens": tokens, "texts": [one.reasoning + one.text for one in answers]}


def over_http(server: Server, process: int, given: flags.FlagValues) -> dict:
    """The same questions as streams, all at once."""
    limit = {"chat": "max_completion_tokens", "responses": "max_output_tokens"}[given.endpoint]
    length = {limit: given.tokens, "ignore_eos": True} if given.tokens else {limit: given.context // 2}
    common = {"model": "nano", "stream": True, "temperature": 0, **length}

    def body(text: str) -> dict:
        if given.endpoint == "responses":
            return common | {"input": text, "store": False}
        return common | {"messages": [{"role": "user", "content": text}], "stream_options": {"include_usage": True}}

    async def all_of_them():
        return await asyncio.gather(*(asking.ask(server, given.endpoint, body(text)) for text in questions(given.streams)))

    server_cpu, own, began = cpu_seconds(process), time.process_time(), time.perf_counter()
    timings = asyncio.run(all_of_them())
    seconds = time.perf_counter() - began
    used = {"cpu": cpu_seconds(process) - server_cpu, "client_cpu": time.process_time() - own}
    found = figures.figures(timings, seconds)
    if found["failed"]:
        raise RuntimeError(f"all streams must be answered; {next(one.error for one in timings if one.error)}")
    return {"seconds": seconds, "tokens": found["total_output_tokens"], "texts": [one.text for one in timings], **used, **found}


def pair(alone: dict | None, streamed: dict, *, one_turn: bool) -> dict:
    """What is reported of one.

    Args:
      one_turn: answers end with their turn, so that reasoning comes before the answer in streams as in a Reply.
    """
    rate = streamed["tokens"] / streamed["seconds"]
    out = {name: streamed[name] for name in ("worst_silence_ms", "p99_itl_ms", "median_ttft_ms", "p99_ttft_ms", "cpu", "client_cpu")}
    out |= {"tokens": streamed["tokens"], "seconds": streamed["seconds"], "tokens_per_second": rate}
    if alone is None:
        return out
    if alone["tokens"] != streamed["tokens"] or (one_turn and alone["texts"] != streamed["texts"]):
        raise RuntimeError("streams must say what llm.run says; they did not.")
    out |= {"run_tokens_per_second": alone["tokens"] / alone["seconds"], "run_cpu": alone["cpu"]}
    out["ratio"] = rate / out["run_tokens_per_second"]
    out["host_ms_per_token"] = 1000 * (streamed["cpu"] - alone["cpu"]) / streamed["tokens"]
    return out


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    llm = None if given.alone else gj.LLM(given.checkpoint, slots=given.slots, context=given.context)
    with running_server(given) as (server, process):
        pairs, kept = [], []
        for number in range(given.repeats + 1):  # the first warms both up
            done = pair(None if llm is None else locally(llm, given), over_http(server, process, given), one_turn=not given.tokens)
            time.sleep(1)  # until the last connections are closed
            kept.append(held(process) | {"preemptions": asyncio.run(preemptions(server))})
            if number:
                pairs.append(done)
                shown = {name: round(value, 3) for name, value in (done | kept[-1]).items()}
                print(", ".join(f"{name} {value}" for name, value in shown.items()), flush=True)
    middle = {name: statistics.median(one[name] for one in pairs) for name in pairs[0]}
    asked_for = {"endpoint": given.endpoint, "streams": given.streams, "slots": given.slots, "path": PATHS[given.endpoint]}
    print(json.dumps({"date": time.strftime("%Y-%m-%d"), **asked_for, "medians": middle, "pairs": pairs, "held": kept}))
    return 0


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
