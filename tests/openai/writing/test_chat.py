"""chat.completion and its chunks, as clients look for them."""

from openai.types.chat import ChatCompletion, ChatCompletionChunk
import pytest
from wholes import CALL, asked, streamed, turn, whole

from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.told import Told

THOUGHT = "C!analysisM!Hm.E!S!assistant"


def deltas(events) -> list[dict]:
    return [choice["delta"] for _, chunk in events for choice in chunk["choices"]]


def test_the_chunks_of_a_turn_in_order():
    events = streamed(asked("chat", stream_options={"include_usage": True}), turn(f"C!analysisM!HE!S!assistant{CALL}"))
    assert deltas(events) == [
        {"role": "assistant", "content": ""},
        {"reasoning": "H", "reasoning_content": "H"},
        {"tool_calls": [{"index": 0, "id": "call_0f_0_0", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        *({"tool_calls": [{"index": 0, "function": {"arguments": letter}}]} for letter in '{"x": 1}'),
        {},
    ]
    assert [chunk["usage"] for _, chunk in events[:-1]] == [None] * (len(events) - 1)
    last, usage = events[-2][1]["choices"][0], events[-1][1]
    assert last["finish_reason"] == "tool_calls" and usage["choices"] == []
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    assert len({(name, *(chunk[key] for key in ("id", "object", "created", "model"))) for name, chunk in events}) == 1


def test_usage_is_not_told_unasked():
    assert not any("usage" in chunk for _, chunk in streamed(asked("chat"), turn("C!finalM!HiR!")))


def test_several_answers_have_their_index():
    events = streamed(asked("chat", n=2), turn("C!finalM!aR!"), turn("C!finalM!bR!"))
    choices = [choice for _, chunk in events for choice in chunk["choices"]]
    assert [(one["index"], one["delta"].get("content")) for one in choices] == [(0, ""), (1, ""), (0, "a"), (0, None), (1, "b"), (1, None)]


@pytest.mark.parametrize(
    ("text", "reason", "content", "reasoning", "calls", "finish"),
    [
        (f"{THOUGHT}C!finalM!HiR!", "stop", "Hi", "Hm.", 0, "stop"),
        (f"{THOUGHT}{CALL}", "stop", None, "Hm.", 1, "tool_calls"),
        (f"C!commentaryM!See.E!S!assistant{CALL}", "stop", "See.", None, 1, "tool_calls"),  # content lives beside calls
        ("C!commentaryM!See.E!S!assistantC!finalM!HiR!", "stop", "See.Hi", None, 0, "stop"),
        ("C!analysisM!Hm", "length", "", "Hm", 0, "length"),  # tokens were spent: content is no null
        ("C!analysisM!Hm", "timeout", "", "Hm", 0, "length"),
        ("C!analysisM!Hm", "cancelled", "", "Hm", 0, "length"),
        ("C!ana", "length", "", None, 0, "length"),
        ("", "length", "", None, 0, "length"),
        ("C!commentary to=functions.fM!A!", "stop", None, None, 1, "tool_calls"),
        ("S!userM!MeE!S!assistantC!finalM!HiR!", "stop", "Hi", None, 0, "stop"),
        (f"{CALL[:-2]}E!S!assistant{CALL}", "stop", None, None, 2, "tool_calls"),
    ],
)
def test_messages(text, reason, content, reasoning, calls, finish):
    pieces, reply = turn(text + ("E!" if not text else ""), reason=reason)
    [choice] = whole(asked("chat"), reply)["choices"]
    message = choice["message"]
    assert (message["content"], choice["finish_reason"], message["refusal"]) == (content, finish, None)
    assert message.get("reasoning") == message.get("reasoning_content") == reasoning
    assert [call["function"] for call in message.get("tool_calls", ())] == [
        {"name": call.name, "arguments": call.arguments} for call in reply.tool_calls
    ]
    assert len(message.get("tool_calls", ())) == calls
    assert len({call["id"] for call in message.get("tool_calls", ())}) == calls


def test_an_answer_of_a_form_is_nothing_but_the_answer():
    one = turn("C!commentaryM!See.E!S!assistantC!finalM!{}R!")
    form = {"type": "json_object"}
    message = whole(asked("chat", form=form), one[1])["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == ("{}", "See.")
    said = deltas(streamed(asked("chat", form=form), one))
    assert "".join(delta.get("content", "") for delta in said) == "{}"
    assert "".join(delta.get("reasoning", "") for delta in said) == "See."


def test_log_probabilities_are_of_what_stands_in_content():
    one = turn("C!analysisM!HmE!S!assistantC!commentaryM!a E!S!assistantC!finalM!é–R!", logprobs=1)
    [choice] = whole(asked("chat", logprobs=1), one[1])["choices"]
    entries = choice["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == choice["message"]["content"] == "a é–"
    chunks = [c for _, chunk in streamed(asked("chat", logprobs=1), one) for c in chunk["choices"] if c["logprobs"]]
    assert [chunk["delta"]["content"] for chunk in chunks] == ["a", " ", "é", "–"]  # a token of half a character waits for the other
    assert [len(chunk["logprobs"]["content"]) for chunk in chunks] == [1, 1, 2, 3]


def test_a_fault_on_the_way():
    good, bad = turn("C!finalM!HiR!"), turn("C!finalM!H", error="its numbers are no numbers.")
    with pytest.raises(Refused) as caught:
        whole(asked("chat", n=2), good[1], bad[1])
    assert caught.value.status == 500 and "no numbers" in str(caught.value)
    events = streamed(asked("chat", n=2, stream_options={"include_usage": True}), bad, good)
    assert events[-1][1]["error"].keys() == {"message", "type", "param", "code"} and "no numbers" in events[-1][1]["error"]["message"]
    assert deltas(events[:-1])[-1] == {} and events[-2][1]["choices"][0]["index"] == 1  # the other one went on


def test_what_a_batch_has():
    message = whole(asked("chat"), turn(f"{THOUGHT}C!finalM!HiR!")[1], told=Told("a", as_batch=True))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Hi", "refusal": None, "reasoning_content": "Hm."}


@pytest.mark.parametrize("text", [f"{THOUGHT}{CALL}", f"{THOUGHT}C!finalM!Hi éR!", "C!commentary to=f", "S!S!M!C!E!"])
def test_the_sdk_knows_them(text):
    one = turn(text, logprobs=1)
    of = asked("chat", logprobs=1, stream_options={"include_usage": True})
    found = ChatCompletion.model_validate(whole(of, one[1]))
    assert found.choices[0].finish_reason in ("stop", "tool_calls")
    for _, chunk in streamed(of, one):
        ChatCompletionChunk.model_validate(chunk)
