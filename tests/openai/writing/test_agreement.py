"""What is streamed and what is whole agree to the byte, whatever the model wrote and however it is cut into pieces."""

import json
import random

from as_written import random_streams, written
import folded
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
from small_vocabulary import small_vocabulary

from gptoss_jax.engine.requests import Piece, Request
from gptoss_jax.openai import writing
from gptoss_jax.openai.asked import Asked
from gptoss_jax.openai.echoed import Echoed
from gptoss_jax.openai.events import sse
from gptoss_jax.openai.told import Told
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.turns.completion import Completion, CompletionBuilder, CompletionPiece
from gptoss_jax.turns.reply import ReplyBuilder
from gptoss_jax.turns.task import Outcome, Task

TOLD = Told("0f", created=5, completed=9, model="m", cached=True)
REASONS = ("stop", "length", "timeout", "cancelled")
GIVEN = (66, 67)  # ids whose log-probabilities are asked for
sizes = st.lists(st.integers(1, 5), min_size=1, max_size=8)


def streams() -> st.SearchStrategy[list[int]]:
    """Tokens of turns, most of them malformed."""
    return st.integers(0, 2**32).map(lambda seed: next(random_streams(small_vocabulary(), seed)))


def run(builder, request, tokens, cuts, reason) -> tuple:
    """The pieces that a builder makes of tokens that come a few at a time, and its result."""
    pieces, at, i = [], 0, 0
    while at < len(tokens) or not i:
        part = tokens[at : at + cuts[i % len(cuts)]]
        at, i = at + len(part), i + 1
        numbers = [-((token % 7) + at) / 8 for token in part]
        tops = [{65: value - 1.0, token: value} for token, value in zip(part, numbers, strict=True)]
        others = [{other: value - 2.0 for other in (GIVEN[0], token)} for token, value in zip(part, numbers, strict=True)]
        given_ids = {"given_logprobs": others} if request.sampling.logprob_token_ids else {}
        pieces += builder.add(Piece(request, part, numbers, tops, reason if at >= len(tokens) else None, **given_ids))
        if request.cancelled:
            break
    return pieces, builder.result()


def turn(tokens, cuts, *, reason="stop", logprobs=1, stop=(), given_ids=()) -> tuple:
    request = Request([1], Sampling(logprobs=logprobs, stop=stop, logprob_token_ids=given_ids))
    return run(ReplyBuilder(request, small_vocabulary()), request, tokens, cuts, reason)


def told(asked, answers, outcomes, **more) -> list:
    """The events of answers, each of them some pieces and the whole, that take turns."""
    events = writing.events(asked, TOLD, small_vocabulary(), **more)
    out, left, order = events.begin(), {i: list(pieces) for i, (pieces, _) in enumerate(answers)}, random.Random(len(answers))
    while left:
        number = order.choice(list(left))
        if left[number]:
            out += events.add(number, left[number].pop(0))
        else:
            out += events.done(number, answers[number][1])
            del left[number]
    out += events.end(outcomes)
    assert all(sse(event).endswith(b"\n\n") for event in out)
    return json.loads(json.dumps(out))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(streams(), sizes, st.sampled_from(REASONS)), min_size=1, max_size=3),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([(), GIVEN]),
    st.booleans(),
)
def test_chat(turns, logprobs, given_ids, include_usage):
    answers = [turn(tokens, cuts, reason=reason, logprobs=logprobs, given_ids=given_ids) for tokens, cuts, reason in turns]
    task = Task(messages="", n=len(answers), sampling=Sampling(logprobs=logprobs))
    outcome = Outcome(task, tuple(whole for _, whole in answers), 7, cached_tokens=3)
    asked = Asked("chat", (task,), {"stream": True, "stream_options": {"include_usage": include_usage}})
    whole = writing.body(asked, TOLD, [outcome], small_vocabulary())
    streamed = folded.chat(told(asked, answers, [outcome]), logprobs=logprobs is not None)
    if not include_usage:
        assert streamed.pop("usage") is None and whole.pop("usage")
    assert streamed == json.loads(json.dumps(whole))
    beside = 2 * (logprobs or 0) + (0 if logprobs is None or not given_ids else 2 - (logprobs or 0))  # each token once, but of two numbers
    entries = [entry for choice in whole["choices"] if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert all(len(entry["top_logprobs"]) <= beside and bool(entry["top_logprobs"]) == bool(beside) for entry in entries)


@settings(max_examples=60, deadline=None)
@given(streams(), sizes, st.sampled_from(REASONS), st.sampled_from([None, 0, 1]))
def test_responses(tokens, cuts, reason, logprobs):
    pieces, reply = turn(tokens, cuts, reason=reason, logprobs=logprobs)
    task = Task(messages="", sampling=Sampling(logprobs=logprobs))
    asked, outcome = Asked("responses", (task,), {"stream": True}), Outcome(task, (reply,), 7)
    events = told(asked, [(pieces, reply)], [outcome])
    last = folded.response(events)
    assert last == json.loads(json.dumps(writing.body(asked, TOLD, [outcome], small_vocabulary())))
    assert last["status"] == ("completed" if reason == "stop" else "incomplete")
    kinds = {"analysis": "reasoning"}
    expected = [
        ("function_call" if m.tool_call else kinds.get(m.channel, "message"), m.text)
        for m in reply.parsed.messages
        if m.role == "assistant"
    ]
    text = lambda item: item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
    assert [(item["type"], text(item)) for item in last["output"]] == expected
    assert len({item["id"] for item in last["output"]}) == len(expected)
    assert all(item.get("status") == "completed" for item in last["output"][:-1])


@settings(max_examples=60, deadline=None)
@given(st.text("abé€ 😀", max_size=8), st.text("abé€ 😀", min_size=1, max_size=3), sizes, st.sampled_from(["chat", "responses"]))
def test_stop_strings(text, stop, cuts, endpoint):
    small = small_vocabulary()
    tokens = written(small, "C!analysisM!HmE!S!assistantC!finalM!") + small.encode(text + stop + text) + written(small, "R!")
    pieces, reply = turn(tokens, cuts, stop=(stop,))
    task = Task(messages="", sampling=Sampling(logprobs=1))
    asked, outcome = Asked(endpoint, (task,), {"stream_options": {"include_usage": True}}), Outcome(task, (reply,), 7)
    events = told(asked, [(pieces, reply)], [outcome])
    streamed = folded.chat(events, logprobs=True) if endpoint == "chat" else folded.response(events)
    whole = json.loads(json.dumps(writing.body(asked, TOLD, [outcome], small)))
    assert streamed == whole
    if endpoint == "responses":
        assert whole["output"][1]["content"][0]["text"] == reply.text and whole["output"][1]["status"] == "completed"
    else:
        assert whole["choices"][0]["message"]["content"] == reply.text


def continuation(tokens, cuts, *, reason="length", logprobs=1, given_ids=()) -> tuple:
    request = Request([1], Sampling(logprobs=logprobs, logprob_token_ids=given_ids))
    return run(CompletionBuilder(request, small_vocabulary()), request, tokens, cuts, reason)


ids = st.lists(st.integers(0, 399), max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(ids, ids, sizes), min_size=1, max_size=3),
    st.sampled_from([None, 0, 1]),
    st.booleans(),
    st.integers(1, 2),
    st.booleans(),
)
def test_completions(prompts, logprobs, echo, n, others):
    given_ids = GIVEN if others else ()
    sampling = Sampling(logprobs=logprobs)
    tasks = tuple(Task(prompt=[1, *prompt], n=n, sampling=sampling) for prompt, _, _ in prompts)
    answers = [continuation(tokens, cuts, logprobs=logprobs, given_ids=given_ids) for _, tokens, cuts in prompts for _ in range(n)]
    wholes = [whole for _, whole in answers]
    outcomes = [Outcome(task, tuple(wholes[i * n : i * n + n]), len(task.prompt)) for i, task in enumerate(tasks)]
    asked = Asked("completions", tasks, {"echo": echo, "stream_options": {"include_usage": True}})
    echoed = None
    if echo and logprobs is not None:
        lists = [([None, *[-0.5] * (len(task.prompt) - 1)], [None, *[{5: -0.5}] * (len(task.prompt) - 1)]) for task in tasks]
        echoed = [Echoed(task.prompt, numbers, tops if logprobs else None) for task, (numbers, tops) in zip(tasks, lists, strict=True)]
    whole = json.loads(json.dumps(writing.body(asked, TOLD, outcomes, small_vocabulary(), echoed=echoed)))
    streamed = folded.completion(told(asked, answers, outcomes, echoed=echoed), logprobs=logprobs is not None)
    assert streamed == whole
    for i, choice in enumerate(whole["choices"]):
        prompt = small_vocabulary().decode(tasks[i // n].prompt) if echo else ""
        assert choice["text"] == prompt + wholes[i].text
        if logprobs is None:
            continue
        lists = choice["logprobs"]
        assert len(lists["tokens"]) == len(wholes[i].tokens) + (len(tasks[i // n].prompt) if echo else 0)
        assert lists["text_offset"] == sorted(lists["text_offset"]) and all(0 <= at <= len(choice["text"]) for at in lists["text_offset"])
        if all("bytes:" not in token for token in lists["tokens"]):
            assert all(choice["text"].startswith(t, at) for t, at in zip(lists["tokens"], lists["text_offset"], strict=True))
        for token, value, top in zip(lists["tokens"], lists["token_logprobs"], lists["top_logprobs"], strict=True):
            assert (top is None) if value is None else top[token] == value


@pytest.mark.parametrize("endpoint", ["chat", "responses"])
def test_pieces_that_never_came_are_told_with_the_whole(endpoint):
    _, reply = turn(written(small_vocabulary(), 'C!analysisM!Hm.E!S!assistantC!commentary to=functions.f K!jsonM!{"x": 1}A!'), [1])
    task = Task(messages="")
    asked, outcome = Asked(endpoint, (task,), {"stream_options": {"include_usage": True}}), Outcome(task, (reply,), 7)
    events = told(asked, [([], reply)], [outcome])
    found = folded.chat(events, logprobs=True) if endpoint == "chat" else folded.response(events)
    assert found == json.loads(json.dumps(writing.body(asked, TOLD, [outcome], small_vocabulary())))


def test_a_token_of_half_a_character_has_a_name_of_its_own_and_the_place_where_the_character_begins():
    small = small_vocabulary()
    tokens = tuple(small.encode("a€b"))
    whole = Completion("a€b", tokens, (-1.0,) * 5, None, "length")
    task = Task(prompt="", sampling=Sampling(logprobs=0))
    asked = Asked("completions", (task,), {})
    [choice] = writing.body(asked, TOLD, [Outcome(task, (whole,), 1)], small)["choices"]
    assert choice["logprobs"]["tokens"] == ["a", r"bytes:\xe2", r"bytes:\x82", r"bytes:\xac", "b"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 1, 2]
    events = writing.events(asked, TOLD, small)
    part = lambda text, i, k: CompletionPiece(text, tokens[i:k], (-1.0,) * (k - i), None)
    seen = [event for piece in (part("a", 0, 1), part("€", 1, 4), part("b", 4, 5)) for event in events.add(0, piece)]
    assert folded.completion([*seen, *events.done(0, whole)], logprobs=True)["choices"] == [choice]
