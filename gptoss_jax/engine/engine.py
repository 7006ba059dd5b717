"""The host side of generation: requests in, pieces of their tokens out. Token ids only; knows no text.

Slots are static. A step takes up requests, has pieces of prompts read, gives free slots to those that are ready, asks for the next
decode steps, and only then looks at what the steps before have drawn: while the host works, the device does.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
import threading

import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.engine import exchange
from gptoss_jax.engine.exchange import Asked, Routes
from gptoss_jax.engine.live import Live
from gptoss_jax.engine.programs import ROOM, Programs
from gptoss_jax.engine.requests import Piece, Request, Stats, check_forced, check_prompt
from gptoss_jax.engine.scheduler import Scheduler
from gptoss_jax.engine.sizes import CHUNK, STEPS, sizes
from gptoss_jax.model.params import Params
from gptoss_jax.parallel import processes
from gptoss_jax.sampling import state as sampling_state

BUSY_STEPS = 8  # most decode steps a dispatch while somebody waits for a slot
LEAST_STEPS = 4
READS = 8  # most dispatches of prompts between two of decode steps, while all slots want for requests


class _Run:
    """One call of `Engine.run`: the requests that it has open, and their pieces that nobody has taken yet."""

    def __init__(self, patience: float | None):
        self.patience = patience
        self.box: deque[Piece] = deque()
        self.open: set[Live] = set()


class Engine:
    """Continues token sequences with one model.

    Args:
      params, config: the model.
      eos_token_ids: tokens that end every request without `ignore_eos`.
      slots, context, chunk, cache_tokens, page: see `sizes.sizes`.
      prefix_reuse: keep prefixes of prompts for later requests, as long as there is room.
      cache_dtype: of keys and values: None for the params' own, or "float8_e4m3fn", which takes half the bytes of bfloat16.
      routed_experts: report the experts that every token is routed to. No prefixes are kept then: their experts would not be known.
    """

    def __init__(
        self,
        params: Params,
        config: Config,
        *,
        eos_token_ids: Sequence[int],
        slots: int,
        context: int,
        chunk: int = CHUNK,
        cache_tokens: int | None = None,
        page: int = 64,
        prefix_reuse: bool = True,
        cache_dtype: str | None = None,
        routed_experts: bool = False,
    ):
        replicas = 1 if params.partition is None else params.partition.parts("batch")
        self.sizes = sizes(config, slots=slots, context=context, chunk=chunk, cache_tokens=cache_tokens, page=page, replicas=replicas)
        self.params, self.config = params, config
        self.slots, self.context, self.chunk = slots, context, chunk
        told = {"eos_token_ids": tuple(eos_token_ids), "cache_dtype": cache_dtype, "routed": routed_experts}
        self.programs = Programs(params, config, self.sizes, **told)
        self.scheduler = Scheduler(self.sizes, window=config.sliding_window, reuse=prefix_reuse and not routed_experts)
        self.stats = Stats()
        self._lock = threading.RLock()
        self._count = 0
        self._asked: deque[Asked] = deque()
        self._reads: list[Routes] = []  # of prompts, since decode steps were last asked for
        self._runs: dict[Live, _Run] = {}
        self._step_seconds = 0.0
        self._allowed = np.zeros((slots, -(-config.vocab_size // 32)), np.uint32)  # tokens of guided slots
        self._dropped: set[int] = set()  # slots that the device still believes to be at work

    def prepare(self, *, progress: bool = False) -> None:
        """Compiles all programs; the first request does that otherwise. Nothing is compiled after it."""
        self.programs.prepare(progress=progress)

    def check(self, prompt: Sequence[int], *, room: int = 1) -> None:
        """Raises ValueError where a prompt is empty, holds an id outside the vocabulary, or leaves no room in the context."""
        check_prompt(prompt, self.config, self.context, room=room)

    def run(self, requests: Iterable[Request], *, seconds_per_piece: float | None = None) -> Iterator[Piece]:
        """Pieces of all requests as they come; those of one request come in order.

        A request ends with "stop" at a stop token, which is its last token, with "length" at max_tokens or at the end of the context,
        with "timeout" at its time limit. Several runs, also of several threads, share the slots. Leaving one early cancels its requests.

        Args:
          requests: a sequence is checked and taken as a whole; another iterable as slots fall free, two requests a slot ahead.
          seconds_per_piece: how long a piece may take to come; None for as many tokens a dispatch as is quickest.

        Raises:
          ValueError: a request that `check_request` refuses.
        """
        if isinstance(requests, Sequence):
            for request in requests:
                self.check_request(request)
        return self._run(iter(requests), isinstance(requests, Sequence), seconds_per_piece)

    def _run(self, requests: Iterator[Request], whole: bool, patience: float | None) -> Iterator[Piece]:
        run, exhausted = _Run(patience), False
        try:
            while run.box or run.open or not exhausted:
                with self._lock:
                    while not exhausted and (whole or self.scheduler.waiting < 2 * self.slots):
                        request = next(requests, None)
                        exhausted = request is None
                        if request is not None:
                            self._add(request, run)
                    if run.open and not run.box:
                        self._step()
                    pieces = list(run.box)
                    run.box.clear()
                yield from pieces
        finally:
            with self._lock:
                for live in list(run.open):
                    self._drop(live)

    def check_request(self, request: Request) -> None:
        """Raises ValueError where a prompt, forced tokens or a sampling are not valid; see `check` and `requests.check_forced`."""
        self.check(request.prompt)
        if request.forced is not None:
            check_forced(request, self.config, self.context)
        request.sampling.validate_for(self.config.vocab_size)
        most = max(len(request.sampling.logit_bias), len(request.sampling.stop_token_ids) + len(self.programs.eos_token_ids))
        if most > ROOM:
            raise ValueError(f"a request may have at most {ROOM} biases and {ROOM} stop tokens, the model's own included; got {most}.")

    def _add(self, request: Request, run: _Run) -> None:
        self.check_request(request)
        prompt = np.asarray(request.prompt, np.int32)
        wanted = (request.sampling.max_tokens or self.context) if request.forced is None else len(request.forced)
        budget = min(wanted, self.context - len(prompt))
        [seed] = sampling_state.fresh_seeds([request.sampling], self.params.partition)
        live = Live(request, self._count, prompt, budget, seed, page=self.sizes.page, window=self.config.sliding_window)
        self._count += 1
        self._runs[live] = run
        run.open.add(live)
        self.scheduler.add(live)

    def _step(self) -> None:
        """One round; afterwards something has come, or more has been asked for."""
        self.prepare()
        self._end_cancelled_and_late()
        for live in self.scheduler.take_up():
            if live.request.time_limit is not None and live.deadline is None:
                live.deadline = self.programs.now() + live.request.time_limit
        progress = self._read()
        for live in self.scheduler.settle():
            self._dropped.discard(live.slot)
            pauses = None if live.request.constraint is None else live.request.constraint.pauses
            self.programs.place(live.slot, live.request.sampling, live.seed, live.prompt, pauses, live.budget)
        progress |= self._decode()
        if not progress and not self._asked and self.scheduler.reading:
            self._preempt(self.scheduler.last())  # readers hold each other up
        while self._asked and (len(self._asked) > 1 or not progress or self._asked[-1].single):
            self._collect()

    def _read(self) -> bool:
        """Has pieces of prompts read: one dispatch, more while slots stand empty."""
        most = 1 + int((READS - 1) * self.scheduler.hunger())
        for i in range(most):
            if not self.scheduler.must_read():
                return i > 0
            reading = self.scheduler.pieces()
            self.stats.computed += reading.computed
            self.stats.reused += reading.reused
            if reading.blocks is None:
                return i > 0 or reading.reused > 0
            experts = self.programs.read(*reading.blocks)
            if experts is not None:
                self._reads.append(Routes(experts, reading.rows))
        return True

    def _decode(self) -> bool:
        """Asks for the next decode steps of all slots, if any has something to do."""
        limit = self._limit()
        while not self._reserve(limit):
            pass
        running = {slot: live for slot, live in self.scheduler.running.items() if live.left > 0 or live.request.constraint is not None}
        if not running:
            return False
        wants = exchange.orders(running, limit, self.slots, dropped=list(self._dropped), allowed=self._allowed)
        began = self.programs.now()
        chunk = self.programs.draw(limit, *self.scheduler.tables(), **wants)
        self._dropped.clear()
        for live in running.values():
            live.in_flight += limit
        single, reads, self._reads = bool(wants["single"].any()), self._reads, []
        self._asked.append(Asked(chunk, running, limit, began, self.scheduler.busy, single, reads))
        return True

    def _limit(self) -> int:
        """How many steps to ask for: few where somebody waits for a slot that may fall free, or for the next piece."""
        running = self.scheduler.running.values()
        if any(live.waits and not live.replaying for live in running):
            return 1
        limit = STEPS
        if self.scheduler.busy:
            ends = [live.left for live in running if live.left > 0]
            limit = max(LEAST_STEPS, min([BUSY_STEPS, *ends]))
        patience = min((self._runs[live].patience for live in running if self._runs[live].patience is not None), default=None)
        if patience is not None:
            limit = min(limit, max(1, int(patience / self._step_seconds)) if self._step_seconds else LEAST_STEPS)
        return limit

    def _reserve(self, limit: int) -> bool:
        """Sees to pages for the next steps of all slots, if need be by taking them from those that come last."""
        for live in sorted(self.scheduler.running.values(), key=lambda live: live.rank):
            while live.slot is not None and live.left > 0 and not live.reserve(limit):
                if self._asked:  # what has been drawn may free pages, and must be known before a request starts again
                    while self._asked:
                        self._collect()
                    return False
                self._preempt(self.scheduler.last(live.shard))
        return True

    def _collect(self) -> None:
        """Takes in what the oldest steps that were asked for have drawn."""
        asked = self._asked[0]
        chunk, experts = self.programs.fetch((asked.chunk, [read.experts for read in asked.reads]))  # who is interrupted has lost nothing
        self._asked.popleft()
        exchange.note(asked.reads, experts)
        count = chunk.count.tolist()
        steps = max(count)
        self._measure(asked, steps)
        if asked.crowded and steps:
            self.stats.rows += steps * self.slots
            self.stats.busy_rows += sum(count)
        for slot, live in asked.owners.items():
            live.in_flight -= asked.limit
            if live.ended:
                continue
            n = count[slot]
            known = min(n, max(0, len(live.tokens) - live.seen))
            live.seen += n
            piece = exchange.piece(live, chunk, slot, known, n)
            live.tokens += piece.tokens
            self.stats.generated += len(piece.tokens)
            if live.request.constraint is not None:
                for token in piece.tokens:
                    live.request.constraint.advance(token)
                live.waits = bool(chunk.paused[slot])
            if piece.tokens or piece.finish_reason:
                self._runs[live].box.append(piece)
            if piece.finish_reason:
                self.stats.requests += 1
                self._drop(live, known_to_device=True)

    def _measure(self, asked: Asked, steps: int) -> None:
        """Keeps the time that a step takes, which all processes must take to be the same."""
        if not steps or all(run.patience is None for run in self._runs.values()):
            return
        seconds = np.array((self.programs.now() - asked.began) / steps)
        partition = self.params.partition
        if partition is not None and partition.processes > 1:
            seconds = processes.broadcast(seconds)
        self._step_seconds = float(seconds)

    def _end_cancelled_and_late(self) -> None:
        for live in self.scheduler.lives:
            if live.request.cancelled:
                self._drop(live)
        limited = [live for live in self.scheduler.lives if live.deadline is not None]
        if not limited:
            return
        late = np.array([self.programs.now() > live.deadline for live in limited])
        partition = self.params.partition
        if partition is not None and partition.processes > 1:
            late = processes.broadcast(late)
        for live, over in zip(limited, late, strict=True):
            if over:
                self._runs[live].box.append(Piece(live.request, [], [], [], "timeout"))
                self.stats.requests += 1
                self._drop(live)

    def _preempt(self, live: Live) -> None:
        self.stats.preemptions += 1
        if live.slot is not None:
            self._dropped.add(live.slot)
        self.scheduler.preempt(live)

    def _drop(self, live: Live, *, known_to_device: bool = False) -> None:
        if live.ended:
            return
        if live.slot is not None and not known_to_device:
            self._dropped.add(live.slot)
        self.scheduler.remove(live)
        self._runs.pop(live).open.remove(live)
