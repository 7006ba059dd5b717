"""Prompts that the programs of a hook read: what these are given, and what they keep of the inside, told piece by piece."""

from typing import Any

from gptoss_jax.engine.device.programs import Programs
from gptoss_jax.engine.hooks import looking
from gptoss_jax.engine.requests import Piece
from gptoss_jax.engine.scheduling.live import Live, Rows
from gptoss_jax.engine.scheduling.scheduler import Reading


class HookedPrompts:
    """The prompts of one engine that are read with hooks.

    Args:
      programs: prepared.
    """

    def __init__(self, programs: Programs):
        self._programs = programs
        self._kept: tuple[dict[str, Any], Rows] | None = None  # {name: [P, T, ...]} of the last dispatch, on the device; whose its rows are

    def read(self, reading: Reading) -> tuple[Any, list[tuple[Live, Piece]]]:
        """Has pieces of prompts read; their experts where these are reported, and what was kept of those before.

        So no more than two dispatches' is on the device at a time.
        """
        rows = {row: live.looking for row, live, _ in reading.rows}
        experts, kept = self._programs.read_hooked(reading.blocks, reading.hook, looking.given(rows, len(reading.blocks[0])))
        told = self.tell() if kept else []
        self._kept = (kept, reading.rows) if kept else self._kept
        return experts, told

    def tell(self) -> list[tuple[Live, Piece]]:
        """What was kept of prompts and is not told yet, in pieces for those that are open."""
        if self._kept is None:
            return []
        (values, rows), self._kept = self._kept, None
        values, told = self._programs.fetch(values), []
        for row, live, block in rows:
            if not live.ended:
                new = live.looking.take(block.start, {name: value[row, : block.count] for name, value in values.items()})
                told += [] if new is None else [(live, Piece(live.request, [], [], [], None, captured=new))]
        return told
