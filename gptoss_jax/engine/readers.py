"""How pieces come from the engine's thread to those who read them: a box for each call, filled once a round.

A caller never steps. It puts orders into the engine's inbox and reads its own box, in a thread or on an event loop; whatever happens to it
there (an interrupt, an exception, slowness) happens to nobody else. A reader that is left, or forgotten, takes its requests with it.
"""

import asyncio
from collections.abc import Callable, Generator
import functools
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from gptoss_jax.engine.requests import Piece

if TYPE_CHECKING:
    from gptoss_jax.engine.scheduling.live import Live


class Inbox(Protocol):
    """What a reader asks of the engine's thread; see `thread.EngineThread`."""

    def ask(self, lives: list["Live"]) -> None: ...
    def demand(self, outlet: "Outlet") -> None: ...
    def look(self) -> None: ...
    def leave(self, outlet: "Outlet") -> None: ...


class Outlet:
    """The thread's end of a call: where its pieces go, and how many of its requests wait.

    Args:
      put: takes the pieces of a round, in order.
      loop: of events, on which `put` is to be called; None to call it in the engine's thread.
    """

    def __init__(self, put: Callable[[list[Piece]], None], loop: asyncio.AbstractEventLoop | None = None):
        self.put, self.loop = put, loop
        self.lives: set[Live] = set()  # the engine's thread alone looks at these
        self.asked = self.left = 0  # requests that the reader has asked for; those of them that wait no more, which the thread counts
        self.hungry = 0  # the reader asks for more where fewer wait
        self.given = self.taken = 0  # tokens: those that the engine's thread has told, and those of them that the reader took
        self.held = False  # something stands still until the reader takes more, of which the thread wants to hear

    @property
    def waiting(self) -> int:
        """Requests that nobody has taken up yet."""
        return self.asked - self.left

    @property
    def unread(self) -> int:
        """Tokens that nobody has taken yet."""
        return self.given - self.taken


class _Reader:
    """What both kinds of readers are.

    Attributes:
      outlet: the thread's end.
      open: requests whose last piece has not been read.
    """

    outlet: Outlet
    open = 0

    def __init__(self, thread: Inbox):
        self._thread = thread

    def ask(self, lives: list["Live"]) -> None:
        """Has requests done."""
        self.outlet.asked += len(lives)
        self.open += len(lives)
        self._thread.ask(lives)

    def close(self) -> None:
        """Ends what is open; may be called at any time, also twice."""
        if self.open:
            self.open = 0
            self._thread.leave(self.outlet)

    def __del__(self):
        self.close()

    def _taken(self, pieces: list[Piece]) -> list[Piece]:
        self.open -= sum(piece.finish_reason is not None for piece in pieces)
        self.outlet.taken += sum(len(piece.tokens) for piece in pieces)
        if self.outlet.held:  # after the sum: the thread says so first, and then looks at the sum
            self._thread.look()
        return pieces


class Reader(_Reader):
    """A call that reads in its own thread."""

    def __init__(self, thread: Inbox):
        super().__init__(thread)
        self._box: SimpleQueue[list[Piece]] = SimpleQueue()
        self.outlet = Outlet(self._box.put)

    @property
    def ready(self) -> bool:
        """Whether `take` need not wait."""
        return not self._box.empty()

    def take(self) -> list[Piece]:
        """The next pieces, once there are some; none where there may be room for more requests."""
        self._thread.demand(self.outlet)
        return self._taken(self._box.get())


class AsyncReader(_Reader):
    """A call that reads on the running event loop."""

    def __init__(self, thread: Inbox):
        super().__init__(thread)
        self._box: asyncio.Queue[list[Piece]] = asyncio.Queue()
        self.outlet = Outlet(self._box.put_nowait, asyncio.get_running_loop())

    async def take(self) -> list[Piece]:
        """As `Reader.take`."""
        return self._taken(await self._box.get())


class _Work:
    """What somebody asks of the engine's thread that is no request, and waits for.

    Attributes:
      left: who asked waits no more.
    """

    def __init__(self):
        self._box: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self.left = False

    def result(self) -> Any:
        """What comes of it, once it has; who is interrupted here leaves it."""
        try:
            value, error = self._box.get()
        except BaseException:
            self.left = True
            raise
        if error is not None:
            raise error
        return value


class Job(_Work):
    """Work of many dispatches: one at a time, between those of the requests.

    Args:
      dispatches: yields after each dispatch, and returns what comes of it all.
    """

    def __init__(self, dispatches: Generator[None, None, Any]):
        super().__init__()
        self._dispatches = dispatches

    def advance(self) -> bool:
        """The next dispatch; whether it was the last. What it raises is its caller's."""
        try:
            if not self.left:
                next(self._dispatches)
                return False
            self._dispatches.close()
        except StopIteration as stop:
            self._box.put((stop.value, None))
        except BaseException as error:
            self._box.put((None, error))
        return True


class Change(_Work):
    """Something that is done to an engine where nothing that was begun is on its way; what was not begun yet waits meanwhile.

    Args:
      do: what, of the engine's `rounds.Rounds`. Its result is the change's, and what it raises is raised by who waits for it.
      restart: requests of which nobody has seen anything begin anew behind it, instead of ending before it.
      last: no request comes behind it: it waits until all that have come are done, and others are refused from now on.
    """

    def __init__(self, do: Callable[[Any], Any], *, restart: bool = False, last: bool = False):
        super().__init__()
        self._do, self.restart, self.last, self.over = do, restart, last, False

    def make(self, rounds: Any) -> None:
        """Does it, and lets go of what it holds on to."""
        do, self._do, self.over = self._do, None, True
        try:
            answer = (do(rounds), None)
        except BaseException as error:
            answer = (None, error)
        del do
        self._box.put(answer)


def deliver(out: dict[Outlet, list[Piece]], lost: Callable[[Outlet], None]) -> None:
    """Puts each reader's pieces where it reads, waking each event loop once.

    Args:
      lost: told of outlets whose event loop is no more.
    """
    loops: dict[asyncio.AbstractEventLoop, list[tuple[Outlet, list[Piece]]]] = {}
    for outlet, pieces in out.items():
        if outlet.loop is None:
            outlet.put(pieces)
        else:
            loops.setdefault(outlet.loop, []).append((outlet, pieces))
    for loop, parts in loops.items():
        try:
            loop.call_soon_threadsafe(functools.partial(_put_all, parts))
        except RuntimeError:  # it is closed
            for outlet, _ in parts:
                lost(outlet)


def _put_all(parts: list[tuple[Outlet, list[Piece]]]) -> None:
    for outlet, pieces in parts:
        outlet.put(pieces)
