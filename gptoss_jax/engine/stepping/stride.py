"""How many decode steps are asked for at a time: what who waits, and who reads, has patience for."""

from collections.abc import Iterable, Sequence

import numpy as np

from gptoss_jax.engine.device.programs import Programs
from gptoss_jax.engine.scheduling.live import Live
from gptoss_jax.engine.sizes import STEPS
from gptoss_jax.engine.stepping.exchange import Asked
from gptoss_jax.parallel import processes

BUSY_STEPS = 8  # most decode steps a dispatch while somebody waits for a slot
LEAST_STEPS = 4
PACE = (BUSY_STEPS, 21)  # fewest and most decode steps a dispatch for one that is paced: a third of what was read of it, within these


class Stride:
    """Steps a dispatch, from the time that a step took.

    Args:
      programs: of the engine.
      several: whether several processes share it.
    """

    def __init__(self, programs: Programs, *, several: bool):
        self._programs, self._several = programs, several
        self._step_seconds = 0.0

    def limit(self, running: Sequence[Live], others: Sequence[Live], *, busy: bool, pacing: bool) -> int:
        """How many steps to ask for: few where somebody waits for a slot that may fall free, for the next piece, or for a turn.

        Args:
          running: whose steps they are.
          others: who has a slot, and stands still for it is not the turn of its programs.
          busy: whether somebody waits for a slot.
          pacing: whether those that are paced draw no more than what is read of them.
        """
        if any(live.waits and not live.replaying for live in running):
            return 1
        limit = STEPS
        if busy:
            ends = [live.left for live in running if live.left > 0]
            limit = max(LEAST_STEPS, min([BUSY_STEPS, *ends]))
        limit = min(limit, self._steps_in(_patience(running)))
        if others:
            limit = min(limit, max(1, min(BUSY_STEPS, self._steps_in(_patience(others)))))
        paced = [live for live in running if live.request.paced and live.left > 0] if pacing and not self._several else []
        return min([limit, *(self.share(live) + max(0, -live.new) for live in paced)])

    def share(self, live: Live) -> int:
        """Steps a dispatch for one that is paced: three times as many may be drawn of it and not read."""
        least, most = PACE
        return min(max(least, live.outlet.taken // 3), most, self._steps_in(live.request.seconds_per_piece))

    def _steps_in(self, seconds: float | None) -> int:
        """As many steps as that time takes."""
        if seconds is None:
            return STEPS
        return max(1, int(seconds / self._step_seconds)) if self._step_seconds else LEAST_STEPS

    def measure(self, asked: Asked, steps: int) -> None:
        """Keeps the time that a step takes, which all processes must take to be the same."""
        if not steps or (self._several and _patience(asked.owners.values()) is None):
            return
        seconds = np.array((self._programs.now() - asked.began) / steps)
        self._step_seconds = float(processes.broadcast(seconds) if self._several else seconds)


def _patience(lives: Iterable[Live]) -> float | None:
    """Seconds until the next piece that the least patient one grants."""
    return min((s for live in lives if (s := live.request.seconds_per_piece) is not None), default=None)
