"""A stand-in for `LLM` that batch jobs can be run with: its answers depend on the request alone and come in a shuffled order."""

from collections.abc import Iterable, Iterator, Mapping
import math
from pathlib import Path
import random
import resource
import sys
import time
from types import SimpleNamespace
import zlib

from gptoss_jax.batch import source
from gptoss_jax.batch.draining import UNFINISHED, Draining
from gptoss_jax.batch.job import Job
from gptoss_jax.batch.shards import Shard
from gptoss_jax.harmony import Message
from gptoss_jax.openai.asked import Defaults
from gptoss_jax.turns.task import Outcome, Task

MESSAGE, END = 1, 2  # control tokens; all other ids are code points
NAME, CALL = "functions.get_weather", '{"city": "Paris"}'


class FakeTokenizer:
    special: Mapping[str, int] = {"<|message|>": MESSAGE, "<|end|>": END}

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return "".join(map(chr, ids)).encode()


class FakeLLM:
    """Has of `LLM` what a job uses.

    Args:
      slots: looks `2 * slots` tasks ahead, and answers them in some order.
      seconds: what an answer takes.
      context: characters of a prompt beyond which a task is refused.
    """

    def __init__(self, slots: int = 4, *, seconds: float = 0, context: int = 10_000):
        self.slots, self.seconds, self.context = slots, seconds, context
        self.model = SimpleNamespace(tokenizer=FakeTokenizer())
        self.engine = SimpleNamespace(stats=SimpleNamespace(generated=0, computed=0, reused=0, preemptions=0, occupancy=0.5))
        self.ahead, self.closed = 0, False

    def prepare(self, progress: bool = False) -> None:
        pass

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        rng, waiting, tasks, more = random.Random(0), [], iter(tasks), True
        try:
            while more or waiting:
                while more and len(waiting) < 2 * self.slots:
                    task = next(tasks, None)
                    more = task is not None
                    waiting += [task] if more else []
                self.ahead = max(self.ahead, len(waiting))
                if waiting:
                    time.sleep(self.seconds)
                    yield self._outcome(waiting.pop(rng.randrange(min(self.slots, len(waiting)))))
        finally:
            self.closed = True

    def _outcome(self, task: Task) -> Outcome:
        """As `LLM.run` has it: an error ends its own task."""
        try:
            return self.answer(task)
        except Exception as error:
            return Outcome(task, (), 0, f"the task failed on the way: {error!r}.", failed=True)

    def answer(self, task: Task) -> Outcome:
        prompt = str(task.prompt if task.messages is None else task.messages)
        if len(prompt) > self.context:
            return Outcome(task, (), 0, f"prompt has {len(prompt):,} tokens but context is {self.context:,}; shorten the prompt.")
        answers = tuple(self._reply(task, prompt, i) for i in range(task.n))
        self.engine.stats.generated += sum(len(answer.tokens) for answer in answers)
        return Outcome(task, answers, len(prompt))

    def _reply(self, task: Task, prompt: str, index: int) -> SimpleNamespace:
        """Says how it was asked, reasons one word, and calls the tools that it has."""
        how = task.sampling
        said = f"{prompt[-40:]} seed {how.seed + index} at {how.temperature:g}"[: how.max_tokens]
        cut = len(said) == how.max_tokens
        if task.messages is None:
            tokens, messages = [*map(ord, said)], []
        else:
            thought, tokens = [ord("a"), MESSAGE, ord("h"), ord("m"), END], [ord("f"), MESSAGE, *map(ord, said), *([] if cut else [END])]
            spans = ((0, 5), (5, 5 + len(tokens)))
            said, listed = ("", task.tools) if task.tools else (said, ())
            messages = [Message("assistant", "hm", spans[0], channel="analysis", end="<|end|>", content=(2, 4))]
            messages += [Message("assistant", CALL, spans[1], channel="commentary", recipient=NAME, end="<|end|>") for _ in listed]
            messages += (
                []
                if listed
                else [
                    Message(
                        "assistant", said, spans[1], channel="final", end=None if cut else "<|end|>", content=(7, spans[1][1] - 1 + cut)
                    )
                ]
            )
            tokens = thought + tokens
        logprobs = [-(zlib.crc32(b"%d %d" % (how.seed, i)) % 1000) / 100 for i in range(len(tokens))]
        calls = tuple(message.tool_call for message in messages if message.tool_call)
        return SimpleNamespace(
            text=said,
            reasoning="hm",
            tool_calls=calls,
            tokens=tuple(tokens),
            logprobs=None if how.logprobs is None else logprobs,
            top_logprobs=[{token: x, 65: x - 1} for token, x in zip(tokens, logprobs, strict=True)] if how.logprobs else None,
            given_logprobs=[{token: x - 2 for token in how.logprob_token_ids} for x in logprobs] if how.logprob_token_ids else None,
            processed_logprobs=None if how.processed_logprobs is None else [x / 2 if x > -9 else -math.inf for x in logprobs],
            top_processed_logprobs=[{65: x / 3} for x in logprobs] if how.processed_logprobs else None,
            finish_reason="tool_calls" if calls else "length" if cut else "stop",
            parsed=SimpleNamespace(messages=messages),
            said=tuple(messages),
            error=None,
        )


def run_job(
    given: Path,
    output: Path,
    llm: FakeLLM | None = None,
    *,
    shard: Shard = Shard(),  # noqa: B008
    drain: float = 5,
    most: int = source.MAX_LINE_BYTES,
    private: bool = False,
    **defaults,
) -> bool:
    """A job from the beginning or from where it was; whether it is finished."""
    told = Defaults(**defaults)
    lines = source.survey(given, most)
    with Draining(drain) as draining, Job(lines, output, {"seed": told.seed}, told, shard, private=private) as job:
        job.run(llm or FakeLLM(), draining)
        if job.journal.missing:
            return False
        job.finish()
    return True


def run_and_exit(given: str, output: str, seconds: float, most_bytes: int = resource.RLIM_INFINITY) -> None:
    """For a process of its own: exits as the program does. No file may have more bytes than `most_bytes`, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    try:
        finished = run_job(Path(given), Path(output), FakeLLM(seconds=seconds))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if finished else UNFINISHED)
