"""Requests that are drawn no further than a little ahead of who reads them: what stands still, who gives way, and that the bits stay."""

import asyncio
import time

from mixed_requests import SLOTS, everything, make, nothing_is_held, prompt, sampling
import pytest

from gptoss_jax.engine.requests import Request
from gptoss_jax.engine.stepping.stride import PACE
from gptoss_jax.sampling.options import Sampling

AHEAD = 3 * PACE[0]  # tokens of one that was just begun
LONG = Sampling(temperature=0, ignore_eos=True, max_tokens=85, logprobs=0)


def paced(i, how=LONG, **options):
    return Request(prompt(4, i), how, paced=True, **options)


def still(engine, seconds=10):
    """Waits until nothing is drawn any more; how many tokens have been."""
    until, seen = time.monotonic() + seconds, -1
    while engine.stats.generated != seen:
        assert time.monotonic() < until
        seen = engine.stats.generated
        time.sleep(0.1)
    return seen


def take(pieces, count):
    """The pieces until there are so many tokens."""
    got = []
    while sum(len(piece.tokens) for piece in got) < count:
        got.append(next(pieces))
    return got


def tokens(pieces):
    return [token for piece in pieces for token in piece.tokens]


@pytest.fixture(scope="module")
def engine():
    return make()


def full(engine):
    """A stream for every slot, each with its first tokens."""
    runs = [engine.run([paced(i)]) for i in range(SLOTS)]
    return [(pieces, take(pieces, 1)) for pieces in runs]


@pytest.fixture(scope="module")
def wanted(engine):
    return [one[0] for one in everything(engine, [Request(prompt(4, i), LONG) for i in range(6)])]


def test_one_that_nobody_reads_stands_still_and_goes_on_where_it_stood(engine, wanted):
    before = engine.stats.generated
    runs = full(engine)
    assert still(engine) - before <= sum(len(tokens(got)) + AHEAD for _, got in runs)
    for (pieces, got), all_of_it in zip(runs, wanted, strict=False):
        assert tokens([*got, *pieces]) == all_of_it
    nothing_is_held(engine)


def test_how_far_ahead_grows_with_what_was_read(engine, wanted):
    before, pieces = engine.stats.generated, engine.run([paced(0)])
    read = take(pieces, 50)
    assert still(engine) - before <= len(tokens(read)) + max(AHEAD, len(tokens(read)))
    assert tokens([*read, *pieces]) == wanted[0]


def test_those_that_stand_still_give_way_to_those_that_wait_and_come_back_to_the_same_bits(engine, wanted):
    runs, before = full(engine), engine.stats.preemptions
    assert [one[0] for one in everything(engine, [Request(prompt(4, i), LONG) for i in (4, 5)])] == wanted[4:]
    assert engine.stats.preemptions > before
    assert not engine.wait_idle(0.05)
    for (pieces, got), all_of_it in zip(runs, wanted, strict=False):
        assert tokens([*got, *pieces]) == all_of_it
    nothing_is_held(engine)


@pytest.mark.thorough
def test_those_that_stand_still_give_their_pages_to_those_that_go_on(wanted):
    engine = make(cache_tokens=128)
    pieces = engine.run([paced(0)])
    got = take(pieces, 30)
    assert [one[0] for one in everything(engine, [Request(prompt(4, i), LONG) for i in (1, 2)])] == wanted[1:3]
    assert engine.stats.preemptions
    assert tokens([*got, *pieces]) == wanted[0]
    nothing_is_held(engine)


def test_a_slow_reader_holds_nobody_up_and_gets_all_of_it(engine, wanted):
    slow = engine.run([paced(0)])
    got = take(slow, 1)
    assert everything(engine, [Request(prompt(4, i), LONG) for i in range(1, 4)])[2][0] == wanted[3]
    for piece in slow:
        got.append(piece)
        time.sleep(0.02)
    assert tokens(got) == wanted[0] and got[-1].finish_reason == "length"
    nothing_is_held(engine)


@pytest.mark.thorough
@pytest.mark.parametrize("parked", [False, True], ids=["in its slot", "without a place"])
def test_one_that_stands_still_can_be_left_and_its_time_can_be_over(engine, parked):
    left, late = engine.run([paced(0)]), engine.run([paced(1, time_limit=2.0)])
    take(left, 1)
    got = take(late, 1)
    if parked:
        everything(engine, [Request(prompt(4, i), LONG) for i in range(6)])
    left.close()
    time.sleep(2.1)
    got += list(late)
    assert got[-1].finish_reason == "timeout" and 0 < len(tokens(got)) <= PACE[0] + AHEAD
    nothing_is_held(engine)


def test_an_engine_of_which_everything_stands_still_takes_no_time(engine):
    runs = full(engine)
    still(engine)
    began = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - began < 0.25  # one that spins takes all of it
    del runs
    nothing_is_held(engine)


class Free:
    """A constraint that allows everything, a token at a time."""

    pauses, problem = (), ""

    def mask(self, out):
        out[:] = 0xFFFFFFFF
        return True

    def advance(self, token): ...


def test_guided_ones_are_paced_too(engine, wanted):
    pieces = engine.run([paced(0, constraint=Free())])
    got = take(pieces, 1)
    before = still(engine)
    assert everything(engine, [Request(prompt(4, i), LONG) for i in range(1, 6)])[1][0] == wanted[2]
    assert engine.stats.generated - before == 5 * LONG.max_tokens
    assert tokens([*got, *pieces]) == wanted[0]
    nothing_is_held(engine)


def test_event_loops_are_waited_for_too(engine, wanted):
    async def main():
        reader = await engine.aread([paced(0)])
        got = await reader.take()
        before = engine.stats.generated
        assert await asyncio.to_thread(still, engine) - before <= AHEAD
        while reader.open:
            got += await reader.take()
        return tokens(got)

    assert asyncio.run(main()) == wanted[0]
    nothing_is_held(engine)


@pytest.mark.thorough
def test_readers_of_every_speed_get_the_same_bits_in_a_cache_that_is_too_small():
    engine = make(cache_tokens=128)
    settings = [sampling(i, max_tokens=60, ignore_eos=True) for i in range(8)]
    wanted = everything(make(), [Request(prompt(4 + i, i), how) for i, how in enumerate(settings)])

    async def read(i):
        reader, got = await engine.aread([Request(prompt(4 + i, i), settings[i], paced=True)]), []
        try:
            while reader.open:
                got += await reader.take()
                await asyncio.sleep(0.05 * (i % 3))
        finally:
            reader.close()
        return tokens(got)

    async def main():
        return await asyncio.gather(*map(read, range(8)))

    for _ in range(3):
        assert asyncio.run(main()) == [one[0] for one in wanted]
    assert engine.stats.preemptions
    nothing_is_held(engine)
