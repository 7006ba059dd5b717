"""Which of the named cases a command line, or a caller, asks for."""

from collections.abc import Iterable, Sequence
import re
from typing import Protocol


class Named(Protocol):
    """What has an op and a name."""

    op: str
    name: str


def chosen[N: Named](every: Sequence[N], ops: Iterable[str], names: Iterable[str], what: str = "case") -> list[N]:
    """Those whose op begins with one of `ops` and whose name has one of `names`, or all where these are empty.

    A name is matched from the start of a word on: "20b, 1 token" is in "20b, 1 token", and not in "120b, 1 token".

    Raises:
      ValueError: none is left; `what` they are is named.
    """
    ops, names = tuple(ops), tuple(names)
    found = [c for c in every if (not ops or c.op.startswith(ops)) and (not names or any(_has(c.name, name) for name in names))]
    if not found:
        raise ValueError(f"no {what} of {', '.join(sorted({c.op for c in every}))} is called so: ops {ops}, names {names}.")
    return found


def _has(name: str, part: str) -> bool:
    start = r"(?<!\w)" if part[:1].isalnum() else ""
    return bool(part) and re.search(start + re.escape(part), name) is not None
