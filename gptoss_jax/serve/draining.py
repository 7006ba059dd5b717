"""From start to end of a server: it listens, its model comes, signals end it: what runs gets some seconds, nothing more is begun.

A second signal ends the process at once.
"""

import asyncio
from collections.abc import Callable
import logging
import os
import signal
import socket
import threading
from typing import Any

from gptoss_jax.serve.app import app
from gptoss_jax.serve.connections.listening import server
from gptoss_jax.serve.service import Service
from gptoss_jax.serve.settings import Settings

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_CUT_SECONDS = 2  # what the cut streams get to say so


async def serve(
    settings: Settings, listening: socket.socket, make: Callable[[], Any], ready: Callable[[], None], *, drain_seconds: float
) -> None:
    """Serves until a signal comes.

    Args:
        make: makes the model, in a thread; meanwhile everyone is told to come again.
        ready: called once it is there.

    Raises:
        Exception: what `make` raises.
    """
    service, loop, ending = Service(settings), asyncio.get_running_loop(), asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, _asked, ending, number)
    serving = server(app(service))
    running = asyncio.ensure_future(serving.serve([listening]))
    made: asyncio.Future[Any] = loop.create_future()
    threading.Thread(target=_make, args=(make, made, loop), name="gptoss_jax load", daemon=True).start()
    end = asyncio.ensure_future(ending.wait())
    try:
        await asyncio.wait({made, end, running}, return_when=asyncio.FIRST_COMPLETED)
        if made.done():
            service.begin(made.result())
            ready()
            await asyncio.wait({end, running}, return_when=asyncio.FIRST_COMPLETED)
        await _drain(service, drain_seconds)
    finally:
        end.cancel()
        serving.should_exit = True
        await running


async def _drain(service: Service, seconds: float) -> None:
    """Waits for what runs, and then no longer."""
    service.gate.closed = True
    if service.gate.answers:
        _log.info("stopping: %d answers are under way and get %g seconds", service.gate.answers, seconds)
    if not await _empty(service, seconds):
        _log.warning("stopping: %d answers are cut", service.gate.answers)
        service.cut.set()
        await _empty(service, _CUT_SECONDS)


async def _empty(service: Service, seconds: float) -> bool:
    """Whether nothing runs within so many seconds."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while service.gate.answers and loop.time() < until:
        await asyncio.sleep(0.02)
    return not service.gate.answers


def _asked(ending: asyncio.Event, number: int) -> None:
    if ending.is_set():
        os._exit(128 + number)
    _log.info("stopping (%s); once more, and it is at once", signal.Signals(number).name)
    ending.set()


def _make(make: Callable[[], Any], made: "asyncio.Future[Any]", loop: asyncio.AbstractEventLoop) -> None:
    try:
        value, error = make(), None
    except BaseException as raised:
        value, error = None, raised

    def tell() -> None:
        if not made.done():
            made.set_result(value) if error is None else made.set_exception(error)

    try:
        loop.call_soon_threadsafe(tell)
    except RuntimeError:  # it has ended
        pass
