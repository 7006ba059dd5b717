"""Answers on the wire: one JSON object, or a stream of events that is never silent for long."""

import asyncio
from collections.abc import Iterable, Mapping
import contextlib
from typing import Any, Self

from starlette.responses import Response
from starlette.types import Send

from gptoss_jax import strict_json
from gptoss_jax.openai.events import DONE, Event, sse

_KEEP_ALIVE = b": keep-alive\n\n"
_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def response(value: Any) -> Response:
    """One object, for who answers with a Response."""
    return Response(strict_json.dumps(value), media_type="application/json")


async def answer(send: Send, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
    """Sends one object."""
    body = strict_json.dumps(value)
    more = [(name.lower().encode("latin-1"), text.encode("latin-1")) for name, text in (headers or {}).items()]
    known = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": known + more})
    await send({"type": "http.response.body", "body": body})


class Stream:
    """A stream of events, to be entered: its headers are sent then, and comments whenever nothing was for `silence` seconds."""

    def __init__(self, send: Send, silence: float):
        self._send, self._silence = send, silence
        self._sending = asyncio.Lock()
        self._last = 0.0

    async def __aenter__(self) -> Self:
        await self._send({"type": "http.response.start", "status": 200, "headers": _STREAM})
        self._last = asyncio.get_running_loop().time()
        self._comments = asyncio.ensure_future(self._comment())
        return self

    async def __aexit__(self, *_) -> None:
        self._comments.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self._comments

    async def write(self, events: Iterable[Event]) -> None:
        """Sends events together; waits while the client reads too slowly."""
        if data := b"".join(map(sse, events)):
            await self._put(data)

    async def end(self) -> None:
        """Says that nothing more comes."""
        async with self._sending:
            await self._send({"type": "http.response.body", "body": DONE, "more_body": False})

    async def _put(self, data: bytes) -> None:
        async with self._sending:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            self._last = asyncio.get_running_loop().time()

    async def _comment(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(0.0, self._last + self._silence - loop.time()))
            if loop.time() >= self._last + self._silence and not self._sending.locked():
                await self._put(_KEEP_ALIVE)
            elif self._sending.locked():
                await asyncio.sleep(self._silence)
