"""Requests whose answers say of which weights they are, and moments in which weights come."""

import contextlib
import threading
import time

from fake_programs import continuation
import jax
from mixed_requests import prompt

from gptoss_jax.engine.requests import Request
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.turns.completion import CompletionBuilder

SHARED = prompt(50, 77)


def sampling(i, **options):
    return Sampling(**{"seed": i, "max_tokens": 9 + 7 * i % 40, "ignore_eos": True} | options)


def requests(count, **options):
    """Prompts of which some begin alike."""
    return [Request((SHARED[: i * 13 % 51] if i % 2 else []) + prompt(3 + i, i), sampling(i), **options) for i in range(count)]


def wanted(request, weights):
    return continuation(weights, request.prompt, request.sampling.seed, request.sampling.max_tokens)


def check(asked, builders):
    """Each answer is that of the weights which it says it is of; returns the versions."""
    found = [builders[request].result() for request in asked]
    for request, one in zip(asked, found, strict=True):
        assert one.finish_reason == "length" and list(one.tokens) == wanted(request, one.weights_version)
    return [one.weights_version for one in found]


def run(engine, asked, at=(), calls=()):
    """Answers, with calls made in this thread after so many pieces each."""
    builders, calls = {request: CompletionBuilder(request, None) for request in asked}, dict(zip(at, calls, strict=True))
    for i, piece in enumerate(engine.run(asked)):
        builders[piece.request].add(piece)
        if i in calls:
            calls.pop(i)()
    return builders


@contextlib.contextmanager
def in_the_middle(engine, call):
    """A block while a call in another thread stands still in its first draw; it is done behind the block."""
    programs, thread = engine.programs, threading.Thread(target=call)
    programs.going.clear()
    thread.start()
    assert programs.stands.wait(60)
    yield
    programs.going.set()
    thread.join(60)
    assert not thread.is_alive()


def arrived(engine, orders=1):
    """Waits until so many orders lie before an engine that stands still."""
    until = time.monotonic() + 60
    while engine._thread._inbox.qsize() < orders:
        assert time.monotonic() < until
        time.sleep(0.001)


class compilations(list):
    """Names of what was compiled in a block."""

    def __enter__(self):
        self._listener = lambda name, *_, **__: self.append(name) if "compile" in name else None
        jax.monitoring.register_event_duration_secs_listener(self._listener)
        return self

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._listener)
