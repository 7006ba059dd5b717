"""Streams that are left, kept, closed and copied: their generation ends, or stands still, and takes nothing from the others."""

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

GREEDY = gj.Sampling(temperature=0, max_tokens=16, ignore_eos=True)


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
    streams = [llm.astream("x", dataclasses.replace(GREEDY, max_tokens=250)) for _ in range(2)]

    async def begin(streams):
        for stream in streams:
            await anext(stream)

    async def read_on(stream):
        return [piece async for piece in stream]

    asyncio.run(begin(streams))
    for stream in streams:
        with pytest.raises(RuntimeError, match=r"^a stream must be read on the event loop that asked for its first piece; .*; .*\.$"):
            asyncio.run(read_on(stream))
    assert streams[0].reply.tokens
    asyncio.run(streams[0].aclose())
    assert asyncio.run(read_on(streams[0])) == [] and streams[0].reply.finish_reason == "cancelled"
    del stream, streams
    gc.collect()  # what was raised holds what raised it
    assert llm.engine.wait_idle()


def test_a_time_limit_runs_from_the_call_whenever_the_stream_is_read(llm):
    llm.prepare()
    stream = llm.stream("x", dataclasses.replace(GREEDY, max_tokens=250), time_limit=0.05)
    time.sleep(0.1)
    assert list(stream) == [] and stream.reply.finish_reason == "timeout" and stream.reply.tokens == ()
    assert llm.stream("x", GREEDY, time_limit=1e9).reply.tokens == ()
