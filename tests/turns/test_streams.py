"""Streams that are left, kept, closed and copied: their generation ends, or stands still, and takes nothing from the others.

And tasks that run on an event loop together: their answers side by side, piece by piece or whole, refused before anything runs.
"""

import asyncio
import contextlib
import copy
import dataclasses
import gc
import pickle
import threading
import time

from byte_tokenizer import ByteTokenizer
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.turns import streams
from gptoss_jax.turns.completion import Completion
from gptoss_jax.turns.reply import Reply, ReplyPiece
from gptoss_jax.turns.running import SECONDS_PER_PIECE

GREEDY = gj.Sampling(temperature=0, max_tokens=16, ignore_eos=True)
LONG = dataclasses.replace(GREEDY, max_tokens=250)
TASKS = [
    gj.Task(messages="x", sampling=dataclasses.replace(GREEDY, temperature=1, seed=3), n=3),
    gj.Task(prompt="y", sampling=dataclasses.replace(GREEDY, logprobs=1)),
    gj.Task(messages="z", sampling=dataclasses.replace(GREEDY, max_tokens=3)),
]


@pytest.fixture
def llm():
    return gj.LLM(dataclasses.replace(small_model(), tokenizer=ByteTokenizer()), slots=4, context=512, chunk=16)


def test_streams_that_are_left_give_back_what_they_had(llm):
    long = dataclasses.replace(GREEDY, max_tokens=250)

    async def main():
        for leave in ("close", "break", "cancel"):
            stream = llm.astream("x", long)
            if leave == "cancel":
                task = asyncio.create_task(anext(stream))
                await asyncio.sleep(0.01)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                    await task
                continue
            async for _ in stream:
                break
            if leave == "close":
                await stream.aclose()
                assert stream.reply.tokens and stream.reply.finish_reason == "cancelled"
                assert [piece async for piece in stream] == []

    asyncio.run(main())
    stream = llm.stream("x", long)
    for _ in stream:
        break
    stream.close()
    assert stream.reply.tokens and stream.reply.finish_reason == "cancelled" and list(stream) == []
    assert llm.engine.wait_idle()


def test_a_stream_ends_with_its_block_however_that_is_left(llm):
    long = dataclasses.replace(GREEDY, max_tokens=250)

    async def main():
        stream = llm.astream("x", long)
        with pytest.raises(ZeroDivisionError):
            async with stream as same:
                async for _ in same:
                    raise ZeroDivisionError
        assert stream.reply.tokens and stream.reply.finish_reason == "cancelled"
        async with llm.astream("x", long):
            pass

    asyncio.run(main())
    with pytest.raises(ZeroDivisionError), llm.stream("x", long) as stream:
        for _ in stream:
            raise ZeroDivisionError
    assert stream.reply.tokens and stream.reply.finish_reason == "cancelled" and list(stream) == []
    with llm.stream("x", long) as unread:
        pass
    assert list(unread) == [] and unread.reply.tokens == () and unread.reply.finish_reason == "cancelled"
    with llm.stream("x", GREEDY) as stream:
        whole = list(stream)
    stream.close()
    assert whole and stream.reply == llm.chat("x", GREEDY)
    assert llm.engine.wait_idle()


def test_streams_that_are_kept_after_a_bare_break_cost_next_to_nothing_and_can_be_read_on(llm):
    long, kept = dataclasses.replace(GREEDY, max_tokens=100), []
    before = llm.engine.stats.generated
    for _ in range(6):
        stream = llm.stream("x", long)
        next(stream)
        kept.append(stream)
    wanted = llm.chat("x", long)
    drawn = llm.engine.stats.generated - before - len(wanted.tokens)
    assert drawn <= sum(len(stream.reply.tokens) + 24 for stream in kept)
    for stream in kept[:3]:
        list(stream)
        assert stream.reply == wanted
    del stream, kept
    assert llm.engine.wait_idle()


def test_a_stream_can_be_closed_by_another_thread_while_one_waits_for_its_next_piece(llm):
    for seconds in (0.0, 0.01, 0.05):
        stream = llm.stream("x", dataclasses.replace(GREEDY, max_tokens=400))
        next(stream)
        closing = threading.Timer(seconds, stream.close)
        closing.start()
        with contextlib.suppress(RuntimeError):  # where it is read in the moment in which it closes
            list(stream)
        closing.join()
        assert list(stream) == [] and stream.reply.finish_reason == "cancelled" and len(stream.reply.tokens) < 400
    assert llm.engine.wait_idle()


def test_what_belongs_to_one_process_says_so_where_it_is_copied(llm):
    for one in (llm, llm.engine, llm.stream("x", GREEDY), llm.astream("x", GREEDY)):
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"cannot be copied or pickled, for .*; .*\."):
                copied(one)
    with pytest.raises(TypeError, match="pass the checkpoint's path, and make an LLM there"):
        pickle.dumps(llm.chat)


def test_a_stream_is_read_by_one_task_and_says_where_it_was_dropped(llm):
    async def main():
        stream = llm.astream("x", GREEDY)
        first, second = await asyncio.gather(anext(stream), anext(stream), return_exceptions=True)
        assert first.text and isinstance(second, RuntimeError) and "one task at a time" in str(second)
        dropped = llm.astream("x", GREEDY)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(dropped), 1e-4)
        assert [piece async for piece in dropped] == []

    asyncio.run(main())


def test_a_stream_stays_on_the_event_loop_that_began_it(llm):
    kept = [llm.astream("x", dataclasses.replace(GREEDY, max_tokens=250)) for _ in range(2)]

    async def begin(kept):
        for stream in kept:
            await anext(stream)

    async def read_on(stream):
        return [piece async for piece in stream]

    asyncio.run(begin(kept))
    for stream in kept:
        with pytest.raises(RuntimeError, match=r"^a stream must be read on the event loop that asked for its first piece; .*; .*\.$"):
            asyncio.run(read_on(stream))
    assert kept[0].reply.tokens
    asyncio.run(kept[0].aclose())
    assert asyncio.run(read_on(kept[0])) == [] and kept[0].reply.finish_reason == "cancelled"
    del stream, kept
    gc.collect()  # what was raised holds what raised it
    assert llm.engine.wait_idle()


def test_a_time_limit_runs_from_the_call_whenever_the_stream_is_read(llm):
    llm.prepare()
    stream = llm.stream("x", dataclasses.replace(GREEDY, max_tokens=250), time_limit=0.05)
    time.sleep(0.1)
    assert list(stream) == [] and stream.reply.finish_reason == "timeout" and stream.reply.tokens == ()
    assert llm.stream("x", GREEDY, time_limit=1e9).reply.tokens == ()


# Tasks together


def read(llm, tasks, *, stream):
    async def main():
        async with await streams.running(llm, tasks, stream=stream, since=time.monotonic()) as running:
            return [pair async for pair in running], running.outcomes

    return asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_counted_through_all_tasks_and_are_those_of_a_run(llm, stream):
    pairs, outcomes = read(llm, TASKS, stream=stream)
    wanted = {id(one.task): one for one in llm.run(TASKS)}
    without = [dataclasses.replace(one, cached_tokens=0) for one in outcomes]  # which depend on what ran before
    assert without == [dataclasses.replace(wanted[id(task)], cached_tokens=0) for task in TASKS]
    whole = [pair for pair in pairs if isinstance(pair[1], Reply | Completion)]
    assert [part for _, part in sorted(whole, key=lambda pair: pair[0])] == [one for outcome in outcomes for one in outcome.answers]
    assert sorted(answer for answer, _ in whole) == list(range(5)) and stream == (len(pairs) > len(whole))
    for answer in range(5) if stream else ():
        *pieces, last = [part for one, part in pairs if one == answer]
        assert isinstance(last, Reply | Completion)
        if isinstance(last, Reply):
            assert "".join(one.text for one in pieces if one.answers) == last.text and all(isinstance(one, ReplyPiece) for one in pieces)


def test_pieces_are_paced_only_where_they_are_streamed(llm, monkeypatch):
    asked, aread = [], llm.engine.aread

    async def watched(requests):
        asked.extend((one.paced, one.seconds_per_piece) for one in requests)
        return await aread(requests)

    monkeypatch.setattr(llm.engine, "aread", watched)
    for stream in (True, False):
        read(llm, TASKS[2:], stream=stream)
    assert asked == [(True, SECONDS_PER_PIECE), (False, None)]


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (gj.Task(), ValueError, "either messages or a prompt"),
        (gj.Task(prompt=[5] * 600), ValueError, "context is 512"),
        (gj.Task(messages="x", options={"nothing": 1}), TypeError, "nothing"),
        (gj.Task(prompt=[-1]), ValueError, "token ids must lie in"),
        ("x", ValueError, "must be a gptoss_jax.Task"),
    ],
)
def test_what_is_refused_is_refused_before_anything_runs(llm, bad, error, message):
    before = dataclasses.replace(llm.engine.stats)
    with pytest.raises(error, match=message):
        read(llm, [TASKS[2], bad], stream=True)
    assert llm.engine.wait_idle() and llm.engine.stats == before


def test_no_tasks_have_no_answers(llm):
    assert read(llm, [], stream=True) == ([], [])


@pytest.mark.parametrize("how", ["close", "block", "cancel", "elsewhere"])
def test_who_leaves_takes_the_requests_along(llm, how):
    async def main():
        running = await streams.running(llm, [gj.Task(messages="x", sampling=LONG, n=4)], stream=True, since=time.monotonic())
        await anext(running)
        if how == "close":
            await running.aclose()
        elif how == "block":
            with pytest.raises(ZeroDivisionError):
                async with running:
                    raise ZeroDivisionError
        else:

            async def rest():
                return [pair async for pair in running]

            reading = asyncio.create_task(rest())
            await asyncio.sleep(0.01)
            if how == "cancel":
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
            else:
                await running.aclose()
                await asyncio.wait_for(reading, 30)
        assert [pair async for pair in running] == []
        [outcome] = running.outcomes
        assert {one.finish_reason for one in outcome.answers} == {"cancelled"} and any(one.tokens for one in outcome.answers)

    before = llm.engine.stats.generated
    asyncio.run(main())
    assert llm.engine.wait_idle() and llm.engine.stats.generated - before < 4 * 250


def test_a_time_limit_counts_from_when_a_task_was_asked_for(llm):
    async def main():
        since = time.monotonic() - 1000
        async with await streams.running(llm, [gj.Task(messages="x", sampling=LONG, time_limit=900)], stream=True, since=since) as running:
            return [part async for _, part in running][-1]

    assert asyncio.run(main()).finish_reason == "timeout"
