"""Connections that wait for nothing: a head that never ends, a body that never comes, a client that does not read."""

import asyncio
import socket
import threading

import pytest
from server_process import until

from gptoss_jax.serve.app import app
from gptoss_jax.serve.connections import listening
from gptoss_jax.serve.connections.listening import address_of, is_public, listen, server
from gptoss_jax.serve.service import Service
from gptoss_jax.serve.settings import Settings

pytestmark = pytest.mark.thorough


@pytest.fixture
def at(monkeypatch):
    """A server in a thread, whose patience is short; its port."""
    monkeypatch.setattr(listening, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(listening, "STALLED_SECONDS", 0.3)
    found = listen("127.0.0.1", 0)
    service = Service(Settings("nano", body_seconds=0.3))
    service.ready = lambda: None
    serving = server(app(service))
    thread = threading.Thread(target=lambda: asyncio.run(serving.serve([found])))
    port = found.getsockname()[1]
    thread.start()
    assert until(lambda: serving.started)
    yield port
    serving.should_exit = True
    thread.join(30)
    assert not thread.is_alive() and service.gate.answers == service.gate.bytes == 0


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the other end hangs up."""
    out = b""
    try:
        while part := connection.recv(1 << 16):
            out += part
    except ConnectionResetError:
        pass
    return out


@pytest.mark.parametrize("head", [b"", b"GET /health HTTP/1.1\r\nHost: ", b"POST / HTTP/1.1\r\n"])
def test_a_head_that_does_not_end_is_not_waited_for(at, head):
    with connected(at) as connection:
        connection.sendall(head)
        assert rest(connection) == b""


def test_nor_is_the_next_one_of_a_connection(at):
    with connected(at) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /hea")
        assert b"HTTP/1.1" not in rest(connection)


def test_a_body_that_does_not_come_is_answered(at):
    with connected(at) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
        rest(connection)  # which ends: what is left of the body is not waited for either


def test_what_is_no_http_is_said_so(at):
    with connected(at) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert rest(connection).startswith(b"HTTP/1.1 400 ")


def test_addresses_say_who_may_come():
    with listen("127.0.0.1", 0) as one:
        assert not is_public(one) and address_of(one) == f"http://127.0.0.1:{one.getsockname()[1]}"
        with pytest.raises(ValueError, match="--port"):
            listen("127.0.0.1", one.getsockname()[1])
    with listen("0.0.0.0", 0) as every:
        assert is_public(every) and address_of(every).startswith("http://127.0.0.1:")
    with pytest.raises(ValueError, match="--host must be"):
        listen("no such host.invalid", 0)
