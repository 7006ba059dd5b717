"""What all rooms of one server share: its model, once there is one, its settings, who is in, what is kept."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
import logging
from typing import Any, TypeVar

from starlette.types import Receive

from gptoss_jax.openai.asked import Defaults, Reading
from gptoss_jax.openai.errors import Refused
from gptoss_jax.quoting import quoted
from gptoss_jax.serve.connections.bodies import Gone
from gptoss_jax.serve.connections.gate import Gate, stopping
from gptoss_jax.serve.settings import NAME_MOST, Settings
from gptoss_jax.serve.stored import Stored

T = TypeVar("T")
_log = logging.getLogger(__name__)
_THREADS = 2  # of each kind
_MOST_NOTICED = 1000  # names


class Service:
    """One server.

    Args:
        llm: None for one that is still being loaded, and comes later.

    Attributes:
        llm: the model.
        reading: how bodies are to be read.
        gate, stored: who is in, what is kept.
        readers, writers, spellers, scorer: threads, so that none waits for another's work: that read long bodies, write answers, tokenize;
            one that asks for log-probabilities of prompts.
        cut: set where what still runs must end at once.
    """

    def __init__(self, settings: Settings, llm: Any | None = None):
        self.settings, self.llm = settings, llm
        self.stored = Stored(settings.max_stored, settings.max_stored_bytes)
        self.gate = Gate(settings.max_waiting, 4 * settings.max_body_bytes)
        self.cut = asyncio.Event()
        defaults = Defaults(settings.temperature, settings.max_tokens, settings.reasoning_effort, seed=None)
        self.reading = Reading(defaults, live=True, strict=settings.strict, time_limit=settings.timeout)
        self.readers, self.writers, self.spellers = (
            ThreadPoolExecutor(_THREADS, thread_name_prefix=f"gptoss_jax {does}") for does in ("read", "write", "spell")
        )
        self.scorer = ThreadPoolExecutor(1, thread_name_prefix="gptoss_jax score")
        self._noticed: set[str] = set()
        if llm is not None:
            self.begin(llm)

    def begin(self, llm: Any) -> None:
        """The model is there."""
        self.llm = llm
        self.gate.most = self.settings.max_waiting + llm.engine.slots

    def ready(self) -> Any:
        """The model. Raises Refused where it is not there yet, or no more to be asked."""
        if self.gate.closed:
            raise stopping()
        if self.llm is None:
            raise Refused("the model is being loaded; try again soon.", "loading", status=503)
        if self.llm.engine.asleep:
            raise Refused("the model sleeps; try again once it is awake.", "asleep", status=503)
        return self.llm

    def check_model(self, name: Any) -> None:
        """Raises Refused for another model's name where that is strict; else it is logged, and this model answers."""
        if not isinstance(name, str | None):
            raise Refused(f"model must be a string; got {quoted(name, json=True)}; pass {quoted(self.settings.name)}.", field="model")
        if name and name != self.settings.name and self.adapter(name) is None:
            if self.settings.strict:
                raise self.no_such_model(name)
            self.notice(f"model {quoted(name)} is asked for; {self.settings.name} answers")

    def adapter(self, name: str | None) -> str | None:
        """The adapter that a model's name means, which is attached now; None where it means the model without any."""
        return name if name and name != self.settings.name and self.llm is not None and name in self.llm.adapters else None

    def called(self, name: str | None) -> str:
        """What the model is called in an answer: as its client calls it, if that is no more than a name."""
        return name if name and len(name) <= NAME_MOST else self.settings.name

    def no_such_model(self, name: str) -> Refused:
        there = " or ".join(map(quoted, (self.settings.name, *(() if self.llm is None else self.llm.adapters))))
        text = f"model must be one that is served here; got {quoted(name)}; pass {there}."
        return Refused(text, "model_not_found", "model", status=404)

    def notice(self, what: str) -> None:
        """Logs something, the first time that it happens."""
        if what not in self._noticed and len(self._noticed) < _MOST_NOTICED:
            self._noticed.add(what)
            _log.warning("%s", what)

    async def unless_ended(self, receive: Receive, work: Coroutine[Any, Any, T]) -> T:
        """What comes of the work, which is cancelled where the client is gone, or time is up.

        Raises:
            Gone: the client is.
            Refused: the server stops.
        """
        task, gone, cut = (asyncio.ensure_future(one) for one in (work, _gone(receive), self.cut.wait()))
        try:
            await asyncio.wait({task, gone, cut}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise Gone
            raise stopping()
        finally:
            for one in (task, gone, cut):
                one.cancel()
            await asyncio.gather(task, gone, cut, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    """Returns once the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
