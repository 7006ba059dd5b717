"""How the attention kernels cut their work. None of these are measured: no GPU has run them yet."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Decode:
    """A row of the table for few queries.

    Attributes:
        most_keys: that a sequence's queries can see, up to which this row holds.
        splits: parts into which a sequence's keys are cut, at most.
        least: blocks of 64 keys that a part has at least.
        stages: blocks in shared memory.
        microseconds: of a launch at gpt-oss' shapes.
    """

    most_keys: int
    splits: int
    least: int = 2
    stages: int = 3
    microseconds: float | None = None
    device: str = "not measured"
    jax: str = "not measured"
    date: str = "not measured"


DECODE = (
    Decode(256, 1),
    Decode(1024, 8),
    Decode(4096, 16),
    Decode(1 << 31, 32),
)


def decode(keys: int) -> Decode:
    """The table's row for sequences whose queries see up to `keys` keys."""
    return next(row for row in DECODE if keys <= row.most_keys)
