"""A turn on its way, piece by piece: for a loop, and for an event loop."""

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator
import threading
import time
from typing import Self

from gptoss_jax.engine.requests import Piece, Request
from gptoss_jax.turns import tasks
from gptoss_jax.turns.reply import Reply, ReplyPiece
from gptoss_jax.turns.running import Running, running
from gptoss_jax.turns.task import Task

COPIED = "{} cannot be copied or pickled, for what it reads belongs to one engine; take its reply, or the pieces that came."


class Stream(Iterator[ReplyPiece]):
    """A turn on its way; see `LLM.stream`.

        with llm.stream("...") as stream:
            for piece in stream:
                ...

    The generation ends with the `with`, with `close`, or where the stream is let go. A bare `break` ends it where nothing else holds the
    stream; one that is kept, and may be read on, costs a dispatch or two and then stands still until it is read.
    """

    def __init__(self, engine, job: tasks.Job):
        [self._request], [self._builder] = job.requests, job.builders
        self._pieces = _timed(engine.run(job.requests), self._request, time.monotonic())
        self._ready: list[ReplyPiece] = []
        self._reading, self._over = threading.Lock(), False

    def __next__(self) -> ReplyPiece:
        if not self._reading.acquire(blocking=False):
            raise RuntimeError("a stream must be read by one thread at a time; another waits for its next piece; give each its own stream.")
        try:
            while not self._ready and not self._over:
                piece = next(self._pieces)
                self._ready = self._builder.add(piece)
            if self._over:
                raise StopIteration
            return self._ready.pop(0)
        finally:
            self._reading.release()

    def close(self) -> None:
        """Ends the generation; `reply` holds what was read, and nothing more comes. May be called twice, and from any thread."""
        self._over = self._request.cancelled = True  # where another thread waits for the next piece, that one gets the end
        if self._reading.acquire(blocking=False):
            try:
                self._pieces.close()
                self._ready.clear()
            finally:
                self._reading.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self):
        if hasattr(self, "_reading"):  # it was begun
            self.close()

    def __reduce_ex__(self, protocol):
        raise TypeError(COPIED.format("a Stream"))

    @property
    def reply(self) -> Reply:
        """What has come so far; the whole turn once the iteration has ended."""
        return self._builder.result()


def _timed(pieces: Iterator[Piece], request: Request, since: float) -> Generator[Piece]:
    """The pieces of a request, which is asked for with the first of them: until then its time limit runs too."""
    if request.time_limit is not None:
        request.time_limit = max(0.0, request.time_limit - (time.monotonic() - since))
    yield from pieces


class AsyncStream(AsyncIterator[ReplyPiece]):
    """A turn on its way, on an event loop; see `LLM.astream`.

        async with llm.astream("...") as stream:
            async for piece in stream:
                ...

    The generation ends as a `Stream`'s does (with `async with`, with `aclose`), and where the task that reads is cancelled.
    """

    def __init__(self, llm, task: Task):
        self._llm, self._task, self._since = llm, task, time.monotonic()
        self._running: Running | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._read = self._over = False

    async def __anext__(self) -> ReplyPiece:
        if self._read:
            raise RuntimeError(
                "a stream must be read by one task at a time; another waits for its next piece; give each task its own stream."
            )
        if not self._over and self._loop not in (None, asyncio.get_running_loop()):
            raise RuntimeError(
                "a stream must be read on the event loop that asked for its first piece; this is another one; begin a new stream here."
            )
        self._read = True
        try:
            return await self._next()
        except BaseException:
            await self.aclose()
            raise
        finally:
            self._read = False

    async def _next(self) -> ReplyPiece:
        """The next piece. Raises StopAsyncIteration after the last."""
        if not self._over and self._running is None:
            self._loop = asyncio.get_running_loop()
            self._running = await running(self._llm, [self._task], stream=True, since=self._since)
        while not self._over:
            _, piece = await anext(self._running)
            if isinstance(piece, ReplyPiece):
                return piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends the generation; `reply` holds what was read."""
        self._over = True
        if self._running is not None:
            await self._running.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_) -> None:
        await self.aclose()

    def __reduce_ex__(self, protocol):
        raise TypeError(COPIED.format("an AsyncStream"))

    @property
    def reply(self) -> Reply:
        """What has come so far; the whole turn once the iteration has ended. Raises RuntimeError before the first piece was asked for."""
        if self._running is None:
            raise RuntimeError("a stream has a reply once its first piece was asked for; nothing was; iterate over it first.")
        return self._running.jobs[0].builders[0].result()
