"""What changes in an engine that lives: its weights, and whether it is awake. Weights by name; no text.

All of it is done by the engine's thread between requests (`readers.Change`): what was begun ends before, or begins anew behind.
"""

from collections.abc import Mapping
import hashlib
import numbers
import threading
from typing import Any, Literal

from gptoss_jax.engine.device import weights
from gptoss_jax.engine.device.programs import Programs
from gptoss_jax.engine.readers import Change
from gptoss_jax.engine.stepping.rounds import ASLEEP, Rounds
from gptoss_jax.engine.thread import EngineThread
from gptoss_jax.model.params import Params
from gptoss_jax.parallel import processes
from gptoss_jax.quoting import quoted

LONGEST = 256  # characters of a version

Running = Literal["finish", "restart"]


class Changes:
    """Changes of one engine; from any thread but its own.

    Args:
      programs, rounds, thread: of the engine.
      several: whether several processes share it, which must all ask for the same changes, at the same place among their calls.
    """

    def __init__(self, programs: Programs, rounds: Rounds, thread: EngineThread, *, several: bool):
        self._programs, self._rounds, self._thread, self._several = programs, rounds, thread, several
        self._sleeping = threading.Lock()  # held by who has it sleep, or wake

    @property
    def asleep(self) -> bool:
        """Whether requests are refused: from when it was asked to sleep until it is awake again."""
        return self._rounds.asleep

    def check_awake(self) -> None:
        """Raises RuntimeError where it sleeps, and in a process that was forked from the engine's."""
        self._thread.check_process()
        if self.asleep:
            raise RuntimeError(ASLEEP)

    def update(self, new: Params | Mapping[str, Any], *, version: int | str | None = None, running: Running = "finish") -> int | str:
        """Other weights; returns their version once requests are answered with them. See `LLM.update`."""
        self._thread.check_process()
        with processes.together("update the weights", "names or version", alone=not self._several) as facts:
            version = _version(version)
            if not isinstance(running, str) or running not in ("finish", "restart"):
                raise ValueError(f'running must be "finish" or "restart"; got {quoted(running)}; pass "finish" to let what runs end.')
            prepared = weights.prepared(new, self._programs.params)
            facts["names or version"] = hashlib.sha256(repr((sorted(prepared), version, running)).encode()).hexdigest()
        change = Change(lambda rounds: rounds.swap(prepared, version), restart=running == "restart")
        return self._made(change)

    def sleep(self) -> None:
        """Gives back the memory of cache and programs, once all that was asked for is done. See `LLM.sleep`."""
        self._thread.check_process()
        with self._sleeping:
            self._made(Change(Rounds.sleep, last=True))  # also where it is refusing already: who asked for that may have been interrupted

    def wake(self, *, progress: bool = False) -> None:
        """Takes that memory again. See `LLM.wake`."""
        self._thread.check_process()
        with self._sleeping:
            while self.asleep:
                self._programs.prepare(progress=progress, again=True)
                self._made(Change(Rounds.wake))

    def _made(self, change: Change) -> Any:
        self._thread.change(change)
        return change.result()


def _version(given: Any) -> int | str | None:
    if isinstance(given, numbers.Integral) and not isinstance(given, bool) and abs(int(given)) < 2**63:
        return int(given)
    if given is not None and not (isinstance(given, str) and 0 < len(given) <= LONGEST):
        what = f"a whole number below 2**63 or a string of 1 to {LONGEST} characters"
        raise ValueError(f"version must be {what}; got {quoted(given)}; leave it out to count.")
    return given
