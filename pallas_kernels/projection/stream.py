"""A product of few rows with a large matrix: the matrix streams through shared memory once, as fast as memory gives it.

The rows of x are the left operand of wgmma, which has 64 rows, and rows of w the right one. Of x only as many rows as there are (rounded up
to 8) are loaded: its chunks of 64 columns lie one after the other, and wgmma reads past a chunk into those that follow:

    shared memory   | chunk 0: 8 rows | chunk 1: 8 rows | chunk 2 ...
    operand 0       |<- rows 0 - 7  ->|<-      rows 8 - 63, anything      ...
    operand 1                         |<- rows 0 - 7  ->|<-  rows 8 - 63 ...

What those rows hold reaches only rows of the accumulator that nobody stores: rows of a product are independent. For the same reason a row's
result depends neither on the other rows nor on their number: columns are summed in the same order whatever the tile.
"""

import dataclasses

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import primitives
from pallas_kernels.projection.tuning import Tuning

WIDTH = 64  # columns of a chunk: 128 bytes, a row of the widest swizzle
HEIGHT = 64  # rows of wgmma's left operand and of its accumulator


@dataclasses.dataclass(frozen=True)
class Stream:
    """The product of x [M, columns] with a tile of rows of w [rows, columns].

    Attributes:
        M: rows of x; up to 8, or a multiple of 8.
        columns: of x and w, a multiple of 64 * tuning.chunks.
        tuning: its `tile` is a multiple of 8.
        boxes: pieces that the tile consists of, each of neighbouring rows of w.
    """

    M: int
    columns: int
    tuning: Tuning
    boxes: int = 1

    @property
    def tall(self) -> int:
        """Rows of x in shared memory."""
        return -(-self.M // 8) * 8

    def scratch(self) -> list:
        """Shared memory for chunks of x, for tiles of w, and barriers that say a stage has arrived."""
        t, swizzled = self.tuning, primitives.swizzled(WIDTH, jnp.bfloat16)
        return [
            plgpu.SMEM(((t.stages * t.chunks - 1) * self.tall + HEIGHT, WIDTH), jnp.bfloat16, transforms=swizzled),
            plgpu.SMEM((t.stages, t.tile, t.chunks * WIDTH), jnp.bfloat16, transforms=swizzled),
            plgpu.Barrier(num_arrivals=self.boxes + t.chunks, num_barriers=t.stages),
        ]

    def start(self, x, w, firsts, x_s, w_s, arrived, *, early: bool) -> None:
        """Asks for the first stages, and begins. `firsts`: the first row of w of each box; `early`: w's part is asked for before."""
        steps = range(min(self.tuning.stages - 1, self._steps))
        if not early:
            primitives.begin()
        for step in steps:
            self._fetch_weights(step, step, w, firsts, w_s, arrived)
        if early:
            primitives.begin()
        for step in steps:
            self._fetch_rows(step, step, x, x_s, arrived)

    def product(self, x, w, firsts, x_s, w_s, arrived) -> jax.Array:  # [64, tile] float32
        """The product, once `start` was called with the same arguments. Rows from M on mean nothing."""
        stages, chunks = self.tuning.stages, self.tuning.chunks

        def accumulate(accumulator):
            @pl.loop(0, self._steps)
            def _(step):
                slot = jax.lax.rem(step, stages)
                plgpu.barrier_wait(arrived.at[slot])
                for chunk in range(chunks):
                    rows = x_s.at[pl.ds((slot * chunks + chunk) * self.tall, HEIGHT)]
                    plgpu.wgmma(accumulator, rows, w_s.at[slot, :, pl.ds(chunk * WIDTH, WIDTH)].T)
                plgpu.wgmma_wait(chunks)  # of the step before, whose slot is the next to be filled
                ahead = step + (stages - 1)

                @pl.when(ahead < self._steps)
                def _():
                    into = jax.lax.rem(ahead, stages)
                    self._fetch_weights(ahead, into, w, firsts, w_s, arrived)
                    self._fetch_rows(ahead, into, x, x_s, arrived)

            return accumulator[...]

        return pl.run_scoped(accumulate, plgpu.ACC((HEIGHT, self.tuning.tile), jnp.float32))

    @property
    def _steps(self) -> int:
        return self.columns // (self.tuning.chunks * WIDTH)

    def _fetch_weights(self, step, slot, w, firsts, w_s, arrived) -> None:
        """Fills a slot with w's part of a step. What lies past the end of w is not read: TMA writes zeros."""
        width, box = self.tuning.chunks * WIDTH, self.tuning.tile // self.boxes
        for i, row in enumerate(firsts):
            weights = w.at[pl.ds(row, box), pl.ds(step * width, width)]
            plgpu.copy_gmem_to_smem(weights, w_s.at[slot, pl.ds(i * box, box)], arrived.at[slot])

    def _fetch_rows(self, step, slot, x, x_s, arrived) -> None:
        """Fills a slot with x's part of a step, likewise."""
        chunks = self.tuning.chunks
        for chunk in range(chunks):
            rows = x.at[primitives.leading(self.tall), pl.ds((step * chunks + chunk) * WIDTH, WIDTH)]
            plgpu.copy_gmem_to_smem(rows, x_s.at[pl.ds((slot * chunks + chunk) * self.tall, self.tall)], arrived.at[slot])
