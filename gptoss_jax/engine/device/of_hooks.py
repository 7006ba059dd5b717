"""The programs of hooks: compiled where a request with a new kind of hook is asked for, in its caller's thread, and kept for the next.

A program that reads prompts and one that draws, of `device.decode`, beside those of requests without a hook, which stay as they are. How
much one keeps of the inside at a time is limited: it takes fewer steps, and fewer rows of prompts, where that is much.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
import itertools
import math
import threading
from typing import Any

import jax
import jax.numpy as jnp

from gptoss_jax.config import Config
from gptoss_jax.engine.device import decode
from gptoss_jax.engine.device.hooked import Given, apply
from gptoss_jax.engine.hooks.kinds import Kind, dtype_of, shape_of
from gptoss_jax.engine.sizes import STEPS, Sizes
from gptoss_jax.parallel import sharding
from gptoss_jax.parallel.sharding import Place
from gptoss_jax.quoting import said
from gptoss_jax.sampling.options import MAX_LOGPROBS

MOST = 16  # kinds whose programs are kept
BYTES = 1 << 27  # that a dispatch keeps of the inside, where one step, or a page of each replica, is not more
MOST_BYTES = 1 << 31  # and the most that these may be

_serials = itertools.count()


class OfHook:
    """The programs of one kind of hook.

    Args:
      kind: of the hooks.
      like: tells what the programs without a hook are called with, by name, once they are compiled.
      place: where the model lies.
      options: of both programs, static.

    Attributes:
      steps: most decode steps a dispatch.
      rows: of prompts a dispatch.
      serial: a number that no other has had.
    """

    def __init__(self, kind: Kind, config: Config, sizes: Sizes, like: Callable[[], dict[str, tuple]], place: Place, options: dict):
        self.kind, self.serial = kind, next(_serials)
        self._config, self._sizes, self._like, self._place, self._options = config, sizes, like, place, options
        context = sizes.blocks * sizes.page
        token = sum(math.prod(shape_of(config, name, context)) * dtype_of(name).itemsize for name in kind.captures)
        self._bytes = {"decode": sizes.slots * token, "read": sizes.replicas * sizes.page * token}
        self.steps = min(STEPS, max(1, BYTES // max(1, self._bytes["decode"])))
        self.rows = min(sizes.read_rows, sizes.replicas * max(1, BYTES // max(1, self._bytes["read"])))
        self.decode: Callable | None = None
        self.read: Callable | None = None

    def compile(self, *, reads: bool) -> None:
        """Makes what is not there yet: what draws, and what reads prompts if that is needed.

        Raises:
          ValueError: a function fails or returns another kind of array, or too much would be kept at a time.
        """
        if self.decode is None:
            self._check("decode", "a token of each slot")
            check_functions(self.kind, self._config, self._sizes.blocks * self._sizes.page)
            options = {"steps": self.steps, "top_logprobs": MAX_LOGPROBS, **self._options}
            self.decode = self._compiled(decode.decode_chunk, self._like()["decode"], self._sizes.slots, options)
        if reads and self.read is None:
            self._check("read", "a page of a prompt")
            *model, blocks = self._like()["read"]
            blocks = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.rows, *x.shape[1:]), x.dtype, sharding=x.sharding), blocks)
            self.read = self._compiled(decode.read, (*model, blocks), self.rows, self._options)

    def _compiled(self, function: Callable, arguments: tuple, rows: int, options: dict[str, Any]) -> Callable:
        given = Given(_row((rows, len(self.kind.steps), 2), "int32", self._place), tuple(self._new(step, rows) for step in self.kind.steps))
        try:
            with sharding.at(self._place):
                return function.lower(*arguments, given, kind=self.kind, **options).compile()
        except ValueError:
            raise
        except Exception as error:  # of functions that are not ours
            raise ValueError(f"a hook's programs must be compiled; got {said(error)}; look at its functions.") from error

    def _new(self, step, rows: int):
        if step.shape is None:
            return None
        whole = all(dtype_of(name).kind == "i" for name in step.names)
        return _row((rows, *step.shape), "int32" if whole else "float32", self._place)

    def _check(self, program: str, of: str) -> None:
        if (got := self._bytes[program]) > MOST_BYTES:
            raise ValueError(
                f"what a hook keeps of {of} must be at most {MOST_BYTES / 1e9:.1f} GB; got {got / 1e9:,.1f} GB; name fewer sites, "
                'make the LLM with a smaller context, or pass tokens="generated".'
            )


class OfHooks:
    """The programs of the kinds of hooks that were asked for last.

    Args:
      make: a kind's programs, of which none is compiled.
    """

    def __init__(self, make: Callable[[Kind], OfHook]):
        self._make = make
        self._kept: OrderedDict[Kind, OfHook] = OrderedDict()
        self._lock, self._compiling = threading.Lock(), threading.Lock()
        self._waiting = ThreadPoolExecutor(1, thread_name_prefix="gptoss_jax hooks")

    def __len__(self) -> int:
        return len(self._kept)

    def has(self, kind: Kind, *, reads: bool) -> bool:
        """Whether nothing would have to be compiled."""
        found = self._kept.get(kind)
        return found is not None and found.decode is not None and (found.read is not None or not reads)

    def where(self, kinds: Iterable[tuple[Kind, bool]]) -> Executor | None:
        """Where event loops have kinds, that read or do not, got for them: one thread makes all new ones, so that these take none of
        asyncio's own, which others need."""
        return None if all(self.has(kind, reads=reads) for kind, reads in kinds) else self._waiting

    def get(self, kind: Kind, *, reads: bool) -> OfHook:
        """A kind's programs, compiled if they are not: one caller does, and those of other new kinds wait. The longest unused goes, once
        nobody runs in it.

        Raises:
          ValueError: as `OfHook.compile`; then nothing is kept.
        """
        if not self.has(kind, reads=reads):
            with self._compiling:
                found = self._kept.get(kind) or self._make(kind)
                found.compile(reads=reads)
                self._keep(kind, found)
                return found
        return self._keep(kind, self._kept.get(kind)) or self.get(kind, reads=reads)  # it may have gone meanwhile

    def _keep(self, kind: Kind, found: OfHook | None) -> OfHook | None:
        if found is not None:
            with self._lock:
                self._kept[kind] = found
                self._kept.move_to_end(kind)
                while len(self._kept) > MOST:
                    self._kept.popitem(last=False)
        return found

    def forget(self) -> None:
        """Lets go of all programs but for those that requests run in."""
        with self._lock:
            self._kept.clear()


def like(x: Any) -> Any:
    """What an array is like, without its values; anything else as it is."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) if isinstance(x, jax.Array) else x


def given_axes(given: tuple) -> Given:
    """The logical axes of the arrays that rows are given."""
    (spans, new), axes = given, lambda x: None if x is None else ("batch", *(None,) * (x.ndim - 1))
    return Given(axes(spans), tuple(axes(x) for x in new))


def _row(shape: tuple[int, ...], dtype: str, place: Place) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding.of(place, ("batch", *(None,) * (len(shape) - 1))))


def check_functions(kind: Kind, config: Config, context: int) -> None:
    """Raises ValueError where a function cannot be one of a token's value, or would call back to the host."""
    for step in kind.steps:
        for name in step.names if step.operation == "call" else ():
            value = jax.ShapeDtypeStruct((1, 1, *shape_of(config, name, context)), dtype_of(name))
            try:
                traced = jax.make_jaxpr(lambda value, step=step, name=name: apply(name, step, value, None))(value)
            except ValueError as error:  # without the notes of JAX's
                raise ValueError(str(error)) from error.__cause__
            if traced.effects or any("callback" in name for name in _primitives(traced.jaxpr)):
                raise ValueError(f"a patch of {name} must be computed on the device alone; got one that calls back; take that out of it.")


def _primitives(jaxpr) -> Iterator[str]:
    """The names of what is computed, also inside of loops, branches and other functions."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _primitives(inner)
