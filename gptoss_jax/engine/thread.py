"""The one thread that steps an engine: orders out of an inbox, rounds, pieces into the boxes of those who read.

It sleeps while there is nothing to do, and ends with its engine or with the interpreter. A process that was forked has none.
"""

import atexit
from collections.abc import Callable
import functools
import os
from queue import Empty, SimpleQueue
import threading
import weakref

from gptoss_jax.engine.readers import Change, Job, Outlet, deliver
from gptoss_jax.engine.scheduling.live import Live
from gptoss_jax.engine.stepping.rounds import Rounds

Order = Callable[[Rounds], None]
_EXIT_SECONDS = 30  # how long the end of the interpreter waits for a round


class EngineThread:
    """Steps an engine's rounds.

    Args:
      rounds: of the engine; only the thread touches them once something was asked for.
      freely: goes on by itself while there is something to do. Otherwise a round is made where a reader demands one: so all processes
        that share a mesh make the same rounds with the same requests.
    """

    def __init__(self, rounds: Rounds, *, freely: bool):
        self._rounds, self._freely = rounds, freely
        self._inbox: SimpleQueue[Order | None] = SimpleQueue()
        self._process = os.getpid()
        self._thread: threading.Thread | None = None
        self._starting, self._owner = threading.Lock(), threading.Lock()
        self.ending = False
        weakref.finalize(self, self._inbox.put, None).atexit = False

    def ask(self, lives: list[Live]) -> None:
        """Has requests done; their pieces go to their outlets."""
        self._tell(lambda rounds: rounds.add(lives))

    def do(self, job: Job) -> None:
        """Has a job done. Raises RuntimeError as `check_caller`."""
        self.check_caller()
        self._tell(lambda rounds: rounds.add_job(job))

    def change(self, change: Change) -> None:
        """Has a change made. Raises RuntimeError as `check_caller`."""
        self.check_caller()
        self._tell(functools.partial(_change if self._freely else _change_now, change=change))

    def demand(self, outlet: Outlet) -> None:
        """Has a round made for a reader who waits, where the thread does not go on by itself."""
        if not self._freely:
            self._tell(functools.partial(_step_for, outlet=outlet))

    def look(self) -> None:
        """Has the thread look around, where it rests until more is read."""
        self._inbox.put(_look)

    def leave(self, outlet: Outlet) -> None:
        """Ends the requests of a reader who is gone. Never raises and takes no lock: it may be called where garbage is collected."""
        self._inbox.put(lambda rounds: rounds.close(outlet))

    def wait_idle(self, seconds: float) -> bool:
        """Whether all that was asked for until now is done within so many seconds."""
        idle = threading.Event()
        self._tell(lambda rounds: rounds.when_idle(idle.set))
        return idle.wait(seconds)

    def begin(self) -> None:
        """Sees to it that the thread is there. Raises RuntimeError in a forked process, and where no thread can be started."""
        self.check_process()
        if not self.ending and (self._thread is None or not self._thread.is_alive()):  # where the program ends nothing more is begun
            self._start()

    def check_caller(self) -> None:
        """Raises RuntimeError where a caller would wait for ever: in the thread itself, and at the program's end, which daemons share."""
        here = threading.current_thread()
        if here is self._thread or (self.ending and not here.daemon):
            raise RuntimeError(
                "an LLM is asked and changed from a thread of its caller's, while the program runs; this is the engine's own thread, in "
                "which forms are asked, or the program ends; do it elsewhere, or before."
            )

    def check_process(self) -> None:
        """Raises RuntimeError in a forked process."""
        if os.getpid() != self._process:
            raise RuntimeError(
                f"an LLM belongs to the process that made it, here {self._process}; this one, {os.getpid()}, was forked from it, which JAX "
                'does not survive; start processes with multiprocessing.get_context("spawn"), and make an LLM there.'
            )

    def end(self) -> None:
        """Ends the thread, and with an error what is open; waits for it. For the end of the interpreter."""
        self.ending = True
        self._inbox.put(None)
        if self._thread is not None and self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_EXIT_SECONDS)

    def _tell(self, order: Order) -> None:
        self.begin()
        self._inbox.put(order)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                arguments = (self._inbox, self._owner, weakref.ref(self))
                thread = threading.Thread(target=_work, args=arguments, name="gptoss_jax engine", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    raise RuntimeError(
                        f"an engine's first call must come before the main thread has ended; Python starts no thread now ({error}); "
                        "let the main thread join the others."
                    ) from error

    def belongs_to(self, thread: threading.Thread) -> None:
        """The thread itself says that it serves from now on: whoever started it may have been interrupted."""
        self._thread = thread
        _THREADS.add(self)

    def serve(self, order: Order) -> None:
        """Carries out an order, those behind it, and whatever there is to do."""
        rounds, rest = self._rounds, 0.0
        todo: Order | None = order
        while not self.ending and (todo is not None or (self._freely and rest is not None)):
            while todo is not None:
                rounds.fenced(todo)
                todo = self._next(0.0)
            if self._freely and not rounds.idle:
                rounds.step()
            deliver(rounds.take_out(), rounds.close)
            rest = rounds.rest
            todo = self._next(rest if self._freely and rest is not None else 0.0)
        if self.ending:
            rounds.fail("the program ends; what came so far is here.")
            deliver(rounds.take_out(), rounds.close)

    def _next(self, seconds: float) -> Order | None:
        try:
            return self._inbox.get(timeout=seconds) if seconds else self._inbox.get_nowait()
        except Empty:
            return None


_THREADS: "weakref.WeakSet[EngineThread]" = weakref.WeakSet()


def _look(rounds: Rounds) -> None:
    """Nothing to be done but to make a round."""


def _step_for(rounds: Rounds, outlet: Outlet) -> None:
    rounds.step()
    rounds.nothing_for(outlet)


def _change(rounds: Rounds, change: Change) -> None:
    rounds.add_change(change)


def _change_now(rounds: Rounds, change: Change) -> None:
    """In step with the other processes: with whatever rounds it takes."""
    rounds.add_change(change)
    while not change.over:
        rounds.step()


def _work(inbox: SimpleQueue, owner: threading.Lock, reference: "weakref.ref[EngineThread]") -> None:
    """The thread; it holds on to nothing while it sleeps."""
    if not owner.acquire(blocking=False):  # there is one already
        return
    try:
        if (thread := reference()) is not None:
            thread.belongs_to(threading.current_thread())
            del thread
        while (order := inbox.get()) is not None and (thread := reference()) is not None:
            thread.serve(order)
            if thread.ending:
                return
            del order, thread
    finally:
        owner.release()


def _end_all() -> None:
    for thread in list(_THREADS):
        thread.end()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_THREADS.clear)
