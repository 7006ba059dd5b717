"""A server of the chat protocol that says what it was told to, for what talks to one: it waits where a test wants it to."""

import asyncio
from collections.abc import AsyncIterator
import contextlib
import json
import threading

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
import uvicorn

from gptoss_jax.serve.page import page

KEY = "open sesame"


class Scripted:
    """What the server does, and what it has seen.

    Attributes:
      script: what the last message's content is answered with: a list of events, of strings as they go onto the wire, and of `None`s, where
        the stream waits for `go`; or a status with an error's message.
      keyed: whether a request must bring KEY.
      seen: bodies of the requests.
      left: how many streams were left by their clients.
    """

    def __init__(self):
        self.script: dict[str, list | tuple[int, str]] = {}
        self.keyed = False
        self.seen: list[dict] = []
        self.left = 0
        self.go = threading.Event()
        routes = [Route("/", page), Route("/v1/models", self._models), Route("/v1/chat/completions", self._chat, methods=["POST"])]
        self.app = Starlette(routes=routes)

    def _refused(self, request: Request) -> JSONResponse | None:
        if self.keyed and request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": {"message": "an API key is needed."}}, 401)
        return None

    async def _models(self, request: Request):
        return self._refused(request) or JSONResponse({"object": "list", "data": [{"id": "scripted/one", "object": "model"}]})

    async def _chat(self, request: Request):
        if refused := self._refused(request):
            return refused
        body = await request.json()
        self.seen.append(body)
        said = self.script[body["messages"][-1]["content"]]
        if isinstance(said, tuple):
            return JSONResponse({"error": {"message": said[1]}}, said[0])
        return StreamingResponse(self._stream(said), media_type="text/event-stream")

    async def _stream(self, said: list) -> AsyncIterator[bytes]:
        try:
            for one in said:
                if one is None:
                    while not self.go.is_set():
                        yield b": keep-alive\n\n"
                        await asyncio.sleep(0.01)
                elif isinstance(one, str):
                    yield one.encode()
                else:
                    for part in _cut(f"data: {json.dumps(one, ensure_ascii=False)}\n\n".encode()):
                        yield part
        except asyncio.CancelledError:
            self.left += 1
            raise


def _cut(event: bytes) -> list[bytes]:
    """In two, in the middle of a character if there is one."""
    middle = next((i + 1 for i, byte in enumerate(event) if byte >= 0xC0), len(event) // 2)
    return [event[:middle], event[middle:]]


def delta(finish: str | None = None, **what) -> dict:
    return {"choices": [{"index": 0, "delta": what, "finish_reason": finish}], "usage": None}


def usage(read: int, written: int) -> dict:
    return {"choices": [], "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}}


DONE = "data: [DONE]\n\n"


@contextlib.contextmanager
def serving(app):
    """An app behind uvicorn, in a thread: its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def call(index: int, name: str, *arguments: str) -> list:
    """Events of a call, whose arguments come in parts."""
    first = {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": ""}}
    rest = [{"index": index, "function": {"arguments": part}} for part in arguments]
    return [delta(tool_calls=[one]) for one in (first, *rest)]
