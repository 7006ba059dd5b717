"""The engine's thread: it ends with its engine and with the program, is not there after a fork, and no interrupt of a caller reaches it."""

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref

from mixed_requests import everything, fresh, make, nothing_is_held, prompt
import pytest

from gptoss_jax.engine.requests import Request
from gptoss_jax.sampling.options import Sampling

ENDLESS = Sampling(temperature=0, ignore_eos=True, max_tokens=90)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "gptoss_jax engine"]


def test_there_is_no_thread_before_a_request_and_none_after_its_engine():
    gc.collect()
    before = set(threads())
    engine = make()
    assert set(threads()) == before
    everything(engine, fresh()[:2])
    [own] = set(threads()) - before
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    own.join(10)
    assert gone() is None and not own.is_alive()


def test_an_engine_that_is_let_go_in_the_middle_of_a_run_ends_too():
    gc.collect()
    before = set(threads())
    pieces = make().run([Request(prompt(3), ENDLESS, seconds_per_piece=0.0)])
    next(pieces)
    [own] = set(threads()) - before
    del pieces
    gc.collect()
    own.join(10)
    assert not own.is_alive()


def test_an_idle_engine_takes_no_time():
    before, engine = set(threads()), make()
    everything(engine, fresh()[:2])
    assert engine.wait_idle()
    [own] = set(threads()) - before
    used = _seconds(own)
    time.sleep(0.5)
    assert _seconds(own) - used < 0.25  # one that spins takes all of it


def _seconds(thread) -> float:
    with open(f"/proc/self/task/{thread.native_id}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("rounds", [20, pytest.param(100, marks=pytest.mark.thorough), pytest.param(300, marks=pytest.mark.slow)])
def test_interrupts_at_any_moment_leave_an_engine_that_works(rounds):
    engine, rng = make(cache_tokens=220), random.Random(0)
    wanted = everything(engine, fresh())
    began = time.monotonic()
    everything(engine, fresh())
    usual = time.monotonic() - began

    def interrupt(*_):
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(rounds):
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0005, usual))
            try:
                everything(engine, fresh())
            except KeyboardInterrupt:
                pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert everything(engine, fresh()[:4]) == wanted[:4]
    except KeyboardInterrupt:  # between the end of a call and that of the alarm
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    nothing_is_held(engine)


PROGRAM = """
    import os, sys, threading, time
    sys.path[:0] = {path!r}
    from mixed_requests import fresh, make, prompt
    from gptoss_jax.engine.requests import Request
    from gptoss_jax.sampling.options import Sampling
    engine = make()
    endless = lambda: Request(prompt(3), Sampling(temperature=0, ignore_eos=True, max_tokens=90), seconds_per_piece=0.0)
"""
ENDS = {
    "after a run": "list(engine.run(fresh()[:2]))",
    "in the middle of a run": "pieces = engine.run([endless()]); next(pieces)",
    "with a thread that reads": """
        def read():
            while True:
                list(engine.run([endless()]))
        engine.prepare()
        threading.Thread(target=read, daemon=True).start()
        time.sleep(1)
    """,
    "by an exception": "pieces = engine.run([endless()]); next(pieces); sys.excepthook = lambda *_: None; raise SystemExit(0)",
    "after a run that was left": "for piece in engine.run([endless()]): break",
    "in a thread that outlives the main one": """
        def ask():
            threading.main_thread().join()
            try:
                list(engine.run(fresh()[:2]))
            except RuntimeError as error:
                assert "before the main thread has ended" in str(error)
                print("refused")
        threading.Thread(target=ask).start()
    """,
    "in a forked child": """
        list(engine.run(fresh()[:2]))
        child = os.fork()
        if child == 0:
            try:
                engine.run([endless()])
            except RuntimeError as error:
                os._exit(7 if "belongs to the process that made it" in str(error) and "spawn" in str(error) else 8)
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert len(list(engine.run(fresh()[:1])))
    """,
}


@pytest.mark.quick("in the middle of a run", "after a run that was left", "in a forked child")
@pytest.mark.parametrize("name", ENDS)
def test_a_program_ends(name, tmp_path):
    body = textwrap.dedent(PROGRAM.format(path=sys.path)) + textwrap.dedent(ENDS[name])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", body], capture_output=True, text=True, timeout=300, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("refused" in done.stdout) == ("refused" in body)
    assert "Traceback" not in done.stderr and "Fatal" not in done.stderr, done.stderr[-2000:]


# Event loops


async def read(engine, requests):
    """As `everything`, on an event loop."""
    seen = {id(r): ([], [], [], []) for r in requests}
    reader = await engine.aread(requests)
    try:
        while reader.open:
            for piece in await reader.take():
                for to, new in zip(seen[id(piece.request)], (piece.tokens, piece.logprobs, piece.top_logprobs), strict=False):
                    to += new
                if piece.finish_reason:
                    seen[id(piece.request)][3].append(piece.finish_reason)
    finally:
        reader.close()
    return [seen[id(r)] for r in requests]


def test_an_event_loop_reads_what_a_thread_does():
    engine = make()
    wanted = everything(engine, fresh())

    async def main():
        return await asyncio.gather(*(read(engine, [request]) for request in fresh()))

    assert [one for [one] in asyncio.run(main())] == wanted
    nothing_is_held(engine)


def test_a_cancelled_task_takes_its_request_with_it_also_one_that_waits():
    engine = make(slots=1)
    wanted = everything(engine, fresh()[:1])

    async def main():
        long = [asyncio.create_task(read(engine, [Request(prompt(3, i), ENDLESS, seconds_per_piece=0.0)])) for i in range(6)]
        await asyncio.sleep(0.05)
        for task in long:
            task.cancel()
        got = await read(engine, fresh()[:1])
        assert all(isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*long, return_exceptions=True))
        return got

    assert asyncio.run(main()) == wanted
    nothing_is_held(engine)


def test_an_event_loop_that_is_closed_with_streams_open_leaves_nothing_behind():
    engine = make()
    engine.prepare()
    loop = asyncio.new_event_loop()

    async def begin():
        pieces = await engine.aread([Request(prompt(3), ENDLESS, seconds_per_piece=0.0)])
        await pieces.take()
        return pieces

    pieces = loop.run_until_complete(begin())
    loop.close()
    wanted = everything(engine, fresh()[:2])
    nothing_is_held(engine)
    assert everything(engine, fresh()[:2]) == wanted
    del pieces


def test_bad_requests_on_an_event_loop_are_refused_as_elsewhere():
    engine = make()

    async def main():
        with pytest.raises(ValueError, match="a prompt needs at least one token"):
            await engine.aread([Request([], ENDLESS)])

    asyncio.run(main())
