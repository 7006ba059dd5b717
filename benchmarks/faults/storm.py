"""The callers of a storm, each in a thread: mostly innocent requests, and beside them what must hurt nobody but its own request."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import signal
import threading
import time

import numpy as np

from benchmarks.faults import broken, innocents
from benchmarks.faults.innocents import Failed, Known, Pool, Wrong
import gptoss_jax as gj

_INNOCENT = 0.6  # share of the calls
_INTERRUPT = 0.4  # seconds until the main thread is interrupted, on average
PATIENCE = 60  # seconds that a call may take
_KEPT = 20  # messages of each kind


@dataclasses.dataclass
class Told:
    """What one caller saw.

    Attributes:
      begun: calls by their kind.
      ended: calls by their kind and how they ended.
      wrong, failed: what innocent requests suffered, the first sentences; `wrongs` and `fails` count them.
      doing: the call it is in, and since when.
    """

    begun: Counter = dataclasses.field(default_factory=Counter)
    ended: Counter = dataclasses.field(default_factory=Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)
    wrongs: int = 0
    fails: int = 0
    doing: tuple[str, float] | None = None

    def suffered(self, kind: str, error: Exception) -> None:
        """Notes what an innocent request came to."""
        name = f"{kind}: {type(error).__name__}: {str(error)[:400]}"
        if isinstance(error, Wrong):
            self.wrongs += 1
            self.wrong += [name] * (len(self.wrong) < _KEPT)
        else:
            self.fails += 1
            self.failed += [name] * (len(self.failed) < _KEPT)


class Storm:
    """One LLM and its callers.

    Args:
      llm: of a model with a poisoned token.
      pool: innocent requests.
      token: the poisoned one.
      faults: kinds that come, all where none is named.

    Raises:
      ValueError: there is no such kind.
    """

    def __init__(self, llm: gj.LLM, pool: Pool, token: int, faults: Sequence[str] = ()):
        self.llm, self.pool, self.token = llm, pool, token
        self.over = threading.Event()
        self.innocents = {name: self._innocent(ask) for name, ask in innocents.ASK.items()}
        self.faults: dict[str, Callable[[np.random.Generator], str]] = {
            "grammar gives up": lambda rng: self._beside(rng, response_format=broken.GIVES_UP, temperature=1.5, max_tokens=60),
            "mask raises": lambda rng: self._beside(rng, response_format=broken.MASK),
            "advance raises": lambda rng: self._beside(rng, response_format=broken.ADVANCE),
            "mask lies": lambda rng: self._beside(rng, response_format=broken.LIES),
            "builder raises": lambda rng: self._beside(rng, seed=broken.SEEDS + int(rng.integers(99))),
            "NaN": lambda rng: self._beside(rng, prompt=[40, self.token] * int(rng.integers(1, 40)), logprobs=0),
            "NaN alone": self._nan_alone,
            "iterable raises": self._raising_iterable,
            "stream left": self._stream_left,
            "run left": self._run_left,
            "time limit": self._time_limit,
            "refused": self._refused,
        }
        if hasattr(llm, "astream"):
            self.faults["loop, some cancelled"] = lambda rng: asyncio.run(self._loop(rng))
        if unknown := set(faults) - set(self.faults):
            raise ValueError(f"faults must be of {', '.join(self.faults)}; got {', '.join(sorted(unknown))}; name some of those.")
        self.faults = {name: act for name, act in self.faults.items() if name in (faults or self.faults)}

    def call(self, told: Told, rng: np.random.Generator, interrupted: bool = False) -> None:
        """One call of a random kind. What innocent requests suffer in it is noted; nothing is raised."""
        acts = self.innocents if interrupted or rng.random() < _INNOCENT else self.faults
        name = str(rng.choice(list(acts)))
        kind = f"{name}, interrupted" if interrupted else name
        told.begun[kind] += 1
        told.doing = kind, (began := time.monotonic())
        try:
            with _interrupts(rng) if interrupted else contextlib.nullcontext():
                end = acts[name](rng)
        except KeyboardInterrupt:
            end = "interrupted"
            if time.monotonic() - began > PATIENCE:
                told.suffered(kind, Failed(f"had no end within {PATIENCE} seconds."))
        except Exception as error:
            end = "wrong" if isinstance(error, Wrong) else "an error"
            told.suffered(kind, error)
        told.ended[kind, end] += 1
        told.doing = None

    def caller(self, told: Told, seed: int, interrupted: bool = False) -> None:
        """Calls until the storm is over."""
        rng = np.random.default_rng(seed)
        while not self.over.is_set():
            self.call(told, rng, interrupted)

    def _innocent(self, ask: Callable) -> Callable[[np.random.Generator], str]:
        return lambda rng: ask(self.llm, self.pool, rng) or "right"

    def _beside(self, rng: np.random.Generator, prompt="What is", response_format=None, **sampling) -> str:
        """A broken task among innocent ones of one run, which must all be answered; how it ended itself."""
        some = innocents.mixed(self.pool, rng)
        drawn = {"temperature": 1.0, "seed": int(rng.integers(2**30)), "max_tokens": 30} | sampling
        mine = gj.Task(key="mine", prompt=prompt, sampling=gj.Sampling(**drawn), response_format=response_format)
        tasks = [one.task for one in some]
        tasks.insert(int(rng.integers(len(some) + 1)), mine)
        left = {id(one.task): one for one in some}
        end = "no outcome"
        try:
            for outcome in self.llm.run(tasks):
                if outcome.task is mine:
                    end = _end(outcome)
                elif outcome.error is not None:
                    raise Failed(f"an innocent task was refused: {outcome.error}")
                else:
                    left.pop(id(outcome.task)).check(outcome.answers)
        except (Wrong, Failed):
            raise
        except Exception as error:
            raise Failed(f"{len(left)} innocent tasks beside it were lost: {type(error).__name__}: {error}") from error
        if left:
            raise Failed(f"{len(left)} innocent tasks beside it had no outcome.")
        return end

    def _nan_alone(self, rng: np.random.Generator) -> str:
        prompts = [[40, self.token] * int(rng.integers(1, 40)) for _ in range(3)]
        done = self.llm.generate(prompts, gj.Sampling(temperature=0, max_tokens=12, logprobs=0))
        return str(done[0].finish_reason)

    def _raising_iterable(self, rng: np.random.Generator) -> str:
        some = innocents.mixed(self.pool, rng)

        def tasks() -> Iterator[gj.Task]:
            yield from (one.task for one in some)
            raise broken.Broken("this iterable raises.")

        try:
            innocents.check_run(self.llm, tasks(), some)
        except broken.Broken as error:
            if "iterable" not in str(error):
                raise
            return "raises"
        return "ends without a word"

    def _stream_left(self, rng: np.random.Generator) -> str:
        known, most = innocents.first_of(self.pool, rng), int(rng.integers(4))
        stream = self.llm.stream(known.task.messages, known.task.sampling, **innocents.of_chat(known.task))
        for _ in range(most):
            if next(stream, None) is None:
                break
        known.check_beginning(stream.reply)
        return "left before it began" if most == 0 else "left"

    def _run_left(self, rng: np.random.Generator) -> str:
        some = innocents.mixed(self.pool, rng)
        by_task = {id(one.task): one for one in some}
        for outcome in self.llm.run([one.task for one in some]):
            by_task[id(outcome.task)].check(outcome.answers)
            if rng.random() < 0.5:
                break
        return "left"

    def _time_limit(self, rng: np.random.Generator) -> str:
        known, limit = innocents.first_of(self.pool, rng), float(rng.choice([0.0, 0.02, 0.2]))
        options = innocents.of_chat(known.task)
        reply = self.llm.chat(known.task.messages, known.task.sampling, time_limit=limit, **options)
        known.check_beginning(reply)
        return reply.finish_reason

    def _refused(self, rng: np.random.Generator) -> str:
        wrong = [[], [10**6], [40] * 10**4][int(rng.integers(3))]
        try:
            self.llm.generate([[40, 41], wrong], gj.Sampling(max_tokens=3))
        except ValueError:
            return "refused"
        raise Failed("a prompt that cannot be must be refused; one was not.")

    async def _loop(self, rng: np.random.Generator) -> str:
        """Some calls in one event loop, of which some are cancelled."""

        async def known(one: Known, way: int) -> None:
            options, sampling = innocents.of_chat(one.task), one.task.sampling
            if way == 0:
                return one.check([await self.llm.achat(one.task.messages, sampling, **options)])
            stream = self.llm.astream(one.task.messages, sampling, **options)
            async for _ in stream:
                pass
            one.check([stream.reply])

        async def cancelled(one: Known, way: int, seconds: float) -> None:
            task = asyncio.create_task(known(one, way))
            await asyncio.sleep(seconds)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        async def generated(one: Known) -> None:
            task = one.task
            told = {"n": task.n, "response_format": task.response_format, "priority": task.priority}
            answers = await self.llm.agenerate(task.prompt, task.sampling, **told)
            one.check(answers if task.n > 1 else [answers])

        chats = [innocents.first_of(self.pool, rng) for _ in range(6)]
        waits = [cancelled(one, i % 2, float(rng.choice([0, 0.01, 0.1]))) for i, one in enumerate(chats[:3])]
        text = self.pool.texts[int(rng.integers(len(self.pool.texts)))]
        await asyncio.gather(*waits, *(known(one, i % 2) for i, one in enumerate(chats[3:])), generated(text))
        return "ended"


@contextlib.contextmanager
def _interrupts(rng: np.random.Generator) -> Iterator[None]:
    """Has the process interrupted soon, as by Ctrl-C. For the main thread, whose handler of SIGALRM raises."""
    try:
        signal.setitimer(signal.ITIMER_REAL, float(rng.exponential(_INTERRUPT)) + 0.0005, PATIENCE)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _end(outcome: gj.Outcome) -> str:
    """How a task ended."""
    return "refused" if not outcome.answers else str(outcome.answers[0].finish_reason)


def merged(all_told: Sequence[Told]) -> Told:
    """What all callers saw."""
    whole = Told()
    for told in all_told:
        whole.begun += told.begun
        whole.ended += told.ended
        whole.wrong += told.wrong
        whole.failed += told.failed
        whole.wrongs += told.wrongs
        whole.fails += told.fails
    return whole
