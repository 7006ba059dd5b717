"""How much of a weight matrix a block takes, and how far ahead it reads. None of these are measured: no GPU has run them yet."""

import dataclasses

from pallas_kernels.tuning import Row


@dataclasses.dataclass(frozen=True)
class Tuning(Row):
    """A row of the table.

    Attributes:
        most_rows: of x, up to which this row holds.
        tile: rows of w a block computes.
        chunks: of 64 columns, that one step takes; less where the columns do not divide.
        stages: steps in shared memory, one of them being multiplied.
    """

    most_rows: int
    tile: int
    chunks: int
    stages: int


# Reading at full bandwidth takes about 5 MB under way on the whole GPU, 40 KB a multiprocessor. For every tile wgmma reads its left
# operand again, 64 rows of x real or not: (64 + tile) / tile bytes for each byte of w, of the 128 that shared memory gives a clock. So
# few tall tiles save shared memory and x's traffic in the L2 cache, many flat ones occupy all 132 multiprocessors.
TABLE = {
    # 5120 rows of w: 107 blocks of 48. Of 32 there would be 160, and 28 multiprocessors would have twice the work of the others.
    "project_qkv": (Tuning(8, 48, 3, 7), Tuning(16, 48, 3, 6), Tuning(64, 48, 3, 4)),
    # 2880 rows of w: 120 blocks of 24; for many rows of x 60 of 48, since every block reads all of x.
    "project_out": (Tuning(8, 24, 4, 8), Tuning(16, 24, 4, 8), Tuning(64, 48, 2, 6)),
    # 201,088 rows of w: two blocks a multiprocessor: one reads while the other starts or ends. For many rows of x one tall block.
    "unembed": (Tuning(8, 64, 1, 9), Tuning(16, 64, 1, 8), Tuning(64, 192, 1, 5)),
}


def tuning(op: str, rows: int, columns: int) -> Tuning:
    """The table's row for x [rows, columns]."""
    row = next(row for row in TABLE[op] if rows <= row.most_rows)
    chunks = next(n for n in range(row.chunks, 0, -1) if columns // 64 % n == 0)
    return dataclasses.replace(row, chunks=chunks)
