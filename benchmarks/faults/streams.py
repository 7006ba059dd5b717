"""Many streams side by side: tokens a second, CPU seconds, and how long a stream stays silent, beside one `llm.run` of the same tasks.

    python -m benchmarks.faults.streams                    # a table, then JSON
    python -m benchmarks.faults.streams --rounds=5 --json  # JSON alone, to compare commits in turn

Every form answers the same questions to nano, greedily and through end-of-turn tokens, so that each gives the same tokens, and that is
checked. Forms take turns; of each the median of its rounds counts, and ratios are of runs of the same round: of tokens a second, and "by
CPU" of tokens a CPU second, which a busy machine changes less. The single stream stands beside the single chat. `first` is the time from
the call to a stream's first piece, which counts waiting for a slot; `silence` the longest wait between two pieces of a stream after that,
or for its end, the worst of all streams. A reader does nothing with its pieces but to note when they came.
"""

import asyncio
from collections.abc import Callable, Sequence
import dataclasses
import json
import os
import statistics
import threading
import time

from absl import app, flags

from benchmarks import device
import gptoss_jax as gj

_EFFORT = "high"
_FEW = 16  # requests of what is asked one at a time


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a form.

    Attributes:
      tokens: of each answer, in the order of the questions.
      seconds, cpu: of the whole run.
      first, silence: seconds of each stream; none where answers come whole.
    """

    tokens: list[tuple[int, ...]]
    seconds: float
    cpu: float
    first: list[float] = dataclasses.field(default_factory=list)
    silence: list[float] = dataclasses.field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """What is printed of it."""
        count = sum(map(len, self.tokens))
        figures = {"tokens_per_second": count / self.seconds, "seconds": self.seconds, "cpu_seconds": self.cpu}
        if self.first:
            figures |= {"first": max(self.first), "first_median": statistics.median(self.first), "silence": max(self.silence)}
        return figures


class Watch:
    """When the pieces of one stream came."""

    def __init__(self):
        self._began = self._last = time.perf_counter()
        self.first: float | None = None
        self.silence = 0.0

    def tick(self) -> None:
        """A piece came, or the end."""
        now = time.perf_counter()
        if self.first is None:
            self.first = now - self._began
        else:
            self.silence = max(self.silence, now - self._last)
        self._last = now


def questions(count: int) -> list[str]:
    """As many, all different up to 7,921."""
    return [f"What is {11 + i % 89} + {11 + (i + i // 89 * 7) % 89}?" for i in range(count)]


def in_one_run(llm: gj.LLM, asked: Sequence[str], sampling: gj.Sampling) -> list[tuple[int, ...]]:
    """`llm.run` of all."""
    tasks = [gj.Task(key=i, messages=one, sampling=sampling, reasoning_effort=_EFFORT) for i, one in enumerate(asked)]
    answers = {outcome.task.key: outcome.answers[0].tokens for outcome in llm.run(tasks)}
    return [answers[i] for i in range(len(asked))]


def generated(llm: gj.LLM, asked: Sequence[str], sampling: gj.Sampling) -> list[tuple[int, ...]]:
    """`llm.generate` of all prompts."""
    prompts = [llm.render(one, reasoning_effort=_EFFORT) for one in asked]
    return [one.tokens for one in llm.generate(prompts, sampling)]


def one_by_one(llm: gj.LLM, asked: Sequence[str], sampling: gj.Sampling) -> list[tuple[int, ...]]:
    """`llm.chat`, one after the other."""
    return [llm.chat(one, sampling, reasoning_effort=_EFFORT).tokens for one in asked]


def streamed(llm: gj.LLM, asked: str, sampling: gj.Sampling, watch: Watch) -> tuple[int, ...]:
    """One `llm.stream`."""
    stream = llm.stream(asked, sampling, reasoning_effort=_EFFORT)
    for _ in stream:
        watch.tick()
    watch.tick()
    return stream.reply.tokens


def in_threads(llm: gj.LLM, asked: Sequence[str], sampling: gj.Sampling, watches: list[Watch]) -> list[tuple[int, ...]]:
    """`llm.stream` in as many threads, which all begin at once."""
    answers: list[tuple[int, ...] | None] = [None] * len(asked)
    ready = threading.Barrier(len(asked))
    watches += [Watch() for _ in asked]

    def read(i: int) -> None:
        ready.wait()
        watches[i].__init__()
        answers[i] = streamed(llm, asked[i], sampling, watches[i])

    threads = [threading.Thread(target=read, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if None in answers:
        raise RuntimeError(f"every stream must be answered; {answers.count(None)} of {len(asked)} were not.")
    return answers


def in_one_loop(llm: gj.LLM, asked: Sequence[str], sampling: gj.Sampling, watches: list[Watch]) -> list[tuple[int, ...]]:
    """`llm.astream` of all, in one event loop."""

    async def read(one: str, watch: Watch) -> tuple[int, ...]:
        stream = llm.astream(one, sampling, reasoning_effort=_EFFORT)
        async for _ in stream:
            watch.tick()
        watch.tick()
        return stream.reply.tokens

    async def all_of_them() -> list[tuple[int, ...]]:
        watches.extend(Watch() for _ in asked)
        return await asyncio.gather(*map(read, asked, watches))

    return asyncio.run(all_of_them())


def one_stream(llm: gj.LLM, asked: Sequence[str], sampling: gj.Sampling, watches: list[Watch]) -> list[tuple[int, ...]]:
    """`llm.stream`, one after the other."""
    answers = []
    for one in asked:
        watches.append(Watch())
        answers.append(streamed(llm, one, sampling, watches[-1]))
    return answers


STREAMS = (in_threads, in_one_loop, one_stream)
LOOPS = 1000  # asyncio streams that must all be answered


def forms(llm: gj.LLM, counts: Sequence[int], loops: int) -> list[tuple[str, Callable, int, str | None]]:
    """What is run: its name, the form, how many requests, and the name of what it is compared with."""
    found: list[tuple[str, Callable, int, str | None]] = [("chat, one at a time", one_by_one, _FEW, None)]
    found.append(("stream, one at a time", one_stream, _FEW, "chat, one at a time"))
    for count in counts:
        whole = f"{count} in one run"
        found.append((whole, in_one_run, count, None))
        found.append((f"{count} in generate", generated, count, whole))
        found.append((f"{count} streams, threads", in_threads, count, whole))
        found += [(f"{count} streams, asyncio", in_one_loop, count, whole)] if hasattr(llm, "astream") else []
    if loops and hasattr(llm, "astream"):
        found.append((f"{loops} streams, asyncio", in_one_loop, loops, None))
    return found


def measure(llm: gj.LLM, form: Callable, count: int, sampling: gj.Sampling) -> Run:
    """One run."""
    asked, watches = questions(count), []
    began, cpu = time.perf_counter(), time.process_time()
    tokens = form(llm, asked, sampling, watches) if form in STREAMS else form(llm, asked, sampling)
    run = Run(tokens, time.perf_counter() - began, time.process_time() - cpu)
    return dataclasses.replace(run, first=[watch.first for watch in watches], silence=[watch.silence for watch in watches])


def compare(llm: gj.LLM, counts: Sequence[int], *, loops: int, rounds: int, sampling: gj.Sampling) -> dict[str, dict]:
    """Figures of each form, medians of its rounds; worst of them for what is worst.

    Raises:
      RuntimeError: a form did not give the tokens that another did.
    """
    want: dict[int, tuple[int, ...]] = {}
    runs: dict[str, list[Run]] = {}
    ran = forms(llm, counts, loops)
    for _, form, _, _ in ran:
        measure(llm, form, 2, sampling)  # warms up
    for _ in range(rounds):
        for name, form, count, _ in ran:
            run = measure(llm, form, count, sampling)
            for i, tokens in enumerate(run.tokens):
                if want.setdefault(i, tokens) != tokens:
                    raise RuntimeError(f"every form must give the same tokens; {name} gave others to question {i}.")
            runs.setdefault(name, []).append(run)
    results = {}
    for name, _, _, beside in ran:
        each = [run.figures() for run in runs[name]]
        results[name] = {key: (max if key in ("first", "silence") else statistics.median)(one[key] for one in each) for key in each[0]}
        results[name] |= {"rounds": [one["tokens_per_second"] for one in each], "round_cpu": [one["cpu_seconds"] for one in each]}
        if beside is not None:
            others = [run.figures() for run in runs[beside]]
            ratios = [one["tokens_per_second"] / other["tokens_per_second"] for one, other in zip(each, others, strict=True)]
            per_cpu = [other["cpu_seconds"] / one["cpu_seconds"] for one, other in zip(each, others, strict=True)]
            results[name] |= {"beside": beside, "ratio": statistics.median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios)}
            results[name]["cpu_ratio"] = statistics.median(per_cpu)
    return results


def table(results: dict[str, dict]) -> str:
    """As lines."""
    lines = [f"{'':24} {'tokens/s':>9} {'CPU s':>7} {'ratio':>6} {'(least-most)':>13} {'by CPU':>7} {'first, s':>9} {'silence, s':>11}"]
    for name, figures in results.items():
        line = f"{name:24} {figures['tokens_per_second']:9.0f} {figures['cpu_seconds']:7.2f}"
        if "ratio" in figures:
            line += f" {figures['ratio']:6.2f} ({figures['ratio_least']:5.2f}-{figures['ratio_most']:5.2f}) {figures['cpu_ratio']:7.2f}"
        line = line.ljust(72)
        line += f" {figures['first']:9.2f} {figures['silence']:11.3f}" if "first" in figures else ""
        lines.append(line)
    return "\n".join(lines)


def define_flags(to: flags.FlagValues) -> None:
    """Adds this program's flags to a set of them."""
    flags.DEFINE_string("checkpoint", "nano", "Checkpoint directory, with a tokenizer.", to)
    flags.DEFINE_list("streams", ["64", "256"], "How many side by side, each tried.", to)
    flags.DEFINE_integer("loops", LOOPS, "How many asyncio streams must all be answered.", lower_bound=0, flag_values=to)
    flags.DEFINE_integer("tokens", 80, "Of each answer.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("slots", 16, "Of the engine.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("rounds", 3, "Runs of each form, in turn.", lower_bound=1, flag_values=to)
    flags.DEFINE_bool("json", False, "Print JSON alone.", to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    llm = gj.LLM(gj.load(given.checkpoint, progress=False), slots=given.slots, context=512)
    llm.prepare()
    about = device.about() | {"slots": given.slots, "tokens": given.tokens, "rounds": given.rounds}
    about["cores"] = len(os.sched_getaffinity(0))
    sampling = gj.Sampling(temperature=0, max_tokens=given.tokens, ignore_eos=True)
    results = compare(llm, list(map(int, given.streams)), loops=given.loops, rounds=given.rounds, sampling=sampling)
    if not given.json:
        print(f"{llm!r}, {given.tokens} tokens an answer\n{table(results)}")
        print("" if hasattr(llm, "astream") else "without asyncio: this LLM has no astream")
    print(json.dumps(about | {"forms": results}))
    return 0


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
