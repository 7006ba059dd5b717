"""Products of few tokens with a few units of one expert's rows: the weights stream through shared memory once.

A unit is a tile of 64 rows; where two matrices alternate, 32 rows of each, the first or second halves of two tiles that lie side by
side: a half is a piece of memory, and in either case two pieces make what a warpgroup's threads want to find:

    down      | tile k         | tile k + 1     | ...          gate_up   | gate k, linear k | gate k+1, linear k+1 | ...
    unit n    | (a b)          | (a b)          |              unit 2n   | (a .)   (a .)    | (a .)     (a .)      |
                                                               unit 2n+1 | (. b)   (. b)    | (. b)     (. b)      |
"""

import dataclasses

import jax
from jax.experimental import pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import primitives
from pallas_kernels.moe import tuning
from pallas_kernels.mxfp4 import dequantize
from pallas_kernels.mxfp4.tiles import TILE

HALF = TILE // 2
WORDS, SCALES = dequantize.WORDS // 2, dequantize.SCALES // 2  # of half a tile


@dataclasses.dataclass(frozen=True)
class Stream:
    """Products of a few units of one expert's rows with the tokens.

    Attributes:
        M: tokens; up to 8, or a multiple of 8.
        columns: of the weights, in tiles (K/64).
        interleaved: matrices whose rows alternate (S).
        tuning: units a block takes, and how they are read.
    """

    M: int
    columns: int
    interleaved: int
    tuning: tuning.Decode

    @property
    def wide(self) -> int:
        """Columns of an accumulator, and rows of tokens in shared memory."""
        return -(-self.M // 8) * 8

    def halves(self, weights) -> tuple[jax.Array, jax.Array]:
        """Words [E, N, 2K/64, S, 256] and scales [E, N, 2K/64, S, 16] of halves of tiles."""
        cut = lambda a, size: a.reshape(*a.shape[:2], 2 * self.columns, self.interleaved, size)
        return cut(weights.words, WORDS), cut(weights.scales, SCALES)

    def scratch(self) -> list:
        """Shared memory for tokens, words and scales, barriers that say a stage has arrived, and what the interpreter needs."""
        t = self.tuning
        return [
            plgpu.SMEM((t.stages, self.wide, t.chunks * TILE), jnp.bfloat16, transforms=primitives.swizzled(TILE, jnp.bfloat16)),
            plgpu.SMEM((t.stages, t.units, 2 * t.chunks, WORDS), jnp.uint32),
            plgpu.SMEM((t.stages, t.units, 2 * t.chunks, SCALES), jnp.uint32),
            plgpu.Barrier(num_arrivals=1 + 2 * t.units, num_barriers=t.stages),
            *primitives.staging((TILE, TILE)),
            *primitives.staging((4, 128), jnp.uint32),
            *primitives.staging((2 * SCALES,), jnp.uint32),
        ]

    def start(self, x, words, scales, first, x_s, words_s, scales_s, arrived, *_, early: bool) -> None:
        """Asks for the first stages; where `early`, begins, after it has asked for the weights' part.

        Args:
          x: [M, K] bf16.
          words, scales: one expert's, of `halves`.
          first: the block's first unit.
          x_s, words_s, scales_s, arrived: what `scratch` became.
        """
        steps = range(min(self.tuning.stages - 1, self._steps))
        for step in steps:
            self._fetch_weights(step, step, words, scales, first, words_s, scales_s, arrived)
        if early:
            primitives.begin()
        for step in steps:
            self._fetch_rows(step, step, x, x_s, arrived)

    def products(self, x, words, scales, first, x_s, words_s, scales_s, arrived, *staging) -> list:
        """For each unit its product [64, wide] float32, once `start` was called with the same arguments."""
        t = self.tuning

        def multiply(accumulators, slot, chunk, unit):
            weights = _tile(words_s.at[slot, unit], scales_s.at[slot, unit], chunk, staging)
            tokens = x_s.at[slot, :, pl.ds(chunk * TILE, TILE)].T
            primitives.wgmma_from_registers(accumulators[unit], weights, tokens, staging[0] if staging else None)

        def accumulate(*accumulators):
            @pl.loop(0, self._steps)
            def _(step):
                slot, ahead = jax.lax.rem(step, t.stages), step + (t.stages - 1)

                @pl.when(ahead < self._steps)  # into the slot of the step before
                def _():
                    into = jax.lax.rem(ahead, t.stages)
                    self._fetch_weights(ahead, into, words, scales, first, words_s, scales_s, arrived)
                    self._fetch_rows(ahead, into, x, x_s, arrived)

                plgpu.barrier_wait(arrived.at[slot])
                for i in range(t.chunks * t.units):
                    multiply(accumulators, slot, *divmod(i, t.units))
                    # While one product runs, the next one's operand is unpacked. If one ran into the next step, ptxas would let none
                    # run beside anything.
                    plgpu.wgmma_wait(int(i < t.chunks * t.units - 1))

            return [accumulator[...] for accumulator in accumulators]

        return pl.run_scoped(accumulate, *[plgpu.ACC((TILE, self.wide), jnp.float32)] * t.units)

    @property
    def _steps(self) -> int:
        return self.columns // self.tuning.chunks

    def _fetch_rows(self, step, slot, x, x_s, arrived) -> None:
        """Fills a slot with tokens. Those past the last are not read: TMA writes zeros."""
        width = self.tuning.chunks * TILE
        plgpu.copy_gmem_to_smem(x.at[primitives.leading(self.wide), pl.ds(step * width, width)], x_s.at[slot], arrived.at[slot])

    def _fetch_weights(self, step, slot, words, scales, first, words_s, scales_s, arrived) -> None:
        """Fills a slot with weights. In place of a unit past the last some other is read."""
        here, chunks = arrived.at[slot], self.tuning.chunks
        along = pl.ds(step * (2 * chunks), 2 * chunks)
        for i in range(self.tuning.units):
            row, half = jax.lax.div(first + i, self.interleaved), jax.lax.rem(first + i, self.interleaved)
            row = jnp.minimum(row, words.shape[0] - 1)
            plgpu.copy_gmem_to_smem(words.at[row, along, half], words_s.at[slot, i], here)
            plgpu.copy_gmem_to_smem(scales.at[row, along, half], scales_s.at[slot, i], here)


def _tile(words, scales, chunk: int, staging):  # [64, 64] bf16
    """A unit's weights for a chunk of columns. Words are a ref [2 * chunks, 256], scales [2 * chunks, 16].

    The interpreter cannot look at them in another shape; there the two halves are copied.
    """
    if not staging:
        return dequantize.tile(words.reshape(words.size // 128, 128), scales.reshape(scales.size), chunk)
    _, tile_words, tile_scales = staging
    halves = pl.ds(2 * chunk, 2)
    tile_words[...] = words[halves].reshape(tile_words.shape)
    tile_scales[...] = scales[halves].reshape(tile_scales.shape)
    return dequantize.tile(tile_words, tile_scales, 0)
