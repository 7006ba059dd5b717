"""POST of chat, responses and completions, which go one way: a body is read, its tasks are begun, what comes of them goes out.

What is wrong with a request is found before anything is sent: it is a status. What happens later is an event, where a stream has begun.
"""

import asyncio
from collections.abc import Mapping, Sequence
import dataclasses
import functools
import time
from typing import Any
import uuid

from starlette.types import Receive, Scope, Send

from gptoss_jax.openai import reading, writing
from gptoss_jax.openai.asked import Asked, Endpoint
from gptoss_jax.openai.echoed import Echoed
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.events import Event, Events
from gptoss_jax.openai.told import Told
from gptoss_jax.openai.writing import usage
from gptoss_jax.serve.connections import bodies, wire
from gptoss_jax.serve.connections.bodies import Gone
from gptoss_jax.serve.connections.fence import SPENT, unforeseen
from gptoss_jax.serve.endpoints import echoing
from gptoss_jax.serve.service import Service
from gptoss_jax.serve.stored import Kept, made
from gptoss_jax.turns import running
from gptoss_jax.turns.running import Running
from gptoss_jax.turns.task import Outcome

_SMALL = 50_000  # bytes of a body that is read at once; a longer one in a thread
_ENDS = ("response.completed", "response.incomplete")


class Answering:
    """One endpoint, as an ASGI app."""

    def __init__(self, service: Service, endpoint: Endpoint):
        self._service, self._endpoint = service, endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        since, llm, settings = time.monotonic(), self._service.ready(), self._service.settings
        with self._service.gate.entered() as place:
            body = await bodies.read(scope, receive, place, most=settings.max_body_bytes, seconds=settings.body_seconds)
            name = uuid.uuid4().hex
            asked = await self._read(body, name)
            del body
            place.let_go()
            place.take(sum(task.n for task in asked.tasks) - 1)
            told = Told(name, int(time.time()), model=self._service.called(asked.given.get("model")), cached=True)
            await _Exchange(self._service, llm, asked, told, scope, receive, send).answer(since)

    async def _read(self, body: bytes, name: str) -> Asked:
        if len(body) <= _SMALL:
            return self._asked(body, name)
        return await asyncio.get_running_loop().run_in_executor(self._service.readers, self._asked, body, name)

    def _asked(self, body: bytes, name: str) -> Asked:
        value = bodies.value_of(body)
        self._service.check_model(value.get("model"))
        asked = reading.read(self._endpoint, value, name=name, reading=self._service.reading, earlier=self._service.stored)
        for ignored in asked.ignored[:100]:
            self._service.notice(f"{self._endpoint}: field {ignored} is ignored")
        adapter = self._service.adapter(asked.given.get("model"))
        if adapter is None:
            return asked
        return dataclasses.replace(asked, tasks=tuple(dataclasses.replace(task, adapter=adapter) for task in asked.tasks))


@dataclasses.dataclass
class _Exchange:
    """One request that was read, and its client."""

    service: Service
    llm: Any
    asked: Asked
    told: Told
    scope: Scope
    receive: Receive
    send: Send

    def __post_init__(self):
        before = self.asked.given.get("previous_response_id")
        self._earlier = (before and self.service.stored.items(before)) or ()  # also where it is deleted meanwhile

    async def answer(self, since: float) -> None:
        """Does what was asked for, and sends what comes of it."""
        echoed = None
        if self.asked.echo:
            echoed = await self._unless_ended(echoing.echoed(self.service, self.llm, self.asked))
        if echoed is not None and not self.asked.draws:
            return await self._echo_alone(echoed)
        try:
            parts = await running.running(self.llm, self.asked.tasks, stream=self.asked.stream, since=since)
        except ValueError as error:
            raise reading.refusal(self.asked, str(error)) from None
        async with parts:
            try:
                await (self._stream(parts, echoed) if self.asked.stream else self._whole(parts, echoed))
            finally:
                outcomes = parts.outcomes
                self.scope[SPENT] = (sum(outcome.prompt_tokens for outcome in outcomes), usage.written(outcomes))

    async def _whole(self, parts: Running, echoed: Sequence[Echoed] | None) -> None:
        await self._unless_ended(_drained(parts))
        await self._send_whole(parts.outcomes, echoed)

    async def _send_whole(self, outcomes: Sequence[Outcome], echoed: Sequence[Echoed] | None) -> None:
        told = self._completed()
        body = await self._apart(writing.body, self.asked, told, outcomes, self._tokenizer, echoed=echoed)
        if self.asked.endpoint == "responses":
            await self._keep(body)
        await wire.answer(self.send, body)

    async def _stream(self, parts: Running | None, echoed: Sequence[Echoed] | None) -> None:
        events = writing.events(self.asked, self.told, self._tokenizer, echoed=echoed)
        async with wire.Stream(self.send, self.service.settings.silence_seconds) as stream:
            try:
                await self._unless_ended(self._pump(events, parts, stream))
            except Gone:
                raise
            except Exception as error:
                refusal = error if isinstance(error, Refused) else unforeseen(error, self.scope)
                self.scope["outcome"] = f"200/{refusal.status}"
                await stream.write(events.fail(refusal))
            await stream.end()

    async def _pump(self, events: Events, parts: Running | None, stream: wire.Stream) -> None:
        """All events of an answer, from first to last."""
        await stream.write(events.begin())
        if parts is not None:
            async for answer, part in parts:
                done = hasattr(part, "finish_reason")  # a whole Reply or Completion, which pieces lead up to
                await stream.write(events.done(answer, part) if done else events.add(answer, part))
        events.told = self._completed()
        last = events.end([] if parts is None else parts.outcomes)
        await self._keep_last(last)
        await stream.write(last)

    async def _echo_alone(self, echoed: Sequence[Echoed]) -> None:
        """Nothing is to be drawn."""
        self.scope[SPENT] = (sum(len(one.tokens) for one in echoed), 0)
        await (self._stream(None, echoed) if self.asked.stream else self._send_whole([], echoed))

    async def _keep_last(self, events: Sequence[Event]) -> None:
        for name, data in events:
            if name in _ENDS:
                await self._keep(data["response"])

    async def _keep(self, body: Mapping[str, Any]) -> None:
        """Keeps a response, before its client has heard all of it and asks for more."""
        if self.asked.given.get("store") is False:
            return
        own = {item["id"] for item in self.asked.items if isinstance(item.get("id"), str)}
        self.service.stored.keep(await self._apart(self._kept, body), own=own)

    def _kept(self, body: Mapping[str, Any]) -> Kept:
        continued = self.asked.given.get("continue_final_message", False)
        return made(body, reading.input_items(self.asked), self._earlier, continued=continued)

    def _completed(self) -> Told:
        return dataclasses.replace(self.told, completed=int(time.time()))

    async def _apart(self, make, *arguments, **options):
        return await asyncio.get_running_loop().run_in_executor(self.service.writers, functools.partial(make, *arguments, **options))

    async def _unless_ended(self, work):
        return await self.service.unless_ended(self.receive, work)

    @property
    def _tokenizer(self):
        return self.llm.model.tokenizer


async def _drained(parts: Running) -> None:
    async for _ in parts:
        pass
