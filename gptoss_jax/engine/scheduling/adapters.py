"""Which adapter has which place among those that lie side by side on the device, and which requests hold on to it. No arrays.

The engine's thread alone attaches, detaches and lends; whoever else looks sees what was attached at one moment. A request keeps what it
began with: a place is free once nothing is attached there and the last request that began with it has ended.
"""

from collections import Counter
from collections.abc import Callable
import itertools
import types

from gptoss_jax.engine.scheduling.live import Attached, Live
from gptoss_jax.quoting import quoted

MOST_NAME = 256  # characters


class Adapters:
    """The places of an engine.

    Args:
      places: how many there are.

    Attributes:
      attached: by name; another mapping after each change.
    """

    def __init__(self, places: int):
        self.places, self.attached = places, types.MappingProxyType({})
        self._users: Counter[int] = Counter()  # requests by the place that they hold
        self._numbers = itertools.count()

    def check(self, name: object) -> None:
        """Raises ValueError where no adapter of that name is attached; None is no name, and means none."""
        if name is not None and not (isinstance(name, str) and name in self.attached):
            self._refuse(name)

    def _refuse(self, name: object) -> None:
        there = ", ".join(map(quoted, self.attached))
        remedy = f"pass one of {there}, or attach it first" if there else "there is none: attach it first"
        if not self.places:
            remedy = "this LLM has no room for any: make it with adapters=1 or more"
        raise ValueError(f"adapter must be the name of one that is attached; got {quoted(name)}; {remedy}.")

    def _free(self, name: str) -> int:
        """A place for an adapter of that name: its own where there is no other and none holds it. Raises ValueError if all are taken."""
        there = {one.place for one in self.attached.values()}
        for place in range(self.places):
            if place not in there and not self._users[place]:
                return place
        own = self.attached.get(name)
        if own is not None and not self._users[own.place]:
            return own.place
        if not self.places:
            raise ValueError("an adapter must have room; this LLM has none for any; make it with adapters=1 or more.")
        names, ending = ", ".join(map(quoted, self.attached)) or "none", self.places - len(there)
        held = f", and {ending} that were changed or detached, by requests that began with them" if ending else ""
        wait = "wait until those have ended" if ending else "detach one" if own is None else "wait until the requests with it have ended"
        raise ValueError(
            f"an adapter must have a place; all {self.places} are taken: attached are {names}{held}; {wait}, or make the LLM with more."
        )

    def attach(self, name: str, rank: int, targets: tuple[str, ...], write: Callable[[int], None]) -> None:
        """Attaches an adapter, in place of an earlier one of its name.

        Args:
          write: puts its terms into the place that it is told, which nobody looks at meanwhile.

        Raises:
          ValueError: no place is free; nothing has changed then.
        """
        place = self._free(name)
        if name in self.attached and self.attached[name].place == place:
            self.detach(name)  # where writing fails there must not be a half of each
        write(place)
        self.attached = types.MappingProxyType({**self.attached, name: Attached(name, rank, targets, place, next(self._numbers))})

    def detach(self, name: str) -> None:
        """No request begins with it any more. Raises ValueError where there is none of that name."""
        if name is None or not isinstance(name, str) or name not in self.attached:
            self._refuse(name)
        self.attached = types.MappingProxyType({other: one for other, one in self.attached.items() if other != name})

    def lend(self, live: Live) -> str | None:
        """Gives a request that is begun the adapter that it asks for, which it keeps until `give_back`; why it has to end, or None."""
        name = live.request.adapter
        if name is None or live.adapter is not None:
            return None
        live.adapter = self.attached.get(name)
        if live.adapter is None:
            return f"adapter {quoted(name)} was detached before this request was begun; attach it again, and ask again."
        self._users[live.adapter.place] += 1
        return None

    def give_back(self, live: Live) -> None:
        """A request has ended."""
        if live.adapter is not None:
            self._users[live.adapter.place] -= 1


def check_name(name: object) -> None:
    """Raises ValueError where an adapter cannot be called so."""
    if not isinstance(name, str) or not name.strip() or len(name) > MOST_NAME or not name.isprintable():
        raise ValueError(
            f"an adapter's name must be a text that can be printed, {MOST_NAME} characters at most; got {quoted(name)}; pass a short one."
        )
