"""The programs of an engine, compiled ahead, and the state that they hand on: the only room of the engine that touches the device.

Three programs of one shape each (`decode.read`, `decode.place`, `decode.decode_chunk`): once compiled they are called as they are, so
that nothing can be compiled later. Calls return before the device is done; only `fetch` waits.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
import threading
import time
from typing import Any

import jax
import numpy as np

from gptoss_jax.bars import Bar
from gptoss_jax.config import Config
from gptoss_jax.engine.device import decode, shared, weights
from gptoss_jax.engine.device.hooked import Given
from gptoss_jax.engine.device.of_hooks import OfHook, OfHooks, given_axes, like
from gptoss_jax.engine.device.state import Blocks, Chunk, Orders, Row, State, init_state, make_rows, plain_orders
from gptoss_jax.engine.device.terms import Room
from gptoss_jax.engine.sizes import STEPS, Sizes
from gptoss_jax.model import named
from gptoss_jax.model.cache import make_cache, pages_dtype
from gptoss_jax.model.params import Params
from gptoss_jax.parallel import sharding
from gptoss_jax.sampling import state as sampling_state
from gptoss_jax.sampling.options import MAX_LOGPROBS, Sampling
from gptoss_jax.sampling.reported import Processed, Sampled

ROOM = 512  # biases, and stop tokens, that a request may have


class Programs:
    """A model's programs and their state.

    Args:
      params, config: the model.
      sizes: shapes of everything.
      eos_token_ids: tokens that end every request without `ignore_eos`.
      cache_dtype: see `pages_dtype`.
      routed: whether the experts that tokens are routed to are reported; otherwise the programs are those of a model without that.
      room: for adapters side by side, of which each row takes its own; None for programs of a model without any.

    Attributes:
      params: the weights that they are called with.
      version: of these weights.
    """

    def __init__(
        self,
        params: Params,
        config: Config,
        sizes: Sizes,
        *,
        eos_token_ids: tuple[int, ...],
        cache_dtype: str | None = None,
        routed: bool = False,
        room: Room | None = None,
    ):
        self.params, self.config, self.sizes, self.eos_token_ids, self.routed = weights.held(params), config, sizes, eos_token_ids, routed
        self.version: int | str = 0
        self._number = 0  # of updates, or the last version that was one
        self.partition, self._place = params.partition, sharding.home(params.partition, params)
        self.cache_dtype = pages_dtype(cache_dtype, params.embedding.dtype)
        self.room = room
        self._state: State | None = None
        self._compiled: dict[str, Callable] = {}
        self._constants: dict[str, jax.Array] = {}
        self._like: dict[str, tuple] = {}  # what the programs that read and draw are called with
        self.hooks = OfHooks(lambda kind: OfHook(kind, config, self.sizes, self.like, self._place, {"routed": routed}))
        self._preparing, self._dropped = threading.Lock(), False
        shared.enter(self)

    @property
    def ready(self) -> bool:
        return bool(self._compiled)

    @property
    def joined(self) -> Params:
        """The params as programs take them: with the terms of adapters beside them where there is room for any."""
        return self.params if self.room is None else self.room.beside(self.params)

    def like(self) -> dict[str, tuple]:
        """What the programs that read and draw are called with, without the numbers."""
        self.prepare()
        return self._like

    def prepare(self, *, progress: bool = False, again: bool = False) -> None:
        """Lowers every program, and compiles each in a thread of its own, if that has not been done; one caller does, others wait.

        Args:
          again: also where they were dropped; otherwise nothing is done then.
        """
        if self.ready:
            return
        with self._preparing:
            if not self.ready and (again or not self._dropped):
                try:
                    self._compile(progress)
                except BaseException:
                    self._state, self._constants = None, {}
                    raise
                self._dropped = False
                shared.enter(self)

    def drop(self) -> None:
        """Gives back the state's memory and that of the programs, but for those that other engines run; see `prepare`."""
        with self._preparing:
            self._dropped, self._compiled, self._state, self._constants = True, {}, None, {}
            self.hooks.forget()
            shared.drop(self)

    def swap(self, new: Mapping[str, jax.Array], version: int | str | None) -> int | str:
        """Takes other weights from the next call on; returns their version.

        Args:
          new: by name, as `weights.prepared` returns them; the rest stay.
          version: theirs; None is one more than the last number.
        """
        params = named.substitute(self.params, new)
        self._number = version if isinstance(version, int) else self._number + 1
        self.params, self.version = params, self._number if version is None else version
        if self.room is not None:
            self.room.forget()
        return self.version

    def renew(self) -> None:
        """Makes the state anew, after a failure: what programs had taken of the old one is lost."""
        self._state = None
        self._state = self.empty_state()

    def _compile(self, progress: bool) -> None:
        self._state = self.empty_state()
        calls = self._calls()
        self._like = {name: jax.tree.map(like, calls[name][1]) for name in ("decode", "read")}
        bar = Bar(len(calls), shown=progress, desc="compiling", unit="program", leave=False)
        with bar, ThreadPoolExecutor(len(calls)) as pool:
            with sharding.at(self._place):
                futures = {name: pool.submit(shared.program(self, self._state, *call)) for name, call in calls.items()}
            for future in futures.values():
                future.add_done_callback(lambda _: bar.update())
            self._compiled = {name: future.result() for name, future in futures.items()}

    def read(
        self, tokens: np.ndarray, count: np.ndarray, start: np.ndarray, full_table: np.ndarray, ring_table: np.ndarray, adapter: np.ndarray
    ) -> jax.Array | None:
        """Pieces of prompts into the cache; see `state.Blocks`, whose fields these are. Returns their experts where these are reported."""
        blocks = self._blocks(tokens, count, start, full_table, ring_table, adapter)
        self._state, routes = self._compiled["read"](self.joined, self._state, blocks)
        return routes

    def read_hooked(self, blocks: tuple[np.ndarray, ...], hook: OfHook, given: tuple) -> tuple[jax.Array | None, dict[str, jax.Array]]:
        """As `read`, with a hook, of which the rows are `given` something (`hooked.Given`); also what it keeps of every token."""
        self._state, *told = hook.read(self.joined, self._state, self._blocks(*blocks), self._put(Given(*given), given_axes(given)))
        return tuple(told)

    def place(
        self, slot: int, sampling: Sampling, seed: int, prompt: np.ndarray, pauses: tuple[int, ...] | None, remaining: int, adapter: int
    ) -> None:
        """Gives a slot to a request whose prompt, but for the last token, is in the cache."""
        row = self._row(sampling, seed, prompt, len(prompt) - 1, int(prompt[-1]), remaining, pauses, adapter)
        self._state = self._compiled["place"](self._state, self._put(np.array([slot], np.int32)), row)

    def draw(
        self,
        limit: int,
        full_table: np.ndarray,
        ring_table: np.ndarray,
        *,
        dropped: np.ndarray,
        held: np.ndarray,
        resumed: np.ndarray,
        single: np.ndarray,
        masked: np.ndarray,
        allowed: np.ndarray | None = None,
        forced: np.ndarray | None = None,
        hook: OfHook | None = None,
        given: tuple | None = None,
    ) -> Chunk:
        """Up to `limit` steps for all slots; see `state.Orders`. The result may not be there yet: see `fetch`.

        With a `hook` those that have it, which are `given` something (`hooked.Given`), and all others are held.
        """
        flags, columns = {"dropped": dropped, "held": held, "resumed": resumed, "single": single, "masked": masked}, ("batch", None)
        cache = self._state.cache.replace(full_table=self._put(full_table, columns), ring_table=self._put(ring_table, columns))
        orders = Orders(
            limit=self._put(np.int32(limit)),
            **{name: self._put(flag, ("batch",)) for name, flag in flags.items()},
            allowed=self._constants["allowed"] if allowed is None else self._put(allowed, columns),
            forced=self._constants["forced"] if forced is None else self._put(forced, columns),
        )
        arguments = self.joined, self._state.replace(cache=cache), orders
        run, more = (self._compiled["decode"], ()) if hook is None else (hook.decode, (self._put(Given(*given), given_axes(given)),))
        self._state, chunk = run(*arguments, *more)
        return chunk

    def fetch(self, results: Any) -> Any:
        """A tree of results as NumPy arrays, once the device is done with them."""
        return jax.device_get(results)

    def now(self) -> float:
        """Seconds of a clock that never goes back."""
        return time.monotonic()

    def empty_state(self) -> State:
        """The state of an engine that has not done anything yet."""
        s = self.sizes
        tables = (np.zeros((s.slots, width), np.int32) for width in (s.blocks, s.decode_ring))
        cache = make_cache(
            *(self.config, *tables),
            full_pages=s.full_pages,
            ring_pages=s.ring_pages,
            dtype=self.cache_dtype,
            page_size=s.page,
            partition=self._place,
        )
        nothing = [Sampling(temperature=0)] * s.slots
        stacked = sampling_state.stack(nothing, vocab_size=self.config.vocab_size, slots=ROOM, partition=self._place)
        return init_state(cache, stacked, partition=self._place, adapters=self.room is not None)

    def _calls(self) -> dict[str, tuple]:
        """Each program's function, with arguments like those that it will be called with (in order, then by keyword the static ones), and
        a tree like its result."""
        s, none = self.sizes, np.zeros(self.sizes.read_rows, np.int32)
        tables = (np.zeros((s.read_rows, width), np.int32) for width in (s.blocks, s.read_ring))
        blocks = self._blocks(np.zeros((s.read_rows, s.page), np.int32), none, none, *tables, none - 1)
        orders = plain_orders(s.slots, 1, steps=STEPS, vocab_size=self.config.vocab_size, partition=self._place)
        self._constants = {"allowed": orders.allowed, "forced": orders.forced}
        row = self._row(Sampling(), 0, np.zeros(1, np.int32), 0, 0, 0, None, -1)
        slot = self._put(np.zeros(1, np.int32))
        model, state, routed = (self.joined, self.config, self._state), self._state, {"routed": self.routed}
        routes = 0 if self.routed else None
        chunk = Chunk(Sampled(0, 0, 0, 0, 0, Processed(0, 0, 0)), 0, 0, 0, 0, 0, routes)
        return {
            "decode": (decode.decode_chunk, (*model, orders), {"steps": STEPS, "top_logprobs": MAX_LOGPROBS, **routed}, (state, chunk)),
            "read": (decode.read, (*model, blocks), routed, (state, routes)),
            "place": (decode.place, (state, slot, row), {"partition": self.partition}, state),
        }

    def _row(self, sampling: Sampling, seed: int, prompt: np.ndarray, length: int, token: int, remaining: int, pauses, adapter: int) -> Row:
        ask = {"vocab_size": self.config.vocab_size, "eos_token_ids": self.eos_token_ids, "prompts": [prompt], "slots": ROOM}
        row = make_rows(sampling_state.columns([sampling], [seed], **ask), length, token, remaining, pauses)
        if self.room is not None:
            row = row.replace(adapter=np.array([adapter], np.int32))
        if "counts" not in self._constants:
            self._constants["counts"] = self._put(row.sampling.counts)
            self._constants["unseen"] = self._put(np.zeros_like(row.sampling.in_prompt))
        large = {"counts": self._constants["counts"]}
        if sampling.repetition_penalty == 1:
            large["in_prompt"] = self._constants["unseen"]
        return self._put(row.replace(sampling=row.sampling.replace(**large)))

    def _blocks(self, *fields: np.ndarray) -> Blocks:
        """Pieces of prompts where the params lie; which adapters they take is said where there is room for any."""
        blocks = Blocks(*fields) if self.room is not None else Blocks(*fields).replace(adapter=None)
        return jax.tree.map(lambda x: self._put(x, ("batch", None)[: x.ndim]), blocks)

    def _put(self, values, axes=None):
        """NumPy arrays of a tree where the params lie; what is there already stays as it is. `axes` None is whole on every device."""
        put = lambda value, axes=(): value if isinstance(value, jax.Array) else sharding.put(value, self._place, axes)
        return jax.tree.map(put, values) if axes is None else jax.tree.map(put, values, axes)
