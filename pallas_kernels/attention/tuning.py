"""How the attention kernels cut their work. None of these are measured: no GPU has run them yet."""

import dataclasses

from pallas_kernels.tuning import Row


@dataclasses.dataclass(frozen=True)
class Decode(Row):
    """A row of the table for few queries.

    Attributes:
        most_keys: that a sequence's queries can see, up to which this row holds.
        splits: blocks of a cluster, at most 8; each has `warpgroups` parts of a sequence's keys.
        warpgroups: of a block.
        least: pages of 64 keys that a part has at least.
        stages: pages that a warpgroup has under way or in use.
        ctas: blocks that a multiprocessor shall hold at a time.
    """

    most_keys: int
    splits: int
    warpgroups: int = 1
    least: int = 2
    stages: int = 3
    ctas: int = 3


@dataclasses.dataclass(frozen=True)
class Prefill(Row):
    """How many queries are attended.

    Attributes:
        rows: of a warpgroup, 64 or 128; a block has two such warpgroups.
        stages: pages of 64 keys in shared memory.
        ctas: as in `Decode`.
    """

    rows: int = 128
    stages: int = 6
    ctas: int = 1


DECODE_ROWS = 64  # tokens times heads of a group, up to which the kernel for few queries runs
PREFILL = Prefill()
DECODE = (
    Decode(256, 1),
    Decode(2048, 8),
    Decode(1 << 31, 8, 2, least=4, ctas=2),
)


def decode(keys: int) -> Decode:
    """The table's row for sequences whose queries see up to `keys` keys."""
    return next(row for row in DECODE if keys <= row.most_keys)
