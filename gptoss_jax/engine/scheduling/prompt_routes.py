"""Experts that a prompt's tokens are routed to, as they become known on the host. No arrays of the device."""

import numpy as np

from gptoss_jax.engine.scheduling.pages import Block


class PromptRoutes:
    """The experts of a prompt's tokens first ... last - 1, [last - first, L, A], as far as they are known and not yet told."""

    __slots__ = ("_first", "_kept", "_last", "_known")

    def __init__(self, first: int, last: int):
        self._first, self._last = first, last
        self._known: np.ndarray | None = None
        self._kept: list[tuple[int, Block]] = []  # blocks of prefixes by their first tokens: theirs are known once something is drawn

    def note(self, start: int, experts: np.ndarray) -> None:
        """Writes down those of the tokens from `start` on, [n, L, A]."""
        begin, end = max(start, self._first), min(start + len(experts), self._last)
        if begin >= end:
            return
        if self._known is None:
            self._known = np.zeros((self._last - self._first, *experts.shape[1:]), experts.dtype)
        self._known[begin - self._first : end - self._first] = experts[begin - start : end - start]

    def share(self, start: int, block: Block) -> None:
        """The tokens from `start` on are those of a block that is kept."""
        self._kept.append((start, block))

    def forget(self) -> None:
        """The blocks may be lost from now on."""
        self._kept.clear()

    def take(self) -> np.ndarray | None:
        """All of them, of a request of which something has been drawn; they are told with that."""
        for start, block in self._kept:
            self.note(start, block.routes)
        self.forget()
        known, self._known = self._known, None
        return known
