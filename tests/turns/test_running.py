"""Tasks on an event loop: their answers side by side, piece by piece or whole, refused before anything runs, left at any time."""

import asyncio
import dataclasses
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


class Fragile(ByteTokenizer):
    """Cannot spell one token."""

    broken: int | None = None

    def token_bytes(self, token):
        if token == self.broken:
            raise KeyError(f"no bytes for {self.broken}")
        return super().token_bytes(token)


@pytest.fixture(scope="module")
def llm():
    return gj.LLM(dataclasses.replace(small_model(), tokenizer=Fragile()), slots=4, context=512, chunk=16)


def read(llm, tasks, *, stream):
    async def main():
        async with await streams.running(llm, tasks, stream=stream, since=time.monotonic()) as running:
            return [pair async for pair in running], running.outcomes

    return asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_counted_through_all_tasks_and_are_those_of_a_run(llm, stream):
    pairs, outcomes = read(llm, TASKS, stream=stream)
    wanted = {id(one.task): one for one in llm.run(TASKS)}
    assert outcomes == [wanted[id(task)] for task in TASKS]
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


def test_an_answer_that_fails_says_so_and_the_others_go_on(llm):
    fine, broken = llm.generate(["x", "another"], GREEDY)
    llm.tokenizer.broken = min(set(broken.tokens) - set(fine.tokens))
    try:
        pairs, outcomes = read(llm, [gj.Task(prompt="another", sampling=GREEDY), gj.Task(prompt="x", sampling=GREEDY)], stream=False)
    finally:
        llm.tokenizer.broken = None
    assert [one.failed for one in outcomes] == [True, False] and dict(pairs)[1] == fine
    assert dict(pairs)[0].finish_reason == "error" and outcomes[0].error == dict(pairs)[0].error


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
