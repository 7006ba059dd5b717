"""What was made of a text before, so that equal texts cost nothing; bounded by number and by size."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
import threading


class Kept[T]:
    """The newest of what was made, within a number of entries and of characters that they were made from. For any threads."""

    def __init__(self, entries: int, characters: int):
        self._entries, self._characters = entries, characters
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()

    def get(self, key: Hashable, characters: int, make: Callable[[], T]) -> T:
        """What is kept for key; what make returns, if nothing is. Two threads may make one thing twice."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        made = make()
        with self._lock:
            self._kept[key] = made, characters
            while len(self._kept) > self._entries or self._size() > self._characters and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return made

    def _size(self) -> int:
        return sum(size for _, size in self._kept.values())
