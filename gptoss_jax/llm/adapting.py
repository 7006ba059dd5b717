"""The adapters beside the weights of an LLM that lives on."""

from collections.abc import Mapping
import os

from gptoss_jax import adapters
from gptoss_jax.adapters import Adapter
from gptoss_jax.engine.engine import Engine
from gptoss_jax.engine.scheduling.adapters import Attached, check_name
from gptoss_jax.turns.doors import door
from gptoss_jax.weights.loading import Model


class Adapting:
    """The calls of an LLM that change its adapters."""

    model: Model
    engine: Engine

    @property
    def adapters(self) -> Mapping[str, Attached]:
        """The adapters that may be asked for now, by name: each with its rank and its targets. Another mapping after each change."""
        return self.engine.adapters

    @door()
    def attach(self, name: str, adapter: Adapter | str | os.PathLike) -> None:
        """Puts an adapter beside the weights, for calls with `adapter=name`; or puts it in the place of an earlier one of that name.

        Nothing is compiled and nobody else is disturbed. Requests that have begun with an earlier one of that name go on with that to
        their end, and it keeps its place until then; those that still wait for a slot take this one.

        Args:
          name: a short text.
          adapter: factors by name, as `adapters.init` and `adapters.load` make them; or a directory of PEFT's files.

        Raises:
          ValueError: the LLM was made without room for adapters; no place is free; or the adapter is not one of this model, is of a larger
            rank or on other matrices than there is room for.
        """
        check_name(name)
        room = self.engine.programs.room
        if room is None:
            raise ValueError("an adapter must have room in its LLM; this one has none; make one with adapters=1 or more.")
        if isinstance(adapter, str | os.PathLike):
            adapter = adapters.load(adapter, self.model.config)
        fitted = adapters.fitted(self.engine.programs.params, self.model.config, adapter, rank=room.rank, targets=room.targets)
        self.engine.attach(name, fitted.terms, fitted.rank, fitted.targets)

    @door()
    def detach(self, name: str) -> None:
        """Takes an adapter away. Requests that have begun with it go on to their end; those that still wait end with an error.

        Raises:
          ValueError: none of that name is attached.
        """
        self.engine.detach(name)
