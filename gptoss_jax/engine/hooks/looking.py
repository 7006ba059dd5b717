"""The hook of a request on its way: which programs it runs in, what its rows are given, what of the inside has been told. No jax."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gptoss_jax.engine.hooks.kinds import LAST_ONLY, Inside, dtype_of, touches

Kept = dict[str, tuple[int, np.ndarray]]
"""What is kept of sites: from which position on, and the values [n, ...]."""


def reads(inside: Inside, prompt: int) -> bool:
    """Whether a hook has a say where a prompt of so many tokens is read: all of it but its last token, which the first step takes."""
    return _changes(inside, prompt) or _keeps(inside, prompt)


def _changes(inside: Inside, prompt: int) -> bool:
    steps = zip(inside.spans(prompt).tolist(), inside.kind.steps, strict=True)
    return any(touches(tuple(span), 0, prompt - 1) and not set(step.names) <= set(LAST_ONLY) for span, step in steps)


def _keeps(inside: Inside, prompt: int) -> bool:
    return any(touches(span, 0, prompt - 1) for span in inside.ranges(prompt).values())


class Looking:
    """A live request's hook.

    Args:
      inside: the hook, as the engine's model has it.
      programs: of its kind, compiled.
      prompt: tokens of the prompt.

    Attributes:
      reads: whether the prompt is read by those programs too; otherwise by the plain ones.
      salt: what the prompt's keys and values depend on beside its tokens.
      written: whether what is kept goes anywhere but into the result.
      shares: whether kept prefixes may stand for parts of the prompt, and its own pages for others' parts. What is kept of the inside has
        to be computed.
    """

    def __init__(self, inside: Inside, programs: Any, prompt: int):
        self.inside, self.programs = inside, programs
        self.spans, self.ranges = inside.spans(prompt), inside.ranges(prompt)
        self.reads, self.shares = reads(inside, prompt), not _keeps(inside, prompt)
        self.salt = b"hook %d " % programs.serial + inside.digest(prompt) if _changes(inside, prompt) else b""
        self.written = inside.written
        self.forget()

    def forget(self) -> None:
        """Nothing counts as told."""
        self._told, self._begun = 0, False  # the position up to which all has been told, and whether something was

    def take(self, start: int, values: Mapping[str, np.ndarray]) -> Kept | None:
        """What is new of values [n, ...] at the positions from `start` on: those that were told before a preemption are not.

        The first time there is something of every site, if only of no token.
        """
        count = len(next(iter(values.values()))) if values else 0
        first, end = max(start, self._told), start + count
        self._told = max(self._told, end)
        found, all_names, self._begun = {}, not self._begun, True
        for name, (begin, until) in self.ranges.items():
            a = max(first, begin)
            b = max(a, min(end, until))
            if a < b or all_names:
                site, _ = self.inside.kept[name]
                found[name] = (a, values[site][a - start : b - start].copy())  # the whole of a dispatch is let go
        return found or None


def given(rows: Mapping[int, Looking], count: int) -> tuple[np.ndarray, tuple[np.ndarray | None, ...]]:
    """What `count` rows are given, of which those that are not named have no hook: `device.hooked.Given`'s arrays.

    Args:
      rows: of one kind, at least one.
    """
    kind = next(iter(rows.values())).inside.kind
    spans = np.zeros((count, len(kind.steps), 2), np.int32)
    new: Sequence[np.ndarray | None] = [None if step.shape is None else np.zeros((count, *step.shape), _dtype(step)) for step in kind.steps]
    for row, looking in rows.items():
        spans[row] = looking.spans
        for to, values in zip(new, looking.inside.data, strict=True):
            if to is not None:
                to[row] = values
    return spans, tuple(new)


def _dtype(step) -> np.dtype:
    return np.dtype("int32" if all(dtype_of(name).kind == "i" for name in step.names) else "float32")
