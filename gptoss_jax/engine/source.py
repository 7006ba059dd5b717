"""The requests of a call that come out of an iterable, handed over to the engine as they are taken up."""

from collections.abc import Callable, Iterator
import time

from gptoss_jax.engine.readers import Outlet, Reader
from gptoss_jax.engine.requests import Request
from gptoss_jax.engine.scheduling.live import Live

_GATHERED_SECONDS = 0.02  # how long requests out of an iterable are gathered before they are handed over


class Source:
    """The requests of one call, handed over as they are taken up.

    Args:
      take: checks one and makes it what the engine's thread knows; raises where it is refused.
      most: requests that may wait.
      whole: hands over as many as may wait at once, however long it takes them to come.

    Attributes:
      marked: the last that came was None.
      error: what the iterable raised, or None. It gives no more then.
    """

    def __init__(self, requests: Iterator[Request], take: Callable[[Request, Outlet], Live], most: int, whole: bool):
        self._requests, self._take, self._most, self._whole = requests, take, most, whole
        self._exhausted = self.marked = False
        self.error: Exception | None = None

    def pull(self, reader: Reader) -> None:
        """Asks for more requests where few of those before still wait."""
        outlet, self.marked = reader.outlet, False
        while not self._exhausted:
            outlet.hungry = self._most  # before it is looked at how many wait: who is taken up meanwhile wakes the reader
            if outlet.waiting >= self._most:
                break
            if lives := self._gather(outlet, self._most - outlet.waiting):
                reader.ask(lives)
            if self.marked or reader.ready:
                break

    def _gather(self, outlet: Outlet, most: int) -> list[Live]:
        """The next requests, fewer where they are slow to come."""
        lives, until = [], time.monotonic() + _GATHERED_SECONDS
        while len(lives) < most and (self._whole or not lives or time.monotonic() < until):
            try:
                request = next(self._requests, self)
                self._exhausted, self.marked = request is self, request is None
                if self._exhausted or self.marked:
                    break
                live = self._take(request, outlet)
            except Exception as error:
                self._exhausted, self.error = True, error
                break
            lives.append(live)
        return lives
