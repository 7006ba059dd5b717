"""Connections: sockets, and a protocol of uvicorn's that waits for nobody for ever.

Limits beside those of bodies: a request's head must come within so many seconds and bytes; what is left of a body that was refused is
thrown away for so many seconds; a client that reads nothing for so long is hung up on.
"""

import asyncio
import contextlib
import ipaddress
import socket
from typing import Any

import h11
from starlette.types import ASGIApp
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gptoss_jax import strict_json
from gptoss_jax.openai import errors
from gptoss_jax.openai.errors import Refused

HEAD_SECONDS = 20
HEAD_BYTES = 64_000
STALLED_SECONDS = 60
UNREAD_BYTES = 64_000  # of an answer, here and in the kernel each: what a client does not read is drawn no further ahead
KEPT_SECONDS = 75  # of a connection between two requests
_WAITING = 2048  # connections


class Protocol(H11Protocol):
    """One connection."""

    _patience: asyncio.TimerHandle | None = None  # runs while a head, or the rest of a refused body, is awaited
    _stalled: asyncio.TimerHandle | None = None  # runs while the client does not read

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=UNREAD_BYTES)
        if (peer := transport.get_extra_info("socket")) is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._patience, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None and not self.transport.is_closing():
            self._stalled.cancel()
            self._stalled = None

    def shutdown(self) -> None:
        super().shutdown()
        self._hang_up()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._hang_up()

    def send_400_response(self, msg: str) -> None:
        """For what is no HTTP, or has too long a head."""
        refusal = Refused(f"a request must be HTTP/1.1 with a head of at most {HEAD_BYTES:,} bytes; this one is not.", "invalid_http")
        body = strict_json.dumps(errors.body_of(refusal))
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
            head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            self.transport.write(self.conn.send(head) + self.conn.send(h11.Data(data=body)) + self.conn.send(h11.EndOfMessage()))
        self.transport.close()
        self._hang_up()

    def _look(self) -> None:
        """Whether the client has something to send that is awaited."""
        between = self.cycle is None or self.cycle.response_complete
        begun = self.conn.their_state is not h11.IDLE or self.cycle is None or bool(self.conn.trailing_data[0])
        if not (between and begun):
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
        elif self._patience is None and not self.transport.is_closing():
            self._patience = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _hang_up(self) -> None:
        """What is being closed gets some time to be read."""
        if self.transport.is_closing() and self._stalled is None:
            self._stalled = self.loop.call_later(STALLED_SECONDS, self.transport.abort)


class Server(uvicorn.Server):
    """uvicorn's, whose signals are ours."""

    def capture_signals(self) -> Any:
        return contextlib.nullcontext()


def server(app: ASGIApp) -> Server:
    """What serves an app; `serve(sockets)` does."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEPT_SECONDS,
        timeout_graceful_shutdown=3,
        backlog=_WAITING,
        h11_max_incomplete_event_size=HEAD_BYTES,
    )
    return Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ValueError where that is not possible."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, number, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        listening = socket.socket(family, kind, number)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"--host must be an address of this machine; {host} is not ({error}); leave it out.") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_WAITING)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise ValueError(f"{host}, port {port} cannot be listened on ({error.strerror}); give another --port, or 0 for any.") from None
    return listening


def is_public(listening: socket.socket) -> bool:
    """Whether other machines may reach it."""
    return not ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def address_of(listening: socket.socket) -> str:
    """Its URL."""
    host, port = listening.getsockname()[:2]
    if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        host = "localhost" if listening.family == socket.AF_INET6 else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
