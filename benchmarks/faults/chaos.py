"""A storm of faults over one engine: whatever goes wrong with a request, nobody else may see it.

    python -m benchmarks.faults.chaos --minutes=20 --threads=16 --seed=0

Innocent requests of all forms are answered alone first, then asked again and again from many threads, while beside them grammars give up,
masks, builders and iterables raise, prompts hold a token whose numbers are NaN, streams and runs are left, time limits pass, waits in event
loops are cancelled, and the main thread, a caller itself, is interrupted by a signal in the middle of its calls. The cache is so small that
requests give way to each other. Prints what was asked and how it ended, then whether all of this holds, and ends with status 1 if not:

- no innocent request was answered with other bits than alone (one that was ended early: with their beginning), and none had an error;
- every call came to an end, and the engine answers as before when all is over;
- no page, slot or place in a queue is held afterwards; nothing was compiled; memory did not grow in the second half.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import gc
import json
import os
from pathlib import Path
import signal
import threading
import time

from absl import app, flags
import numpy as np

from benchmarks import device, soak
from benchmarks.faults import broken, innocents
from benchmarks.faults.storm import PATIENCE, Storm, Told, merged
import gptoss_jax as gj

_GROWTH = 24  # MB that memory may grow in the second half; what the allocator gives back late and Python's own caches move it by some
_THREADS = 400  # that have rendered before memory is looked at
_SHOWN = 4  # sentences about what went wrong


@dataclasses.dataclass(frozen=True)
class Weather:
    """What a storm came to; `failures` are sentences about what must not be."""

    told: Told
    seconds: float
    preemptions: int
    compilations: int
    grown_mb: float
    failures: list[str]


def storm(
    model: gj.Model,
    *,
    minutes: float,
    threads: int,
    seed: int,
    faults: Sequence[str] = (),
    interrupts: bool = True,
    count: int = 24,
    **sizes,
) -> Weather:
    """Runs one. For the main thread.

    Args:
      minutes: how long, the time to learn the answers alone not counted.
      threads: callers, the main thread among them.
      seed: of what is asked, though not of what happens then.
      faults: kinds of them, all where none is named; interrupts: whether the main thread gets some.
      count: innocent requests of each kind.
      sizes: of the engine.
    """
    model, token = broken.poisoned(model)
    llm = gj.LLM(model, **sizes)
    llm.prepare()
    pool = innocents.pool(llm, count, np.random.default_rng(seed))
    for ask in innocents.ASK.values():
        ask(llm, pool, np.random.default_rng(seed))
    _in_many_threads(lambda: llm.render("What is 2 + 2?"))
    over, began = Storm(llm, pool, token, faults), time.monotonic()
    all_told = [Told() for _ in range(threads)]
    others = [threading.Thread(target=over.caller, args=(told, seed + i), daemon=True) for i, told in enumerate(all_told[1:], 1)]
    memory: list[tuple[float, float]] = []
    with soak.compilations() as compiled, broken.marked_ones_raise(), _alarm():
        watch = threading.Thread(target=_watch, args=(over.over, minutes * 60, memory), daemon=True)
        for thread in (*others, watch):
            thread.start()
        over.caller(all_told[0], seed, interrupted=interrupts)
        seconds = time.monotonic() - began
        stuck = _stuck(others, all_told[1:])
        failures = _afterwards(llm, pool)
    whole, grown = merged(all_told), _growth(memory)
    failures = _judged(whole, stuck, len(compiled), grown) + failures
    return Weather(whole, seconds, llm.engine.stats.preemptions, len(compiled), grown, failures)


def _in_many_threads(render: Callable[[], object]) -> None:
    """Renders in more threads than harmony has room for: it keeps a vocabulary's expressions, 1.6 MB, for each of 128 threads."""
    for _ in range(_THREADS):
        thread = threading.Thread(target=render)
        thread.start()
        thread.join()


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """Lets SIGALRM interrupt the main thread as Ctrl-C does."""

    def ring(*_) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _watch(over: threading.Event, seconds: float, memory: list[tuple[float, float]]) -> None:
    """Notes resident memory, in MB by the second, and ends the storm when its time has come."""
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory.append((now, pages * os.sysconf("SC_PAGE_SIZE") / 1e6))
        time.sleep(min(2.0, seconds / 40))
    over.set()


def _stuck(others: list[threading.Thread], all_told: list[Told]) -> list[str]:
    """Calls that do not come to an end, with what they are."""
    deadline = time.monotonic() + PATIENCE
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [f"{told.doing[0]}" for thread, told in zip(others, all_told, strict=True) if thread.is_alive() and told.doing]


def _growth(memory: list[tuple[float, float]]) -> float:
    """MB that a straight line through the second half of what was noted rises in it."""
    half = np.array(memory[len(memory) // 2 :])
    return 0.0 if len(half) < 2 else float(np.polyfit(half[:, 0], half[:, 1], 1)[0] * (half[-1, 0] - half[0, 0]))


def _afterwards(llm: gj.LLM, pool: innocents.Pool) -> list[str]:
    """Sentences about what is held still, or answered otherwise, when all is over."""
    failures, deadline = [], time.monotonic() + PATIENCE
    while True:
        gc.collect()  # streams that were left are closed when nobody holds them
        try:
            soak.check_nothing_is_held(llm.engine)
            break
        except RuntimeError as error:
            if time.monotonic() > deadline:
                failures.append(f"afterwards: {error}")
                break
        time.sleep(0.1)
    everyone, right = pool.chats + pool.texts, 0
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        for known in everyone:
            with contextlib.suppress(Exception):
                right += innocents.check_run(llm, [known.task], [known])
    except KeyboardInterrupt:
        failures.append("afterwards: a call did not come to its end.")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if right < len(everyone):
        failures.append(f"afterwards: {len(everyone) - right} of {len(everyone)} requests are not answered as before.")
    return failures


def _judged(whole: Told, stuck: list[str], compilations: int, grown: float) -> list[str]:
    """Sentences about what must not be."""
    failures = []
    if whole.wrongs:
        failures.append(f"wrong tokens: {whole.wrongs:,} times, as {'; '.join(whole.wrong[:_SHOWN])}")
    if whole.fails:
        failures.append(f"innocent errors: {whole.fails:,}, as {'; '.join(whole.failed[:_SHOWN])}")
    if stuck:
        failures.append(f"no end: {len(stuck)} calls, as {', '.join(stuck[:_SHOWN])}")
    elif whole.begun.total() != whole.ended.total():
        failures.append(f"no end: {whole.begun.total():,} calls were begun, {whole.ended.total():,} ended.")
    if compilations:
        failures.append(f"compilations: {compilations}")
    if grown > _GROWTH:
        failures.append(f"memory: grew by {grown:.1f} MB in the second half; it may by {_GROWTH}.")
    return failures


def table(told: Told) -> str:
    """What was asked, and how it ended, as lines."""
    lines = []
    for kind, count in sorted(told.begun.items()):
        ends = ", ".join(f"{n:,} {end}" for (of, end), n in told.ended.most_common() if of == kind)
        lines.append(f"{kind:28} {count:7,}  {ends}")
    return "\n".join(lines)


def define_flags(to: flags.FlagValues) -> None:
    """Adds this program's flags to a set of them."""
    flags.DEFINE_float("minutes", 20, "How long.", lower_bound=0.01, flag_values=to)
    flags.DEFINE_integer("threads", 16, "Callers, the main thread among them.", lower_bound=2, flag_values=to)
    flags.DEFINE_integer("seed", 0, "Of what is asked.", lower_bound=0, flag_values=to)
    flags.DEFINE_list("faults", [], "Kinds of what goes wrong, as the table names them. [all]", to)
    flags.DEFINE_bool("interrupts", True, "Interrupt the main thread.", to)
    flags.DEFINE_integer("slots", 8, "Requests that decode side by side.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("context", 256, "Most tokens of a prompt and its answer.", lower_bound=256, flag_values=to)
    flags.DEFINE_integer("cache_tokens", 384, "Tokens that the cache holds.", lower_bound=256, flag_values=to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    sizes = {"slots": given.slots, "context": given.context, "cache_tokens": given.cache_tokens}
    told = {"minutes": given.minutes, "threads": given.threads, "seed": given.seed}
    told |= {"faults": given.faults, "interrupts": given.interrupts} | sizes
    print(f"nano, {', '.join(f'{name} {value}' for name, value in told.items())}", flush=True)
    weather = storm(gj.load("nano", progress=False), **told)
    whole = weather.told
    print(f"{table(whole)}\n{whole.ended.total():,} calls in {weather.seconds:.0f} s, {weather.preemptions:,} requests gave way")
    print("\n".join(f"NO: {failure}" for failure in weather.failures) or "all of it holds")
    figures = {"calls": whole.ended.total(), "wrong": whole.wrongs, "errors": whole.fails, "preemptions": weather.preemptions}
    figures |= {"compilations": weather.compilations, "grown_mb": weather.grown_mb, "seconds": weather.seconds}
    print(json.dumps(device.about() | told | figures | {"failures": len(weather.failures)}), flush=True)
    if weather.failures:
        os._exit(1)  # threads that are stuck would keep the process
    return 0


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
