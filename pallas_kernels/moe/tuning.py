"""How the mixture of experts is cut into blocks, by its number of tokens. None of this is measured: no GPU has run it yet."""

import dataclasses
import math

from pallas_kernels.tuning import Row


@dataclasses.dataclass(frozen=True)
class Step:
    """How a grouped product is cut.

    Attributes:
        groups: warpgroups that multiply, each 64 rows of every one of the matrices.
        chunks: of 64 columns that a stage holds; less where the columns do not divide.
        stages: in shared memory, all but the one that is multiplied under way.
    """

    groups: int
    chunks: int
    stages: int


@dataclasses.dataclass(frozen=True)
class Grouped(Row):
    """A row of the table for many tokens.

    Attributes:
        most_pairs: an expert's mean number of pairs (token, expert), up to which this row holds.
        block: rows of one expert that are multiplied together.
        gate_up, down: the two products.
    """

    most_pairs: float
    block: int
    gate_up: Step
    down: Step


# Unpacking costs a warp 90 to 110 instructions a tile whatever the rows, and each quarter of a multiprocessor issues one a cycle: three
# warpgroups with two tiles each take 530 to 670 cycles, as long as the tensor cores take for 48 rows, and as memory takes for the tiles.
# So a block holds most experts' rows whole (their mean and 2.5 standard deviations of even routing) as long as they are few. Of many rows
# it is a compromise: an expert's last block is half empty on average, and the taller a block, the less is unpacked. Three warpgroups hide
# one another's latencies, and divide gpt-oss' 45 tiles; for 128 rows and two matrices there are registers for two of them. There is one
# block on a multiprocessor, with at least 80 KB under way.
GROUPED = (
    Grouped(8, 16, Step(3, 3, 4), Step(3, 3, 6)),
    Grouped(12, 24, Step(3, 3, 4), Step(3, 3, 6)),
    Grouped(18, 32, Step(3, 3, 4), Step(3, 3, 4)),
    Grouped(32, 48, Step(3, 3, 3), Step(3, 3, 4)),
    Grouped(44, 64, Step(3, 3, 3), Step(3, 3, 4)),
    Grouped(400, 96, Step(3, 1, 7), Step(3, 3, 3)),
    Grouped(math.inf, 128, Step(2, 1, 7), Step(3, 1, 7)),
)


# Tokens up to which the kernels of a decode step run: each expert multiplies all tokens, and nothing is grouped and copied.
MOST_DECODED = 64


def grouped(pairs: float) -> Grouped:
    """The table's row for this mean number of pairs an expert."""
    return next(row for row in GROUPED if pairs <= row.most_pairs)


@dataclasses.dataclass(frozen=True)
class Decode(Row):
    """A row of the table for the tokens of a decode step.

    Attributes:
        most_rows: tokens, up to which this row holds.
        units: of 64 rows, in gate_up 32 of either matrix, that a block computes from the same tokens; in gate_up 1 or an even number.
        chunks: of 64 columns, that one step takes; less where the columns do not divide.
        stages: steps in shared memory, one of them being multiplied.
    """

    most_rows: int
    units: int
    chunks: int
    stages: int


# One token has 4 experts: 360 units of gate_up, 180 of down, and whatever the size of a block, a multiprocessor that gets one more than
# others is waited for. So blocks are small there, and three fit a multiprocessor, with 90 KB under way. More tokens have more experts, and
# blocks enough; then tokens, of which a chunk is 128 bytes each, should be fetched for as many weights (2.2 KB a unit) as registers allow.
DECODE = {
    "gate_up": (Decode(8, 1, 5, 4), Decode(16, 2, 3, 3), Decode(32, 4, 1, 6), Decode(64, 4, 1, 4)),
    "down": (Decode(8, 1, 5, 4), Decode(16, 2, 3, 3), Decode(32, 3, 1, 6), Decode(64, 3, 1, 5)),
}


def decode(op: str, rows: int, columns: int) -> Decode:
    """The table's row for this many tokens and columns in tiles of 64."""
    row = next(row for row in DECODE[op] if rows <= row.most_rows)
    return dataclasses.replace(row, chunks=next(n for n in range(row.chunks, 0, -1) if columns % n == 0))
