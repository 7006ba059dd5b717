"""The assistant's turn, put together of pieces: text, calls, messages and the finish reason agree, however its headers are written."""

from as_written import written
import pytest
from small_vocabulary import small_vocabulary

from gptoss_jax.engine.requests import Piece, Request
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.turns.reply import ReplyBuilder

CALL = ' K!jsonM!{"x": 1}'


def built(turn, *, reason="stop", size=3, stop=(), one_call=False):
    """The reply of a turn that came in pieces of so many tokens, and what was shown meanwhile."""
    small = small_vocabulary()
    tokens = written(small, turn)
    request = Request([1], Sampling(stop=stop))
    builder = ReplyBuilder(request, small, one_call=one_call)
    shown = []
    for at in range(0, len(tokens), size):
        part = tokens[at : at + size]
        last = at + size >= len(tokens)
        shown += builder.add(Piece(request, part, [0.0] * len(part), [{}] * len(part), reason if last else None))
    return builder.result(), shown


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    ("turn", "reason", "finish", "calls", "text"),
    [
        (f"C!commentary to=functions.f{CALL}A!", "stop", "tool_calls", 1, ""),
        (f"C!final to=functions.f{CALL}R!", "stop", "tool_calls", 1, ""),
        (f"C!analysis to=functions.f{CALL}R!", "stop", "tool_calls", 1, ""),
        (f"C!commentary to=functions.f{CALL}", "length", "length", 1, ""),
        (f"C!commentary to=functions.f{CALL}E!S!assistantC!finalM!DoneR!", "stop", "stop", 1, "Done"),
        (f"C!commentary to=functions.f{CALL}E!S!assistantC!commentary to=functions.g{CALL}A!", "stop", "tool_calls", 2, ""),
        ('C!commentary to="functions.functions.f"{"x": 1}A!', "stop", "tool_calls", 1, ""),
        ('C!commentaryM!{"x": 1}A!', "stop", "stop", 0, ""),
        ("C!analysisM!HmE!S!assistantassistantC!finalM!fortyR!", "stop", "stop", 0, "forty"),
        ("C!final to=userM!fortyR!", "stop", "stop", 0, "forty"),
        ("C!replyM!fortyR!", "stop", "stop", 0, "forty"),
        ("C!analysisM!HmE!fortyR!", "stop", "stop", 0, "forty"),
    ],
)
def test_a_turn_ends_with_what_it_came_to(turn, reason, finish, calls, text, size):
    reply, shown = built(turn, reason=reason, size=size)
    assert (reply.finish_reason, len(reply.tool_calls), reply.text) == (finish, calls, text)
    assert "".join(one.text for one in shown if one.recipient) == "".join(call.arguments for call in reply.tool_calls)
    answer = [one.text for one in shown if one.recipient is None and one.channel not in ("analysis", "commentary")]
    assert "".join(answer) == reply.text
    assert sum(len(message.get("tool_calls", ())) for message in reply.messages) == calls


@pytest.mark.parametrize("header", ["C!final to=userM!", "C!replyM!", "C!finalfinalM!", "M!"])
def test_stop_strings_are_looked_for_in_every_answer(header):
    reply, shown = built(f"{header}one. two.R!", size=1, stop=(".",))
    assert reply.text == "".join(one.text for one in shown) == "one" and reply.finish_reason == "stop"
    assert reply.messages[-1]["content"] == "one"


@pytest.mark.parametrize(
    ("stop", "contents"),
    [("x", ["one.", "two. three"]), ("three", ["one.", "two. "]), ("two", ["one."]), ("e.", ["on"]), ("one", [""])],
)
def test_messages_hold_each_answer_once_up_to_the_stop_string(stop, contents):
    reply, _ = built("C!analysisM!HmE!S!assistantC!finalM!one.E!S!assistantC!finalM!two. threeR!", stop=(stop,), size=2)
    assert reply.text == "".join(contents)
    assert reply.messages == [
        {"role": "assistant", "reasoning": "Hm", "content": contents[0]},
        *({"role": "assistant", "content": text} for text in contents[1:]),
    ]


def test_arguments_that_are_no_json_are_kept_and_said_to_be_none():
    reply, _ = built('C!commentary to=functions.f K!jsonM!{"x": NaN}A!')
    [call] = reply.tool_calls
    assert (call.valid, call.parsed, call.arguments) == (False, None, '{"x": NaN}')
    assert reply.messages[-1]["tool_calls"][0]["function"]["arguments"] == '{"x": NaN}'


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize("more", ["A!", "R!", "E!S!assistantC!commentary to=functions.g{}A!", "S!assistantC!finalM!xR!", "C!finalM!xR!"])
@pytest.mark.parametrize("before", ["", "C!finalM!soE!S!assistant", "C!analysisM!HmE!S!assistant"])
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_one_call_is_enough_where_one_is_asked_for(before, more, size, reason):
    """However the call ends, and whatever comes after it: without <|message|> too."""
    heads = [f"C!commentary to=functions.f{CALL}"] + ['C!commentary to=functions.f{"x": 1}'] * (more[0] != "C")  # which goes on with C!
    for head in heads:
        reply, shown = built(f"{before}{head}{more}", size=size, one_call=True, reason=reason, stop=("x y",))
        [call] = reply.tool_calls
        assert (call.name, call.parsed, reply.finish_reason) == ("f", {"x": 1}, "tool_calls")
        assert [one.call for one in shown if one.call and one.begins] == ["f"] and shown[-1].call == "f" and shown[-1].ends
        assert "".join(one.text for one in shown if one.answers) == reply.text == ("so" if "final" in before else "")
        whole, _ = built(f"{before}{head}{more}", size=size)
        assert reply.tokens == whole.tokens[: len(reply.tokens)]


def test_a_call_that_has_not_ended_is_no_end():
    reply, shown = built(f"C!commentary to=functions.f{CALL}", size=1, one_call=True, reason="length")
    assert reply.finish_reason == "length" and len(reply.tool_calls) == 1
