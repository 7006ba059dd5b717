"""What a grid of patches did to a metric."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Effects:
    """What a metric is with each cell of a grid patched. Host arrays, float32.

    Attributes:
      measured: [*grid, B], or [*grid, 1] of a metric that has one value for all rows.
      clean, corrupt: [B] or [1], of the two runs as they are.
      axes: of the grid: "site" (where several were asked for), "layer", "position", "head".
    """

    measured: np.ndarray
    clean: np.ndarray
    corrupt: np.ndarray
    axes: tuple[str, ...]

    @property
    def mean(self) -> np.ndarray:
        """[*grid]: the mean over rows."""
        return self.measured.mean(-1)

    @property
    def normalised(self) -> np.ndarray:
        """[*grid]: means over rows, on a scale where the corrupt run is 0 and the clean one 1.

        Raises:
          ValueError: the two do not differ, or are not finite.
        """
        low, high = float(self.corrupt.mean()), float(self.clean.mean())
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError(
                f"the clean and the corrupt run must have finite metrics; got {high:.4g} and {low:.4g}; mend the metric, or take mean."
            )
        if high == low:
            raise ValueError(
                f"the clean and the corrupt run must differ in the metric; got {high:.4g} and {low:.4g}; pass prompts or a metric that "
                "tell them apart, or take mean."
            )
        return (self.mean - np.float32(low)) / np.float32(high - low)
