"""A turn on its way, piece by piece: for a loop, and for an event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
import functools
import time

from gptoss_jax.engine.readers import AsyncReader
from gptoss_jax.engine.requests import Piece
from gptoss_jax.turns import tasks
from gptoss_jax.turns.reply import Reply, ReplyBuilder, ReplyPiece
from gptoss_jax.turns.tasks import Task

SECONDS_PER_PIECE = 0.1  # how long a stream may stay silent, where the model is fast enough
_BEGINNERS = 4  # threads that begin what event loops ask for


class Stream(Iterator[ReplyPiece]):
    """A turn on its way; see `LLM.stream`. The engine goes on while it is held: leave the loop, and `close` it or let it go."""

    def __init__(self, pieces: Iterator[Piece], builder: ReplyBuilder):
        self._pieces, self._builder, self._ready = pieces, builder, []

    def __next__(self) -> ReplyPiece:
        while not self._ready:
            piece = next(self._pieces)
            self._ready = self._builder.add(piece)
        return self._ready.pop(0)

    def close(self) -> None:
        """Ends the generation; `reply` holds what was read, and nothing more comes."""
        self._pieces.close()
        self._ready.clear()

    @property
    def reply(self) -> Reply:
        """What has come so far; the whole turn once the iteration has ended."""
        return self._builder.result()


class AsyncStream(AsyncIterator[ReplyPiece]):
    """A turn on its way, on an event loop; see `LLM.astream`. Cancelling the task that reads ends the generation."""

    def __init__(self, llm, task: Task):
        self._llm, self._task, self._since = llm, task, time.monotonic()
        self._reader: AsyncReader | None = None
        self._builder: ReplyBuilder | None = None
        self._ready: list[ReplyPiece] = []
        self._read = self._over = False

    async def __anext__(self) -> ReplyPiece:
        if self._read:
            raise RuntimeError(
                "a stream must be read by one task at a time; another waits for its next piece; give each task its own stream."
            )
        self._read = True
        try:
            while not self._ready:
                await self._take()
            return self._ready.pop(0)
        except BaseException:
            await self.aclose()
            raise
        finally:
            self._read = False

    async def _take(self) -> None:
        """The next pieces. Raises StopAsyncIteration after the last."""
        if not self._over and self._reader is None:
            job = await begun(begin, self._llm, self._task, since=self._since)
            [self._builder], self._reader = job.builders, await self._llm.engine.aread(job.requests)
        if self._over or not self._reader.open:
            raise StopAsyncIteration
        for piece in await self._reader.take():
            self._ready += self._builder.add(piece)

    async def aclose(self) -> None:
        """Ends the generation; `reply` holds what was read."""
        self._over = True
        self._ready.clear()
        if self._reader is not None:
            self._reader.close()

    @property
    def reply(self) -> Reply:
        """What has come so far; the whole turn once the iteration has ended. Raises RuntimeError before the first piece was asked for."""
        if self._builder is None:
            raise RuntimeError("a stream has a reply once its first piece was asked for; nothing was; iterate over it first.")
        return self._builder.result()


def begin(llm, task: Task, *, since: float | None = None) -> tasks.Job:
    """The job of a turn whose pieces are to come soon."""
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
