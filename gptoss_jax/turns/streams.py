"""A turn on its way, piece by piece: for a loop, and for an event loop."""

import asyncio
from collections.abc import AsyncIterator, Iterator
import contextlib

from gptoss_jax.engine.requests import Piece
from gptoss_jax.turns import tasks
from gptoss_jax.turns.reply import Reply, ReplyBuilder, ReplyPiece
from gptoss_jax.turns.tasks import Task

SECONDS_PER_PIECE = 0.1  # how long a stream may stay silent, where the model is fast enough


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
        """Ends the generation; `reply` holds what was read."""
        self._pieces.close()

    @property
    def reply(self) -> Reply:
        """What has come so far; the whole turn once the iteration has ended."""
        return self._builder.result()


class AsyncStream(AsyncIterator[ReplyPiece]):
    """A turn on its way, on an event loop; see `LLM.astream`."""

    def __init__(self, llm, task: Task):
        self._llm, self._task = llm, task
        self._pieces: AsyncIterator[Piece] | None = None
        self._builder: ReplyBuilder | None = None
        self._ready: list[ReplyPiece] = []

    async def __anext__(self) -> ReplyPiece:
        if self._pieces is None:
            job = await asyncio.to_thread(begin, self._llm, self._task)
            self._pieces, [self._builder] = self._llm.engine.arun(job.requests), job.builders
        while not self._ready:
            piece = await anext(self._pieces)
            self._ready = self._builder.add(piece)
        return self._ready.pop(0)

    async def aclose(self) -> None:
        """Ends the generation; `reply` holds what was read."""
        if self._pieces is not None:
            await self._pieces.aclose()

    @property
    def reply(self) -> Reply:
        """What has come so far; the whole turn once the iteration has ended. Raises RuntimeError before the first piece was asked for."""
        if self._builder is None:
            raise RuntimeError("a stream has a reply once its first piece was asked for; nothing was; iterate over it first.")
        return self._builder.result()


def begin(llm, task: Task) -> tasks.Job:
    """The job of a turn whose pieces are to come soon."""
    job = tasks.begin(llm, task)
    for request in job.requests:
        request.seconds_per_piece = SECONDS_PER_PIECE
    return job


async def feed(llm, job: tasks.Job | tasks.Jobs) -> None:
    """Has the requests of a job done on the running event loop, and gives it the pieces."""
    async with contextlib.aclosing(llm.engine.arun(job.requests)) as pieces:
        async for piece in pieces:
            job.add(piece)
