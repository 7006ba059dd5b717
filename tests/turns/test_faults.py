"""What goes wrong with one request's text, task or task's iterable is its own; and the same calls on an event loop."""

import asyncio
import dataclasses
import itertools
import time

from byte_tokenizer import ByteTokenizer
import numpy as np
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.engine.requests import Piece, Request
from gptoss_jax.turns import streams
from gptoss_jax.turns.completion import CompletionBuilder
from gptoss_jax.turns.reply import ReplyBuilder

GREEDY = gj.Sampling(temperature=0, max_tokens=16, ignore_eos=True)


class Fragile(ByteTokenizer):
    """Cannot spell one token."""

    broken: int | None = None

    def token_bytes(self, token):
        if token == self.broken:
            raise KeyError(f"no bytes for {self.broken}")
        return super().token_bytes(token)


@pytest.fixture
def llm():
    return gj.LLM(dataclasses.replace(small_model(), tokenizer=Fragile()), slots=4, context=512, chunk=16)


def broken_by(llm, prompt, others):
    """A token that the continuation of a prompt has and those of others have not."""
    own, *rest = [set(one.tokens) for one in llm.generate([prompt, *others], GREEDY)]
    return min(own.difference(*rest))


def test_a_token_that_cannot_be_spelled_ends_its_own_continuation(llm):
    others = ["another", "and one more"]
    wanted = llm.generate(["a prompt", *others], GREEDY)
    llm.tokenizer.broken = broken_by(llm, "a prompt", others)
    broken, *rest = llm.generate(["a prompt", *others], GREEDY)
    assert rest == wanted[1:]
    assert broken.finish_reason == "error" and broken.error.startswith("its text could not be made after ")
    assert f"KeyError: 'no bytes for {llm.tokenizer.broken}'" in broken.error
    assert broken.tokens == wanted[0].tokens[: len(broken.tokens)] and broken.tokens[-1] == llm.tokenizer.broken
    outcomes = {
        one.task.key: one for one in llm.run(gj.Task(key=i, prompt=p, sampling=GREEDY) for i, p in enumerate(["a prompt", *others]))
    }
    assert outcomes[0].failed and outcomes[0].error == broken.error and outcomes[0].answers == (broken,)
    assert [outcomes[i].answers for i in (1, 2)] == [(wanted[1],), (wanted[2],)]
    assert not outcomes[1].failed and outcomes[1].error is None


def test_an_answer_that_fails_on_an_event_loop_says_so_and_the_others_go_on(llm):
    async def main():
        tasks = [gj.Task(prompt=one, sampling=GREEDY) for one in ("another", "x")]
        async with await streams.running(llm, tasks, stream=False, since=time.monotonic()) as running:
            return [pair async for pair in running], running.outcomes

    fine = llm.generate("x", GREEDY)
    llm.tokenizer.broken = broken_by(llm, "another", ["x"])
    pairs, outcomes = asyncio.run(main())
    assert [one.failed for one in outcomes] == [True, False] and dict(pairs)[1] == fine
    assert dict(pairs)[0].finish_reason == "error" and outcomes[0].error == dict(pairs)[0].error


@pytest.mark.parametrize("make", [CompletionBuilder, ReplyBuilder])
def test_a_builder_s_result_never_raises_and_nothing_comes_after_its_end(make):
    tokenizer = Fragile()
    request = Request([1], gj.Sampling())
    builder = make(request, tokenizer)
    builder.add(Piece(request, [65, 66], [-1.0, -1.0], [{}, {}], None))
    tokenizer.broken = 67
    builder.add(Piece(request, [67], [-1.0], [{}], None))
    assert request.cancelled
    assert builder.add(Piece(request, [68], [-1.0], [{}], "length")) == []
    result = builder.result()
    assert (result.finish_reason, result.tokens) == ("error", (65, 66, 67))
    assert "KeyError" in result.error


def test_an_engine_s_error_is_in_the_result():
    request = Request([1], gj.Sampling())
    for make in (CompletionBuilder, ReplyBuilder):
        builder = make(request, ByteTokenizer())
        builder.add(Piece(request, [65], [-1.0], [{}], None))
        builder.add(Piece(request, [66], [-1.0], [{}], "error", error="logits must be finite"))
        result = builder.result()
        assert (result.finish_reason, result.error, result.tokens) == ("error", "logits must be finite", (65, 66))


def test_a_task_that_nobody_could_foresee_is_its_own_outcome(llm):
    class Strange(dict):
        def get(self, *_):
            raise ZeroDivisionError("a message that cannot be looked at")

        __getitem__ = keys = __iter__ = get

    tasks = [gj.Task(key=i, prompt="x", sampling=GREEDY) for i in range(6)]
    tasks[2] = gj.Task(key=2, messages=[Strange(role="user")], sampling=GREEDY)
    tasks[3] = gj.Task(key=3, prompt=np.broadcast_to(5, 10**12), sampling=GREEDY)
    tasks[4] = gj.Task(key=4, prompt=[10**6000], sampling=GREEDY)
    done = {one.task.key: one for one in llm.run(tasks)}
    assert sorted(done) == list(range(6))
    assert all(done[i].error and not done[i].answers for i in (2, 3, 4))
    assert done[2].failed and "ZeroDivisionError" in done[2].error
    assert len({done[i].answers for i in (0, 1, 5)}) == 1


def test_an_iterable_that_raises_loses_nothing_that_was_asked_for(llm):
    def tasks():
        yield from (gj.Task(key=i, prompt="x", sampling=GREEDY) for i in range(5))
        raise OSError("the disk is gone")

    done = []
    with pytest.raises(OSError, match="the disk is gone"):
        for one in llm.run(tasks()):
            done.append(one.task.key)
    assert sorted(done) == list(range(5))
    assert llm.engine.wait_idle()


@pytest.mark.parametrize(
    "options",
    [{"time_limit": 10**400}, {"time_limit": float("nan")}, {"priority": 10**30}, {"n": 10**9}, {"tool_choice": ["auto"] * 10**6}],
)
def test_numbers_without_measure_are_refused_in_a_short_sentence(llm, options):
    [done] = llm.run([gj.Task(prompt="x", sampling=GREEDY, **options)])
    assert next(iter(options)) in done.error and len(done.error) < 400 and not done.failed


def test_refused_tasks_come_back_at_once_however_many_there_are(llm):
    def tasks():
        yield gj.Task(key="long", prompt="x", sampling=dataclasses.replace(GREEDY, max_tokens=100))
        for i in itertools.count():
            yield gj.Task(key=i, prompt="")

    seen = []
    for one in llm.run(tasks()):
        seen.append(one.task.key)
        if len(seen) > 200 and "long" in seen:
            break
    assert [key for key in seen if key != "long"] == list(range(len(seen) - 1))
    assert llm.engine.wait_idle()


# Event loops


def test_the_same_calls_on_an_event_loop(llm):
    greedy = dataclasses.replace(GREEDY, ignore_eos=False)
    wanted = [llm.generate(["a", "b"], greedy), llm.generate("a", greedy, n=2), llm.chat("x", greedy, current_date="2025-01-01")]

    async def main():
        stream = llm.astream("x", greedy, current_date="2025-01-01")
        with pytest.raises(RuntimeError, match="once its first piece was asked for"):
            _ = stream.reply
        pieces = [piece async for piece in stream]
        got = await asyncio.gather(
            llm.agenerate(["a", "b"], greedy), llm.agenerate("a", greedy, n=2), llm.achat("x", greedy, current_date="2025-01-01")
        )
        return got, stream.reply, pieces

    got, reply, pieces = asyncio.run(main())
    assert got == wanted and reply == wanted[2]
    assert pieces == list(llm.stream("x", greedy, current_date="2025-01-01"))


def test_bad_turns_are_refused_on_an_event_loop_too(llm):
    async def main():
        for ask, message in (
            (lambda: llm.achat([]), "message"),
            (lambda: llm.agenerate(""), "a prompt needs at least one token"),
            (lambda: llm.achat("x", sampling=3), "sampling must be a Sampling"),
            (lambda: anext(llm.astream([{"role": "wizard", "content": "x"}])), "role"),
        ):
            with pytest.raises(ValueError, match=message):
                await ask()

    asyncio.run(main())


def test_time_limits_count_while_others_hold_asyncio_s_threads(llm):
    async def main():
        loop = asyncio.get_running_loop()
        busy = [loop.run_in_executor(None, time.sleep, 0.6) for _ in range(40)]
        done = await llm.agenerate("x", GREEDY, time_limit=30.0)
        assert done.finish_reason == "length" and not all(one.done() for one in busy)
        for one in busy:
            one.cancel()

    asyncio.run(main())


def test_what_is_no_task_is_refused(llm):
    done = list(llm.run(["x", gj.Task(prompt="x", sampling="greedy"), gj.Task(prompt="x", sampling=GREEDY)]))
    assert [one.error is None for one in sorted(done, key=lambda one: one.error or "~")] == [False, False, True]
    assert any("a task must be a gptoss_jax.Task; got 'x'" in (one.error or "") for one in done)
    assert any("sampling must be a Sampling; got str" in (one.error or "") for one in done)
