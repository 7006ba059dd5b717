"""Tasks on their way on an event loop: begun in threads of our own, asked of the engine together, read piece by piece or whole."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
import functools
from typing import Self

import numpy as np

from gptoss_jax.engine.readers import AsyncReader
from gptoss_jax.engine.requests import Piece
from gptoss_jax.turns import tasks
from gptoss_jax.turns.completion import Completion, CompletionPiece
from gptoss_jax.turns.reply import Reply, ReplyPiece
from gptoss_jax.turns.task import Outcome, Task

SECONDS_PER_PIECE = 0.1  # how long a stream may stay silent, where the model is fast enough
_BEGINNERS = 4  # threads that begin what event loops ask for

Part = ReplyPiece | CompletionPiece | Reply | Completion


class Running(AsyncIterator[tuple[int, Part]]):
    """What comes of tasks, as pairs: the number of an answer, counted through all tasks, and what is next of it; see `running`.

        async with await running(llm, tasks, stream=True, since=time.monotonic()) as parts:
            async for answer, part in parts:
                ...

    The generation ends with the `async with`, with `aclose`, and where the asyncio task that reads is cancelled. To be read by one task.

    Attributes:
      jobs: of the tasks, in their order.
    """

    def __init__(self, jobs: Sequence[tasks.Job], reader: AsyncReader, *, stream: bool):
        self.jobs, self._reader, self._stream = jobs, reader, stream
        open_ = [pair for job in jobs for pair in zip(job.requests, job.builders, strict=True)]
        self._open = {request: (answer, builder) for answer, (request, builder) in enumerate(open_)}
        self._ready: deque[tuple[int, Part]] = deque()
        self._whole: dict[int, Reply | Completion] = {}

    async def __anext__(self) -> tuple[int, Part]:
        try:
            while not self._ready:
                if not self._open:
                    raise StopAsyncIteration
                for piece in await self._reader.take():
                    self._add(piece)
            return self._ready.popleft()
        except BaseException:
            await self.aclose()
            raise

    def _add(self, piece: Piece) -> None:
        answer, builder = self._open.get(piece.request, (0, None))
        if builder is None:  # it has ended at a stop string; this is the engine's last word on it
            return
        parts = builder.add(piece)
        if self._stream:
            self._ready.extend((answer, part) for part in parts)
        if piece.finish_reason or piece.request.cancelled:
            del self._open[piece.request]
            self._whole[answer] = builder.result()
            self._ready.append((answer, self._whole[answer]))

    async def aclose(self) -> None:
        """Ends the generation; `outcomes` hold what was read. May be called twice."""
        self._open.clear()
        self._ready.clear()
        self._reader.close()
        self._reader.outlet.put([])  # whoever still reads hears of it

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_) -> None:
        await self.aclose()

    @property
    def outcomes(self) -> list[Outcome]:
        """Of the tasks, in their order: with what has come so far, whole once the iteration has ended."""
        answers = iter(range(sum(len(job.builders) for job in self.jobs)))
        return [job.outcome_of([self._answer(next(answers), builder) for builder in job.builders]) for job in self.jobs]

    def _answer(self, answer: int, builder) -> Reply | Completion:
        return self._whole[answer] if answer in self._whole else builder.result()


async def running(llm, tasks: Sequence[Task], *, stream: bool, since: float) -> Running:
    """Has tasks done on the running event loop, side by side; to be read, or closed.

    Args:
      stream: whether pieces come as soon as there are some, `ReplyPiece`s and `CompletionPiece`s, and last of each answer the whole
        `Reply` or `Completion`; else these alone, as fast as all of them can be made.
      since: when they were asked for, by `time.monotonic`: their time limits count from then.

    Raises:
      ValueError, TypeError: what `tasks.begin` and the engine refuse, before anything has run. What fails later is in the `Reply`s, and
        in the `Outcome`s.
    """
    jobs = await begun(_begin_all, llm, tuple(tasks), stream, since=since)
    reader = await llm.engine.aread([request for job in jobs for request in job.requests])
    return Running(jobs, reader, stream=stream)


def _begin_all(llm, these: Sequence[Task], stream: bool, *, since: float) -> list[tasks.Job]:
    return [_checked(llm, (begin if stream else tasks.begin)(llm, task, since=since)) for task in these]


def _checked(llm, job: tasks.Job) -> tasks.Job:
    """The job, whose requests the engine will take; it looks at an array in no time. At hooks it looks itself, which may take long."""
    if job.requests[0].hook is not None:
        return job
    llm.engine.check_request(job.requests[0])
    prompt = np.asarray(job.requests[0].prompt, np.int32)
    for request in job.requests:
        request.prompt = prompt
    return job


def begin(llm, task: Task, *, since: float | None = None) -> tasks.Job:
    """The job of a task whose pieces are to come soon."""
    job = tasks.begin(llm, task, since=since)
    for request in job.requests:
        request.seconds_per_piece, request.paced = SECONDS_PER_PIECE, True
    return job


async def begun(make: Callable, *arguments, since: float):
    """What `make` returns, in a thread of our own: it takes milliseconds, and asyncio's threads may be taken by others."""
    return await asyncio.get_running_loop().run_in_executor(_beginners(), functools.partial(make, *arguments, since=since))


@functools.cache
def _beginners() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_BEGINNERS, thread_name_prefix="gptoss_jax begin")


async def feed(llm, job: tasks.Job | tasks.Jobs) -> None:
    """Has the requests of a job done on the running event loop, and gives it the pieces."""
    reader = await llm.engine.aread(job.requests)
    try:
        while reader.open:
            for piece in await reader.take():
                job.add(piece)
    finally:
        reader.close()
