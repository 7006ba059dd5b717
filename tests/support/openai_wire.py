"""All that a client of OpenAI's libraries is sent, looked at with the types of these libraries, which themselves look at nothing."""

from collections.abc import AsyncIterator, Iterator
import dataclasses
import functools
import json

import httpx
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

_WHOLE = {"/chat/completions": ChatCompletion, "/completions": Completion, "/responses": Response}
_EVENT = {"/chat/completions": ChatCompletionChunk, "/completions": Completion, "/responses": ResponseStreamEvent}
_LAST = ("response.completed", "response.incomplete", "response.failed")


@dataclasses.dataclass
class Exchange:
    """A request and what came back, as far as the client read it."""

    method: str
    path: str
    asked: bytes
    status: int
    headers: httpx.Headers
    body: bytes = b""
    whole: bool = False

    @property
    def events(self) -> list[tuple[str | None, dict]]:
        """Those of a stream, without `[DONE]`."""
        found = []
        for block in self.body.decode().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
            if lines.get("data", "[DONE]") != "[DONE]":
                found.append((lines.get("event"), json.loads(lines["data"])))
        return found


class Wire(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A transport for `httpx.Client` and `httpx.AsyncClient` that keeps what goes through it.

    Attributes:
      exchanges: in their order.
    """

    def __init__(self):
        self.exchanges: list[Exchange] = []
        self._plain, self._async = httpx.HTTPTransport(), httpx.AsyncHTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._plain.handle_request(request)
        response.stream = _Kept(response.stream, self._begin(request, response))
        return response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._async.handle_async_request(request)
        response.stream = _Kept(response.stream, self._begin(request, response))
        return response

    def close(self) -> None:
        self._plain.close()

    async def aclose(self) -> None:
        await self._async.aclose()

    def check(self) -> None:
        """Fails where something came that OpenAI's types know otherwise."""
        for exchange in self.exchanges:
            check(exchange)

    def _begin(self, request: httpx.Request, response: httpx.Response) -> Exchange:
        asked = request.content if hasattr(request, "_content") else b""
        self.exchanges.append(Exchange(request.method, request.url.path, asked, response.status_code, response.headers))
        return self.exchanges[-1]


class _Kept(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, stream, exchange: Exchange):
        self._stream, self._exchange = stream, exchange

    def __iter__(self) -> Iterator[bytes]:
        for part in self._stream:
            self._exchange.body += part
            yield part
        self._exchange.whole = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            self._exchange.body += part
            yield part
        self._exchange.whole = True

    def close(self) -> None:
        self._stream.close()

    async def aclose(self) -> None:
        await self._stream.aclose()


def check(exchange: Exchange) -> None:
    """Fails where the answer to one request is not as OpenAI's types have it, or its events do not fit together."""
    end = next((end for end in _WHOLE if exchange.path.endswith(end)), None)
    assert exchange.headers.get("x-request-id"), exchange.path
    if exchange.status >= 400:
        if exchange.whole:
            check_error(json.loads(exchange.body))
    elif exchange.headers["content-type"].startswith("text/event-stream"):
        assert exchange.headers["cache-control"] == "no-cache" and exchange.headers["x-accel-buffering"] == "no"
        _check_events(end, exchange)
    elif exchange.whole and exchange.method == "POST" and end is not None:
        found = json.loads(exchange.body)
        _adapter(_WHOLE[end]).validate_python(_typed(found) if end == "/completions" else found)
    elif exchange.whole and exchange.method == "GET" and "/models" in exchange.path:
        found = json.loads(exchange.body)
        _adapter(list[Model]).validate_python(found["data"] if exchange.path.endswith("/models") else [found])


@functools.cache
def _adapter(kind) -> TypeAdapter:
    """Made once: a union of all events takes a second."""
    return TypeAdapter(kind)


def check_error(body: dict) -> None:
    """Fails where a body is no error of OpenAI's."""
    error = body["error"]
    assert error.keys() >= {"message", "type", "param", "code"} and error["message"] and error["type"], body


def _check_events(end: str, exchange: Exchange) -> None:
    events = [(name, data) for name, data in exchange.events]
    plain = [data for name, data in events if "error" not in data or end == "/responses"]
    for one in plain:
        _adapter(_EVENT[end]).validate_python(_typed(one) if end == "/completions" else one)
    if exchange.whole:
        assert exchange.body.endswith(b"data: [DONE]\n\n"), exchange.body[-200:]
    if end == "/responses":
        assert all(name == data["type"] for name, data in events)
        _check_order([data for _, data in events], exchange.whole)
    elif plain:
        assert len({(one["id"], one["created"], one["model"], one["object"]) for one in plain}) == 1


def _typed(completion: dict) -> dict:
    """As the library's type has it, which is used for more than it knows: choices that go on, and prompts' first tokens."""
    choices = []
    for choice in completion["choices"]:
        listed = {name: [*values] for name, values in (choice["logprobs"] or {}).items()}
        if listed.get("token_logprobs", [0])[:1] == [None]:
            listed["token_logprobs"][0], listed["top_logprobs"][:1] = 0.0, [{}]
        choices.append(choice | {"finish_reason": choice["finish_reason"] or "stop", "logprobs": listed or None})
    return completion | {"choices": choices}


def _check_order(events: list[dict], whole: bool) -> None:
    """Fails where the events of a response do not add up to the objects that they say they are of."""
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"][: len(events)]
    begun, items, parts = {}, {}, {}
    for event in events[2:]:
        kind, k = event["type"], event.get("output_index")
        if kind == "response.output_item.added":
            assert k == len(begun) == len(items), "one item at a time"
            begun[k], parts[k] = event["item"], {"text": "", "open": False}
            assert not (event["item"].get("content") or event["item"].get("arguments"))
        elif kind == "response.output_item.done":
            items[k] = event["item"]
            assert {key: items[k].get(key) for key in ("id", "type", "name", "call_id")} == {
                key: begun[k].get(key) for key in ("id", "type", "name", "call_id")
            }
            assert _text_of(items[k]) == parts[k]["text"]
        elif kind in _LAST:
            assert event is events[-1] and event["response"]["output"] == [items[k] for k in sorted(items)]
        elif k is not None:
            assert event["item_id"] == begun[k]["id"] and k not in items and event.get("content_index", 0) == 0
            parts[k]["text"] += event["delta"] if kind.endswith(".delta") else ""
            if kind.endswith(("_text.done", "arguments.done")):
                assert event.get("text", event.get("arguments")) == parts[k]["text"]
    if whole and events[-1]["type"] != "error":
        assert events[-1]["type"] in _LAST and len(begun) == len(items)


def _text_of(item: dict) -> str:
    if item["type"] == "function_call":
        return item["arguments"]
    return "".join(part["text"] for part in item.get("content") or [])
