"""Which implementation of an op runs. A named one runs or raises; `None` takes the best that covers the call."""

from collections.abc import Callable, Mapping
from typing import Literal

Implementation = Literal["xla", "mosaic"] | None


def select(op: str, implementation: Implementation, available: Mapping[str, Callable]) -> Callable:
    """The function that computes `op`.

    Args:
      op: the op's name, for the message.
      implementation: a name, or None for the first of `available`.
      available: implementations by name, best first.

    Raises:
      ValueError: the name is none that any op could have.
      NotImplementedError: the op has no implementation of that name.
    """
    if implementation is None:
        return next(iter(available.values()))
    if implementation not in ("xla", "mosaic"):
        raise ValueError(f"implementation must be None, 'xla' or 'mosaic'; got {implementation!r}.")
    if implementation not in available:
        have = ", ".join(map(repr, available))
        raise NotImplementedError(f"{op} has no {implementation!r} implementation; pass None or one of {have}.")
    return available[implementation]
