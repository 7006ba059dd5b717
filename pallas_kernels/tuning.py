"""What every row of a tuning table says of where it comes from. The tables lie beside their ops."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A choice, measured or not.

    Attributes:
        microseconds: of a launch at gpt-oss-20b's shapes and the most that the row holds for.
        device, jax, date: of the measurement.
    """

    microseconds: float | None = None
    device: str = "not measured"
    jax: str = "not measured"
    date: str = "not measured"
