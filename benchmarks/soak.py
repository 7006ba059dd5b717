"""A soak of the engine: thousands of mixed requests through few slots and few pages, and nothing may be left behind.

    python -m benchmarks.soak                   # 2,000 requests on nano
    python -m benchmarks.soak --checkpoint=tests/data/tiny --requests=200

Requests of all lengths, half of them with one of a few shared prefixes, greedy or drawn with a seed; some are cancelled while they run,
some have a time limit, some name what the model does not have and are refused; some runs are left early. The cache is so small that
requests have to give way to each other. After every round nobody may hold a page or a slot, and once the engine is prepared nothing may be
compiled. What runs to its end is asked for again in a later round: it must be answered as before, whatever ran beside it. What is wrong
raises.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import json
import time

from absl import app, flags
import jax
import numpy as np

from benchmarks import device
from gptoss_jax.engine.engine import Engine
from gptoss_jax.engine.requests import Request
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.weights import loading

_KINDS = (  # how requests are drawn
    {"temperature": 0},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.5, "presence_penalty": 1.0, "repetition_penalty": 1.2, "top_k": 40},
    {"temperature": 0.7, "min_p": 0.05, "logprobs": 2, "logit_bias": {3: -5.0}},
)
_PREFIXES = 3
_CANCELLED, _LIMITED, _REFUSED, _LEFT = 0.05, 0.05, 0.03, 0.1  # shares: of pieces, of requests twice, of rounds


@dataclasses.dataclass
class Soaked:
    """What a soak went through.

    Attributes:
      ended: requests by how they ended: "length", "stop", "timeout", "cancelled", "refused", or "left" with the run they were in.
      compared: requests that were answered more than once, always alike.
      compilations: after the programs were prepared.
    """

    ended: dict[str, int]
    compared: int
    compilations: int
    preemptions: int
    computed: int
    reused: int
    generated: int
    occupancy: float
    seconds: float


def soak(
    model: loading.Model, *, requests: int, slots: int, context: int, cache_tokens: int, chunk: int, round_size: int, seed: int
) -> Soaked:
    """Runs them, a round at a time.

    Args:
      slots, context, cache_tokens, chunk: of the engine.
      requests: how many, those that are refused included.
      round_size: most requests of a round.
      seed: of everything.

    Raises:
      RuntimeError: something was compiled, a page or slot is still held, or an answer changed.
    """
    rng, page = np.random.default_rng(seed), 16
    sizes = {"slots": slots, "context": context, "cache_tokens": cache_tokens, "chunk": chunk, "page": page}
    engine = Engine(model.params, model.config, eos_token_ids=model.config.eos_token_ids, **sizes)
    engine.prepare()
    pool = list(_pool(rng, max(8, requests // 4), context, page, model.config.vocab_size))
    answers: dict[int, list] = {}
    ended, compared, began = Counter(), 0, time.perf_counter()
    with compilations() as compiled:
        while (left := requests - ended.total()) > 0:
            numbers = rng.integers(0, len(pool), min(left, int(rng.integers(1, round_size, endpoint=True)))).tolist()
            refused = [number for number in numbers if rng.random() < _REFUSED]
            numbers = numbers[: len(numbers) - len(refused)]
            for number in refused:
                _refused(engine, pool[number], rng)
            ended["refused"] += len(refused)
            asked = [Request(*pool[number], priority=int(rng.integers(3))) for number in numbers]
            for request in asked:
                if rng.random() < _LIMITED:
                    request.time_limit = float(rng.choice([0.0, 0.01, 0.1]))
            reasons, got = _round(engine, asked, rng)
            for number, request in zip(numbers, asked, strict=True):
                reason = reasons.get(id(request), "cancelled" if request.cancelled else "left")
                ended[reason] += 1
                if reason in ("length", "stop"):
                    compared += number in answers
                    if answers.setdefault(number, got[id(request)]) != got[id(request)]:
                        raise RuntimeError(f"an answer must not depend on what runs beside it; that of request {number} changed.")
            check_nothing_is_held(engine)
    if compiled:
        raise RuntimeError(f"nothing may be compiled after the engine is prepared; there were {len(compiled)} events, as {compiled[0]}.")
    stats, seconds = engine.stats, time.perf_counter() - began
    tally = {"preemptions": stats.preemptions, "computed": stats.computed, "reused": stats.reused, "generated": stats.generated}
    return Soaked(dict(ended.most_common()), compared, len(compiled), **tally, occupancy=stats.occupancy, seconds=seconds)


def check_nothing_is_held(engine: Engine, seconds: float = 60) -> None:
    """Raises RuntimeError where after so many seconds a page has a user, a slot an owner, or somebody waits."""
    idle, scheduler = engine.wait_idle(seconds), engine.scheduler
    if not idle or scheduler.lives or scheduler.waiting:
        raise RuntimeError(f"nobody may be left; there are {len(scheduler.lives)} requests, {scheduler.waiting} wait.")
    for pages in scheduler.pages:
        if pages.full.used or pages.ring.used:
            raise RuntimeError(f"no page may be in use; {pages.full.used} of full layers are, {pages.ring.used} of sliding ones.")
        if pages.full.available != pages.full.count or pages.ring.available != pages.ring.count:
            raise RuntimeError("every page must be to be had again; some are lost.")


def _pool(rng: np.random.Generator, count: int, context: int, page: int, vocab_size: int) -> Iterator[tuple[list[int], Sampling]]:
    """Different requests."""
    prefixes = [rng.integers(0, vocab_size, context // 2 + page // 2).tolist() for _ in range(_PREFIXES)]
    for i in range(count):
        begin = prefixes[int(rng.integers(_PREFIXES))] if rng.random() < 0.5 else []
        own = rng.integers(0, vocab_size, rng.integers(1, context - len(begin) - 1)).tolist()
        options = _KINDS[int(rng.integers(len(_KINDS)))]
        yield begin + own, Sampling(seed=i, max_tokens=int(rng.integers(1, context // 2)), **options)


def _refused(engine: Engine, good: tuple[list[int], Sampling], rng: np.random.Generator) -> None:
    """Asks for what the model does not have."""
    prompt, sampling = good
    vocab_size = engine.config.vocab_size
    wrong = [
        (prompt + [vocab_size], sampling),
        ([], sampling),
        (prompt * engine.context, sampling),
        (prompt, dataclasses.replace(sampling, logit_bias={vocab_size: 1.0})),
    ][int(rng.integers(4))]
    try:
        engine.run([Request(*good), Request(*wrong)])
    except ValueError:
        return
    raise RuntimeError("a request for what the model does not have must be refused; one was not.")


def _round(engine: Engine, asked: Sequence[Request], rng: np.random.Generator) -> tuple[dict[int, str], dict[int, list]]:
    """Reasons that requests ended with, and what they were answered, by the requests' ids. Some are cancelled meanwhile, or all left."""
    reasons, got = {}, {id(request): [] for request in asked}
    stop = int(rng.integers(1, 20)) if rng.random() < _LEFT else None
    patience = (None, 0.0, 0.05)[int(rng.integers(3))]
    lazily = rng.random() < 0.5
    for request in asked:
        request.seconds_per_piece = patience
    with contextlib.closing(engine.run(iter(asked) if lazily else asked)) as pieces:
        for i, piece in enumerate(pieces):
            got[id(piece.request)] += zip(piece.tokens, piece.logprobs, piece.top_logprobs or [None] * len(piece.tokens), strict=True)
            if piece.finish_reason:
                reasons[id(piece.request)] = piece.finish_reason
            elif rng.random() < _CANCELLED:
                piece.request.cancelled = True
            if i == stop:
                break
    return reasons, got


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Names of JAX's events about compiling, as they come."""
    names = []
    listener = lambda name, *_, **__: names.append(name) if "compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def define_flags(to: flags.FlagValues) -> None:
    """Adds this program's flags to a set of them."""
    flags.DEFINE_string("checkpoint", "nano", "Checkpoint directory.", to)
    flags.DEFINE_integer("requests", 2000, "How many.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("round", 60, "Most requests of a round.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("slots", 8, "Requests that decode side by side.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("context", 128, "Most tokens of a prompt and its answer.", lower_bound=32, flag_values=to)
    flags.DEFINE_integer("cache_tokens", 400, "Tokens that the cache holds.", lower_bound=32, flag_values=to)
    flags.DEFINE_integer("chunk", 64, "Prompt tokens a dispatch.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("seed", 0, "Of everything.", flag_values=to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    model = loading.load(given.checkpoint, progress=False)
    sizes = {"slots": given.slots, "context": given.context, "cache_tokens": given.cache_tokens, "chunk": given.chunk}
    print(f"{model!r}\n{', '.join(f'{name} {value}' for name, value in sizes.items())}, {device.about()}", flush=True)
    soaked = soak(model, requests=given.requests, round_size=given.round, seed=given.seed, **sizes)
    ended = ", ".join(f"{count:,} {reason}" for reason, count in soaked.ended.items())
    print(f"{sum(soaked.ended.values()):,} requests in {soaked.seconds:.1f} s: {ended}")
    print(f"{soaked.preemptions:,} gave way and were computed again; {soaked.compared:,} were answered again, all alike")
    print(f"no compilation, no page and no slot held; {soaked.reused:,} prompt tokens reused, {soaked.computed:,} computed")
    print(json.dumps(device.about() | dataclasses.asdict(soaked)))


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
