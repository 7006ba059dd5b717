"""A prompt that comes back before its continuation, with what the model thought of it. Data only."""

from collections.abc import Mapping, Sequence
import dataclasses


@dataclasses.dataclass(frozen=True)
class Echoed:
    """Of one prompt.

    Attributes:
        tokens: ids.
        logprobs: natural log of each token's probability after those before it; the first is None. None unless asked for.
        top_logprobs: of each place the most probable ids and their log-probabilities; the first is None. None unless asked for.
    """

    tokens: Sequence[int]
    logprobs: Sequence[float | None] | None = None
    top_logprobs: Sequence[Mapping[int, float] | None] | None = None
