"""What changes in an LLM that lives on: its weights, and whether it is awake."""

import asyncio
from collections.abc import Iterator, Mapping
import contextlib
import dataclasses

import jax
import numpy as np

from gptoss_jax.engine.changes import Running
from gptoss_jax.engine.engine import Engine
from gptoss_jax.model.params import Params
from gptoss_jax.turns.doors import door
from gptoss_jax.weights.loading import Model


class Living:
    """The calls of an LLM that change it."""

    engine: Engine
    _shown: tuple[Params, Model]  # what the engine holds, and the model that shows it
    _scores: set[tuple[bool, bool]]

    @property
    def model(self) -> Model:
        """The model, with the weights that requests are answered with."""
        held, model = self._shown
        if self.engine.params is not held:
            held = self.engine.params
            model = dataclasses.replace(model, params=held)
            self._shown = (held, model)
        return model

    @property
    def weights_version(self) -> int | str:
        """The version of the weights that requests are answered with: 0 until the first `update`."""
        return self.engine.programs.version

    @door()
    def update(
        self,
        weights: Params | Mapping[str, jax.Array | np.ndarray],
        *,
        version: int | str | None = None,
        running: Running = "finish",
    ) -> int | str:
        """Answers with other weights from now on, without compiling anything; returns their version once that is so.

        For any thread; several updates go one after another. What is refused, or fails before that, leaves the weights that there are.
        An update that is interrupted while it waits is not made, unless it was on the point of being: see `weights_version`.

        Args:
          weights: `Params` with the names, shapes, dtypes and form of the LLM's own, or a dict of some of them by name
            (`gptoss_jax.names`, `select`). JAX's arrays that lie where the LLM's do are taken as they are, and must not be given to a
            program to write over (`donate_argnums`) as long as they are the LLM's; others, and NumPy's, are copied there. Values are not
            looked at: where numbers are not finite, requests end with an "error".
          version: what they are called: a whole number or a string; None for one more than the last number.
          running: "finish" lets what has been taken up end with the weights before, while what waits, waits on; streams that nobody
            reads are drawn to their ends. "restart" has all begin again, from their prompts, of whom nobody has seen anything: the calls
            that return whole answers. Streams of which a piece has come, and answers that have begun on a form, end before.

        Raises:
          ValueError: names, shapes, dtypes or form are others; an array is none, is deleted or is being traced; version or running.
          RuntimeError: in the engine's own thread, in a process that was forked from the LLM's, and where the program ends.
        """
        done = self.engine.changes.update(weights, version=version, running=running)
        _ = self.model  # lets go of those before
        return done

    @door(*update.takes)
    async def aupdate(self, weights: Params | Mapping[str, jax.Array | np.ndarray], **options) -> int | str:
        """`update` in a thread, for an event loop, with its arguments. Cancelling the asyncio task does not stop it."""
        return await asyncio.to_thread(self.update, weights, **options)

    @door()
    def sleep(self) -> None:
        """Gives back the memory of the cache and of the programs, once all that was asked for is done; weights stay where they are.

        From the call on whoever asks for something is told to `wake` it; tasks that a `run` has not begun are refused. Streams that nobody
        reads are drawn to their ends. Programs that another LLM of the same shape runs stay for that. Nothing happens where it sleeps.
        """
        self.engine.changes.sleep()
        self._scores.clear()

    @door()
    def wake(self, *, progress: bool = False) -> None:
        """Takes the memory of cache and programs again, and goes on with the same bits; prefixes are not kept over a sleep.

        Programs are compiled again, or found again where JAX keeps a compilation cache. Nothing happens where it is awake.

        Args:
          progress: whether to show a progress bar.

        Raises:
          Exception: what JAX raises where there is no room for them; it sleeps on then.
        """
        self.engine.changes.wake(progress=progress)

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """A block in which it sleeps: `with llm.asleep(): train(...)`."""
        self.sleep()
        try:
            yield
        finally:
            self.wake()
