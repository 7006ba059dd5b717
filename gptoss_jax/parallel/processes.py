"""What several processes that run the same program must agree on. With one process everything here is the identity.

Processes of one mesh call the same functions in the same order; where one raises and the others go on, those wait for it
forever. So what may fail in one of them only is done `together`.
"""

from collections.abc import Iterator, Sequence
import contextlib
import hashlib

import jax
import numpy as np

_DIGEST = 16  # bytes


def is_first() -> bool:
    """Whether this process is the one that writes and prints for all."""
    return jax.process_index() == 0


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def broadcast(value: np.ndarray) -> np.ndarray:
    """Process 0's value, bit for bit, in every process; shape and dtype must be the same in all. Every process must call this."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    value = np.asarray(value)
    raw = np.frombuffer(value.tobytes(), np.uint8)  # as bytes, or JAX would make 32-bit numbers of 64-bit ones
    return np.asarray(multihost_utils.broadcast_one_to_all(raw)).view(value.dtype).reshape(value.shape)


def anywhere(flags: np.ndarray) -> np.ndarray:  # [n] bool
    """Which of the flags are set in some process. Every process must call this."""
    if jax.process_count() == 1:
        return flags
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(np.asarray(flags, np.uint8))).astype(bool).any(0)


def meet(what: str) -> None:
    """Returns when every process has come here, and said the same."""
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def together(doing: str, *names: str, alone: bool = False) -> Iterator[dict[str, str]]:
    """A block that all processes leave the same way: all go on, or all raise.

    Args:
        doing: what the block does, for the error: "load nano".
        names: keys of the dictionary that this gives, which the block fills with texts that must be the same in all processes.
        alone: this process does it without the others.

    Raises:
        ValueError: another process failed in the block, or their texts differ. What fails in this one is raised as it is.
    """
    facts: dict[str, str] = {}
    if alone or jax.process_count() == 1:
        yield facts
        return
    try:
        yield facts
    except Exception:
        _gather(None, names)
        raise
    _compare(_gather(facts, names), doing, names)


def _gather(facts: dict[str, str] | None, names: Sequence[str]) -> np.ndarray:  # [processes, 1 + names, _DIGEST] uint8
    """Of every process a row that says whether it failed, and a row for each name."""
    from jax.experimental import multihost_utils

    texts = ["failed", *("" for _ in names)] if facts is None else ["fine", *(facts[name] for name in names)]
    digests = [hashlib.blake2b(text.encode(), digest_size=_DIGEST).digest() for text in texts]
    own = np.frombuffer(b"".join(digests), np.uint8).reshape(len(texts), _DIGEST)
    return np.asarray(multihost_utils.process_allgather(own))


def _compare(digests: np.ndarray, doing: str, names: Sequence[str]) -> None:
    failed = [number for number, rows in enumerate(digests) if (rows[0] != digests[jax.process_index()][0]).any()]
    if failed:
        raise ValueError(
            f"every process must be able to {doing}; {_processes(failed)} could not, for a reason in its own error; correct that and "
            "start all processes again."
        )
    differences = []
    for number, rows in enumerate(digests):
        if other := [name for name, own, first in zip(names, rows[1:], digests[0][1:], strict=True) if (own != first).any()]:
            differences.append(f"process {number} has other {' and '.join(other)}")
    if differences:
        raise ValueError(
            f"every process must {doing} alike; of {len(digests)}, {', '.join(differences)} than process 0; give all of them the same "
            "files and arguments."
        )


def _processes(numbers: Sequence[int]) -> str:
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
