"""What the hook of a request keeps of the inside, added up, or written where it is to go."""

from collections.abc import Mapping

import numpy as np

from gptoss_jax.engine.hooks.hook import Capturing, Hook, Sink


class Captured:
    """What one request's hook keeps.

    Args:
      hook: with captures.
    """

    def __init__(self, hook: Hook):
        self._hook = hook
        self._keys = {one: str(next(one.keys)) for one in hook.captures}  # in the order in which requests are begun
        self._sinks: dict[Capturing, Sink] = {}
        self._arrays: dict[str, list[np.ndarray]] = {}

    def add(self, new: Mapping[str, tuple[int, np.ndarray]], end: int) -> None:
        """Takes what comes next, up to a position. Raises what a sink raises."""
        for name, (start, array) in new.items():
            array = array[: max(0, end - start)]
            one = next(inside.kept[name][1] for inside in self._hook.found.values() if name in inside.kept)
            if one.to is None:
                self._arrays.setdefault(name, []).append(array)
            elif len(array):
                self._sink(one).write(name, start, array)

    def close(self) -> None:
        """The request has ended."""
        while self._sinks:
            _, sink = self._sinks.popitem()
            if callable(close := getattr(sink, "close", None)):
                close()

    def result(self) -> dict[str, np.ndarray]:
        """What came so far of what has no sink."""
        return {name: np.concatenate(arrays) for name, arrays in self._arrays.items()}

    def _sink(self, one: Capturing) -> Sink:
        if one not in self._sinks:
            self._sinks[one] = one.to if one.for_one else one.to.request(self._keys[one])
        return self._sinks[one]
