"""The server over an LLM of ours, for clients: in a thread, on a free port of this machine."""

from collections.abc import Callable, Iterator
import contextlib
import socket
import threading
import time

import httpx
from openai_wire import Wire
from replaying import Heard, replay
from starlette.types import ASGIApp

from gptoss_jax import LLM
from gptoss_jax.serve.app import app
from gptoss_jax.serve.connections.listening import server as made
from gptoss_jax.serve.service import Service
from gptoss_jax.serve.settings import Settings

_SECONDS = 60  # until it listens, and until it has ended


class Served:
    """A server that answers as it is told to.

    Attributes:
      url: of OpenAI's endpoints, with "/v1".
      says: the turn that answers a conversation whose last message has a text, see `replaying.turn`.
      otherwise: makes the turn of a conversation that `says` knows nothing of; None where the model is to answer by itself.
      heard: the conversations that came, the last ones of them.
    """

    def __init__(self, llm: LLM):
        self.llm, self.url = llm, ""
        self.says: dict[str, str] = {}
        self.otherwise: Callable[[list[Heard]], str | None] = lambda messages: None
        self.heard: list[list[Heard]] = []
        replay(llm, self._script)

    def _script(self, messages: list[Heard]) -> str | None:
        self.heard = [*self.heard[-20:], messages]
        said = self.says.get(messages[-1].text)
        return self.otherwise(messages) if said is None else said

    def idle(self) -> bool:
        """Whether within a minute all that was asked for has ended, and holds nothing any more."""
        return self.llm.engine.wait_idle(60)

    @contextlib.contextmanager
    def another(self, **settings) -> Iterator[str]:
        """The address of a server over the same LLM with other settings; until the `with` ends."""
        with listening(app(Service(Settings(**{"name": "nano", **settings}), self.llm))) as address:
            yield f"{address}/v1"

    @contextlib.contextmanager
    def watched(self) -> Iterator[tuple[httpx.Client, Wire]]:
        """A client of httpx for a client of the protocol, all that goes through which is looked at in the end."""
        wire = Wire()
        with httpx.Client(transport=wire, timeout=120) as client:
            yield client, wire
        wire.check()


@contextlib.contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """Where an app listens; until the `with` ends."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        server = made(app)
        thread = threading.Thread(target=server.run, args=([door],), name="server of a test")
        thread.start()
        try:
            until = time.monotonic() + _SECONDS
            while not server.started and thread.is_alive() and time.monotonic() < until:
                time.sleep(0.01)
            assert server.started, "the server did not come up"
            yield f"http://127.0.0.1:{door.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(_SECONDS)
            assert not thread.is_alive(), "the server did not end"


@contextlib.contextmanager
def serve(llm: LLM, **settings) -> Iterator[Served]:
    """A server over an LLM, which is compiled before."""
    llm.prepare()
    served = Served(llm)
    with served.another(**settings) as served.url:
        yield served
