"""Whose turn it is: programs of several kinds of hooks, and the plain ones, which cannot run at once."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


class Turns:
    """Takes those first that had a turn longest ago."""

    def __init__(self):
        self._had: dict[Any, int] = {}
        self._count = 0

    def sorted(self, things: Iterable[T], whose: Callable[[T], Any]) -> list[T]:
        """The things by whose turn it is, in their order where they have the same one's."""
        things = list(things)
        there = {whose(thing) for thing in things}
        self._had = {one: number for one, number in self._had.items() if one in there}  # it holds on to nobody who is gone
        return sorted(things, key=lambda thing: self._had.get(whose(thing), 0)) if len(there) > 1 else things

    def had(self, one: Any) -> None:
        """It was somebody's turn."""
        self._count += 1
        self._had[one] = self._count
