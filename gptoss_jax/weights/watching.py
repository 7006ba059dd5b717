"""What is looked at while values pass from files to devices, and what becomes of what is found.

A process of several must not stop in the middle, or the others wait for it in their next sum: there what is found is kept, and raised
when all has been read (`Watch.end`).
"""

import ml_dtypes
import numpy as np

from gptoss_jax.quoting import quoted

AUTO_BYTES = 1_000_000_000
"""Files of fewer bytes are looked at unless one asks for something else."""

_NAN_SCALE = 0xFF  # of an MXFP4 group
_LISTED = 5


class Watch:
    """What one load looks at.

    Args:
        finite: look for values that are not finite.
        verify: compare with checksums, where there are some.
        keep: do not raise before the end.
        remedy: what a caller may do about values that are not finite.
    """

    def __init__(
        self,
        *,
        finite: bool = False,
        verify: bool = False,
        keep: bool = False,
        remedy: str = "download it again, or pass check=None to load it so",
    ) -> None:
        self.finite, self.verify, self._keep, self._remedy = finite, verify, keep, remedy
        self._found: list[str] = []

    def look(self, name: str, values: np.ndarray, where: object) -> None:
        """Values of a tensor, which must be finite: floating-point numbers, or the scales of MXFP4 groups as bytes.

        Raises:
            ValueError: they are not, unless it is kept.
        """
        if not self.finite or is_finite(name, values):
            return
        what = "a scale of 0xFF, which is NaN" if values.dtype == np.uint8 else "NaN or infinity"
        self.found(f"{quoted(name)} of {where} must hold finite numbers; got {what}; {self._remedy}.")

    def found(self, problem: str, cause: BaseException | None = None) -> None:
        """Raises ValueError with what was found, now or at the end."""
        if not self._keep:
            raise ValueError(problem) from cause
        self._found.append(problem)

    def end(self) -> None:
        """Raises what was kept."""
        if self._found:
            first, *more = dict.fromkeys(self._found)
            raise ValueError(first + (f" (and {len(more)} more)" if more else ""))


def is_finite(name: str, values: np.ndarray) -> bool:
    """Whether all values are finite numbers. Bytes are codes, which always are, or scales, which tensors of such names hold."""
    if not values.size:
        return True
    if values.dtype == np.uint8:
        return not name.endswith("scales") or int(values.max()) != _NAN_SCALE
    if values.dtype not in _PATTERNS:
        return True
    exponent, nbytes = _PATTERNS[values.dtype]
    signed, unsigned = values.view(f"i{nbytes}"), values.view(f"u{nbytes}")
    sign = 1 << (8 * nbytes - 1)  # two maxima cost less than a mask, whose result would have to be written
    return int(signed.max()) < exponent and int(unsigned.max()) < sign + exponent


_PATTERNS = {  # the least pattern of what is not finite, and bytes
    np.dtype(ml_dtypes.bfloat16): (0x7F80, 2),
    np.dtype(np.float16): (0x7C00, 2),
    np.dtype(np.float32): (0x7F800000, 4),
}
