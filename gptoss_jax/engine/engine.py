"""The engine as others see it: requests in, pieces of their tokens out. Token ids only; knows no text.

Whatever calls there are, in threads or on event loops, are readers: one thread of the engine's own (`thread`) makes the rounds (`rounds`).
"""

import asyncio
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
import itertools
from typing import Any

import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.engine.changes import Changes
from gptoss_jax.engine.device import room
from gptoss_jax.engine.device.programs import ROOM, Programs
from gptoss_jax.engine.device.terms import Room
from gptoss_jax.engine.hooks.hook import hook_of
from gptoss_jax.engine.hooks.kinds import Inside, inside_of
from gptoss_jax.engine.hooks.looking import Looking, reads
from gptoss_jax.engine.metrics import Metrics
from gptoss_jax.engine.readers import AsyncReader, Job, Outlet, Reader
from gptoss_jax.engine.requests import Piece, Request, Stats, check_forced, check_offset, check_prompt, check_room
from gptoss_jax.engine.scheduling.adapters import Adapters, Attached
from gptoss_jax.engine.scheduling.live import Live
from gptoss_jax.engine.scheduling.scheduler import Scheduler
from gptoss_jax.engine.sizes import CHUNK, CHUNK_CPU, sizes
from gptoss_jax.engine.source import Source
from gptoss_jax.engine.stepping.rounds import Rounds
from gptoss_jax.engine.thread import EngineThread
from gptoss_jax.model.beside import Terms
from gptoss_jax.model.cache import pages_dtype
from gptoss_jax.model.params import Params
from gptoss_jax.parallel import sharding
from gptoss_jax.quoting import quoted
from gptoss_jax.sampling import state as sampling_state


class Engine:
    """Continues token sequences with one model.

    Args:
      params, config: the model. It runs where its params lie: all on one device, or on the mesh that they name.
      eos_token_ids: tokens that end every request without `ignore_eos`.
      slots, context, cache_tokens, page: see `sizes.sizes`.
      chunk: likewise; None is 2,048, or 128 on a CPU.
      prefix_reuse: keep prefixes of prompts for later requests, as long as there is room.
      cache_dtype: of keys and values: None for the params' own, or "float8_e4m3fn", which takes half the bytes of bfloat16.
      routed_experts: report the experts that every token is routed to; those of a kept prefix are kept with it, in the host's memory.
      adapters: places for adapters that requests may ask for; with 0 programs are those of a model without any.
      adapter_rank: the most that one of them may have.
      adapter_targets: matrices that they may have terms for, see `beside.MATRICES`; None for all.
    """

    def __init__(
        self,
        params: Params,
        config: Config,
        *,
        eos_token_ids: Sequence[int],
        slots: int,
        context: int,
        chunk: int | None = None,
        cache_tokens: int | None = None,
        page: int = 64,
        prefix_reuse: bool = True,
        cache_dtype: str | None = None,
        routed_experts: bool = False,
        adapters: int = 0,
        adapter_rank: int = 16,
        adapter_targets: Sequence[str] | None = None,
    ):
        if not isinstance(params, Params) or not isinstance(config, Config):
            got = f"got a {type(params).__name__} and a {type(config).__name__}"
            raise ValueError(f"a model must be Params and their Config; {got}; pass a Model, as load returns it.")
        for name, value in (("prefix_reuse", prefix_reuse), ("routed_experts", routed_experts)):
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False; got {quoted(value)}; pass one of them.")
        place = sharding.home(params.partition, params)
        if chunk is None:
            chunk = CHUNK_CPU if place is not None and sharding.device_of(place).platform == "cpu" else CHUNK
        replicas = 1 if params.partition is None else params.partition.parts("batch")
        self.sizes = sizes(config, slots=slots, context=context, chunk=chunk, cache_tokens=cache_tokens, page=page, replicas=replicas)
        self.config = config
        self.slots, self.context, self.chunk = self.sizes.slots, self.sizes.context, int(chunk)
        beside = Room.of(params, config, adapters, adapter_rank, adapter_targets)
        taken = 0 if beside is None else beside.nbytes
        room.check(params, config, self.sizes, pages_dtype(cache_dtype, params.embedding.dtype), ROOM, adapters=taken)
        self._adapters = Adapters(adapters)
        if beside is not None:
            beside.make()
        told = {"eos_token_ids": tuple(eos_token_ids), "cache_dtype": cache_dtype, "routed": routed_experts, "room": beside}
        self.programs = Programs(params, config, self.sizes, **told)
        self._rounds = Rounds(self.programs, self.sizes, window=config.sliding_window, reuse=prefix_reuse, adapters=self._adapters)
        self._several = params.partition is not None and params.partition.processes > 1
        self._thread = EngineThread(self._rounds, freely=not self._several)
        self.changes = Changes(self.programs, self._rounds, self._thread, several=self._several)
        self._order = itertools.count()

    def __reduce_ex__(self, protocol):
        raise TypeError("an Engine cannot be copied or pickled, for its thread belongs to this process; make another one there.")

    @property
    def params(self) -> Params:
        """The weights that requests are answered with, until they are changed."""
        return self.programs.params

    @property
    def asleep(self) -> bool:
        """Whether requests are refused: from when it was asked to sleep until it is awake again."""
        return self.changes.asleep

    @property
    def stats(self) -> Stats:
        """What has been done so far."""
        return self._rounds.stats

    @property
    def metrics(self) -> Metrics:
        """What it does and has done, as it stood after its last round; for any thread."""
        return self._rounds.metrics

    @property
    def scheduler(self) -> Scheduler:
        """Queues and pages; to be looked at, and by others than the engine's thread only where it is idle."""
        return self._rounds.scheduler

    def prepare(self, *, progress: bool = False) -> None:
        """Compiles all programs; the first request does that otherwise. Nothing is compiled after it."""
        self.check_awake()
        self.programs.prepare(progress=progress)

    def wait_idle(self, seconds: float = 60) -> bool:
        """Whether within so many seconds everything that was asked for has ended and has given back what it had."""
        return self._thread.wait_idle(seconds)

    def check_awake(self) -> None:
        """Raises RuntimeError where it sleeps, and in a process that was forked from the engine's."""
        self.changes.check_awake()

    def check(self, prompt: Sequence[int], *, room: int = 1) -> None:
        """Raises ValueError where a prompt is empty, holds an id outside the vocabulary, or leaves no room in the context."""
        check_prompt(prompt, self.config, self.context, room=room)

    def run(self, requests: Iterable[Request | None]) -> Iterator[Piece | None]:
        """Pieces of all requests as they come; those of one request come in order, and the last one says why it ends; see `Piece`.

        Several calls, also of several threads, share the slots. Leaving one early ends its requests.

        Args:
          requests: a sequence is checked and taken as a whole; another iterable as they are taken up, two a slot ahead. A None in it comes
            out as one, at once: so its owner gets to say something. What it raises is raised here, after the last piece of those before.

        Raises:
          ValueError: a request that `check_request` refuses.
          RuntimeError: in a process that was forked from the engine's, in the engine's own thread, and where the program ends.
        """
        self.check_awake()
        whole = isinstance(requests, Sequence)
        if whole:
            for request in requests:
                self.check_request(request)
        return self._run(Source(iter(requests), self._take, len(requests) if whole else 2 * self.slots, whole or self._several))

    def _run(self, source: Source) -> Iterator[Piece]:
        reader = Reader(self._thread)
        try:
            self._thread.check_caller()
            self._thread.begin()
            self.prepare()
            while True:
                source.pull(reader)
                if source.marked:
                    yield None
                    if not reader.open or not (reader.ready or self._several):  # several processes make a round whatever has come
                        continue
                if not reader.open:
                    break
                yield from reader.take()
        finally:
            reader.close()
        if source.error is not None:
            raise source.error

    async def aread(self, requests: Sequence[Request]) -> AsyncReader:
        """Has requests done for the running event loop, which is woken once a round however many calls there are. To be closed.

        Raises:
          ValueError, RuntimeError: as `run`; and where several processes share a mesh, which must ask for the same in the same order.
        """
        self.check_awake()
        self._thread.check_caller()
        if self._several:
            raise ValueError("an event loop cannot be one of several processes of a mesh, which must act alike; use run or generate.")
        kinds = [(inside.kind, reads(inside, len(one.prompt))) for one in requests if (inside := self._inside(one)) is not None]
        for request in () if kinds else requests:
            self.check_request(request)
        if not self.programs.ready:
            await asyncio.to_thread(self.prepare)
        reader, take = AsyncReader(self._thread), self._take if kinds else self._live
        make = lambda: [take(request, reader.outlet) for request in requests]
        where = self.programs.hooks.where(kinds)
        reader.ask(await asyncio.get_running_loop().run_in_executor(where, make) if kinds else make())
        return reader

    def work(self, dispatches: Generator[None, None, Any]) -> Any:
        """What a generator returns, which is run in the engine's thread, one dispatch to the device between two yields.

        So no two threads dispatch, and a long work stands in nobody's way. What it raises is raised here. To be compiled before.
        """
        self.check_awake()
        return self._work(Job(dispatches))

    def _work(self, job: Job) -> Any:
        if self._several:  # in step with the other processes
            while not job.advance():
                pass
        else:
            self._thread.do(job)
        return job.result()

    @property
    def adapters(self) -> Mapping[str, Attached]:
        """Those that are attached, by name: as they were at one moment."""
        return self._adapters.attached

    def attach(self, name: str, terms: Terms, rank: int, targets: Sequence[str]) -> None:
        """Puts an adapter beside the others, or in the place of one of its name; requests that have begun go on with what they began with.

        Args:
          terms: NumPy arrays, like one place of `programs.room`, which there is.
          rank, targets: as `Attached` tells them.

        Raises:
          ValueError: no place is free.
          RuntimeError: in a process that was forked from the engine's.
        """
        write = self.programs.room.write
        self._between_rounds(lambda: self._adapters.attach(name, rank, tuple(targets), lambda place: write(place, terms)))

    def detach(self, name: str) -> None:
        """No request is answered with it any more, but for those that have begun. Raises ValueError where there is none of that name."""
        self._between_rounds(lambda: self._adapters.detach(name))

    def _between_rounds(self, do: Callable[[], Any]) -> Any:
        """What comes of a call in the engine's thread, also while it sleeps."""

        def once() -> Generator[None, None, Any]:
            yield from ()
            return do()

        self._thread.check_process()
        return self._work(Job(once()))

    def terms_of(self, name: str | None) -> int | None:
        """Which of the terms beside `programs.joined` are an adapter's: -1 for no name; None where there is no room for any.

        Raises:
          ValueError: no adapter of that name is attached.
        """
        self._adapters.check(name)
        return None if self.programs.room is None else -1 if name is None else self.adapters[name].place

    def check_request(self, request: Request) -> None:
        """Raises ValueError where a prompt, forced tokens, a sampling, a hook or what is to be reported are not valid; see `requests`.

        A hook of a new kind is compiled here, in the caller's thread.
        """
        self.check(request.prompt)
        check_offset(request, routed=self.programs.routed)
        self._adapters.check(request.adapter)
        if request.forced is not None:
            check_forced(request, self.config, self.context)
        request.sampling.validate_for(self.config.vocab_size)
        check_room(request, len(self.programs.eos_token_ids), ROOM)
        self._looking(request)

    def _take(self, request: Request, outlet: Outlet) -> Live:
        self.check_request(request)
        return self._live(request, outlet)

    def _live(self, request: Request, outlet: Outlet) -> Live:
        prompt = np.array(request.prompt, np.int32)
        wanted = (request.sampling.max_tokens or self.context) if request.forced is None else len(request.forced)
        budget = min(wanted, self.context - len(prompt))
        looking = self._looking(request)
        [seed] = sampling_state.fresh_seeds([request.sampling], self.params.partition)
        sizes = {"page": self.sizes.page, "window": self.config.sliding_window}
        return Live(request, next(self._order), prompt, budget, seed, outlet, looking=looking, **sizes)

    def _looking(self, request: Request) -> Looking | None:
        """A request's hook, with its programs, which are compiled if they are not."""
        if (inside := self._inside(request)) is None:
            return None
        prompt = len(request.prompt)
        return Looking(inside, self.programs.hooks.get(inside.kind, reads=reads(inside, prompt)), prompt)

    def _inside(self, request: Request) -> Inside | None:
        hook = hook_of(request.hook)
        return None if hook is None else inside_of(hook, self.config, self.sizes.blocks * self.sizes.page)
