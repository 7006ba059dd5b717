"""Bodies of /v1/responses: items of every kind, earlier responses, tools of others."""

import pytest

from gptoss_jax.config import TINY
from gptoss_jax.engine.requests import check_length
from gptoss_jax.harmony import to_conversation
from gptoss_jax.openai import reading
from gptoss_jax.openai.asked import Asked, Defaults, Reading
from gptoss_jax.openai.errors import Refused

LIVE = Reading(Defaults(seed=None), live=True, strict=False)
WEATHER = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "strict": False}
LOGPROBS = "message.output_text.logprobs"


class Kept:
    """One response, as if it was kept."""

    kept = (
        {"type": "message", "id": "msg_0", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_0", "summary": [], "content": [{"type": "reasoning_text", "text": "Look."}], "status": "completed"},
        {"type": "function_call", "id": "fc_0", "call_id": "c1", "name": "get_weather", "arguments": "{}", "status": "completed"},
    )

    def items(self, response_id):
        return self.kept if response_id == "resp_0" else None

    def item(self, item_id):
        return next((item for item in self.kept if item["id"] == item_id), None)


def read(how: Reading = LIVE, **body) -> Asked:
    return reading.read("responses", {"model": "m", "input": "Hello"} | body, name="resp_1", reading=how, earlier=Kept())


def test_an_earlier_response_goes_on_with_its_items_alone():
    result = {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "sunny"}]}
    asked = read(previous_response_id="resp_0", input=[result], tools=[WEATHER])
    task = asked.tasks[0]
    assert [message["role"] for message in task.messages] == ["user", "assistant", "assistant", "tool"]
    assert task.options == {} and task.tools == [WEATHER] and read(previous_response_id="resp_0").tasks[0].tools is None
    to_conversation(task.messages, tools=task.tools)
    assert str(reading.refusal(asked, "messages[3] is a tool result")) == "input[0] is a tool result"
    refused = reading.refusal(asked, "messages[0]: content must be a string")
    assert str(refused) == "item 0 of resp_0: content must be a string"
    assert read(previous_response_id="resp_0", input="Go on.").tasks[0].messages[-1] == {"role": "user", "content": "Go on."}
    assert len(read(previous_response_id="resp_0", input=[]).tasks[0].messages) == 3


@pytest.mark.parametrize("earlier", [Kept(), None])
def test_a_response_that_is_not_kept_is_not_found(earlier):
    with pytest.raises(Refused, match="previous_response_id must be .* got 'resp_9'") as refused:
        reading.read("responses", {"input": "x", "previous_response_id": "resp_9"}, name="a", reading=LIVE, earlier=earlier)
    assert (refused.value.status, refused.value.code, refused.value.field) == (404, "previous_response_not_found", "previous_response_id")


def test_references_are_followed():
    for reference in ({"type": "item_reference", "id": "msg_0"}, {"id": "msg_0"}, {"type": None, "id": "msg_0"}):
        asked = read(input=[reference, {"role": "user", "content": "Again."}])
        assert asked.tasks[0].messages[0] == {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]}
        assert reading.input_items(asked)[0]["id"] == "msg_0"
    with pytest.raises(Refused, match=r"input\[0\] must be an item, or refer to one .* 'msg_9'"):
        read(input=[{"type": "item_reference", "id": "msg_9"}])


def test_items_of_every_kind_become_messages():
    items = [
        {"type": "message", "role": "developer", "content": "Be brief."},
        {
            "type": "message",
            "id": "m",
            "role": "user",
            "content": [{"type": "input_text", "text": "Hi"}],
            "status": "completed",
            "name": "x",
        },
        {"type": "reasoning", "id": "r1", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "abc"},
        {"type": "reasoning", "id": "r2", "summary": []},
        {
            "type": "reasoning",
            "id": "r3",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "So:", "annotations": []}],
            "phase": "commentary",
        },
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "phase": "final_answer"},
        {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": "{}", "namespace": "n"},
        {"type": "function_call_output", "call_id": "c", "output": "sunny", "id": None},
    ]
    asked = read(input=items)
    assert [
        {key: value for key, value in message.items() if key in ("role", "channel", "reasoning")} for message in asked.tasks[0].messages
    ] == [
        {"role": "developer"},
        {"role": "user"},
        {"role": "assistant", "reasoning": "ab"},
        {"role": "assistant", "channel": "commentary"},
        {"role": "assistant", "channel": "final"},
        {"role": "assistant"},
        {"role": "tool"},
    ]
    to_conversation(asked.tasks[0].messages)
    assert {*asked.ignored} == {"input[1].name", "input[2].summary", "input[2].encrypted_content", "input[7].namespace"}
    assert str(reading.refusal(asked, "messages[6]: x")) == "input[8]: x"


def test_the_items_that_are_kept_have_ids():
    asked = read(input=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "id": "msg_own"}, {"id": "fc_0"}])
    first, second, third = reading.input_items(asked)
    assert first["content"] == [{"type": "input_text", "text": "Hi"}] and first["type"] == "message" and first["status"] == "completed"
    assert second["id"] == "msg_own" and second["content"] == [{"type": "output_text", "text": "Ho", "annotations": []}]
    assert third["call_id"] == "c1" and first["id"].startswith("msg_")
    (alone,) = reading.input_items(read(input=""))
    assert alone["content"] == [{"type": "input_text", "text": ""}] and alone["id"] == first["id"]
    (odd,) = reading.input_items(read(input=[{"role": "user", "content": "x", "id": 5, "status": [], "type": None}]))
    assert odd["id"] == first["id"] and odd["status"] == "completed" and odd["type"] == "message"
    other = reading.read("responses", {"input": ""}, name="resp_2", reading=LIVE)
    assert reading.input_items(other)[0]["id"] != first["id"]
    assert read(input=reading.input_items(asked)).tasks[0].messages == [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Ho", "annotations": []}]},
        {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}]},
    ]


def test_an_item_that_was_continued_is_one_with_what_came():
    part = {"type": "output_text", "text": "85", "annotations": [], "logprobs": []}
    came = {"type": "message", "id": "msg_1", "role": "assistant", "phase": "final_answer", "content": [part]}
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "8+5."}]}
    call = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"}
    for said in ("27 + 58 = ", [{"type": "output_text", "text": "27 + "}, {"type": "refusal", "refusal": "58 = "}]):
        given = reading.input_items(read(input=[{"role": "user", "content": "Sum?"}, {"role": "assistant", "content": said}]))
        user, whole, after = reading.gone_on(given, [came, call])
        assert (user, after) == (given[0], call) and whole == came | {"content": [part | {"text": "27 + 58 = 85"}]}
    assert reading.gone_on([thought], [thought, came])[0]["content"][0]["text"] == "8+5.8+5."
    for output in ([], [call], [came]):
        assert reading.gone_on([thought], output) == (thought, *output)


def test_tools_of_others_are_passed_over_unless_they_are_named():
    others = [{"type": "web_search"}, {"type": "namespace", "name": "n", "tools": []}, {"type": "custom", "name": "c"}]
    asked = read(tools=[others[0], WEATHER, *others[1:], WEATHER | {"name": "other", "defer_loading": True}])
    assert [tool["name"] for tool in asked.tasks[0].tools] == ["get_weather", "other"]
    assert asked.given["tools"][0] == {"type": "web_search"}  # what comes back
    assert asked.ignored == ("tools[0]", "tools[2]", "tools[3]", "tools[4].defer_loading")
    assert str(reading.refusal(asked, "tools[1]: name must be")) == "tools[4]: name must be"
    assert read(tools=others).tasks[0].tools is None
    for choice in ({"type": "web_search"}, {"type": "custom", "name": "c"}, {"type": "function"}, "any", 5, []):
        with pytest.raises(Refused, match="tool_choice must be") as refused:
            read(tools=[*others, WEATHER], tool_choice=choice)
        assert refused.value.field == "tool_choice"
    with pytest.raises(Refused, match=r"tool_choice.tools\[0\] must be .* nothing but functions"):
        read(tools=[*others, WEATHER], tool_choice={"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]})


def test_choices_of_tools_are_those_of_chat():
    named = {"type": "function", "name": "get_weather"}
    chats = {"type": "function", "function": {"name": "get_weather"}}
    for choice, becomes in (
        *(("auto", None), ("required", "required"), (named, chats)),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [named]},
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [chats]}},
        ),
    ):
        assert read(tools=[WEATHER], tool_choice=choice).tasks[0].tool_choice == becomes
    assert read(tools=[WEATHER], tool_choice="none").tasks[0].tools is None


def test_choices_of_tools_are_refused_in_the_words_of_responses():
    named = {"type": "function", "name": "get_weather"}
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [named]}
    for choice in ({**allowed, "tools": []}, {**allowed, "mode": None}, {"type": "allowed_tools", "allowed_tools": allowed}):
        with pytest.raises(Refused, match=r'tool_choice must be .*"mode": "auto", .*; got \{.*; write it so') as refused:
            read(tools=[WEATHER], tool_choice=choice)
        assert refused.value.field == "tool_choice" and 'function": {' not in str(refused.value)
    with pytest.raises(Refused, match="tool_choice must be .*; got .*get_weather.*; write it so"):
        read(tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "get_weather"}})
    for choice in ({**named, "strict": True}, {**allowed, "tools": [{**named, "strict": True}]}):
        with pytest.raises(Refused, match="must be .*\"name\": ...}; got .*'strict': true}; write it so"):
            read(Reading(live=True), tools=[WEATHER], tool_choice=choice)
    asked = read(tools=[WEATHER], tool_choice={**allowed, "mode": "any"})
    assert str(reading.refusal(asked, 'tool_choice.allowed_tools: mode must be "auto"')) == 'tool_choice: mode must be "auto"'


def test_an_item_that_is_none_is_quoted():
    for item in (5, {"type": "reasoning", "content": "because"}, {"type": "reasoning", "content": [{"type": "reasoning_text", "text": 5}]}):
        with pytest.raises(Refused, match=r"input\[0\] must be a message, .*; got (5|\{.*'content': .*)\.") as refused:
            read(input=[item])
        assert refused.value.field == "input"


def test_what_agents_send_is_taken():
    wishes = {
        **{"reasoning": {"effort": "minimal", "summary": "auto"}, "include": ["reasoning.encrypted_content"], "truncation": "auto"},
        **{"text": {"verbosity": "low"}, "store": False, "stream": True, "prompt_cache_key": "k", "client_metadata": {"a": "b"}},
        **{"max_tool_calls": 3, "service_tier": "auto", "safety_identifier": "s", "metadata": {"a": "b"}, "parallel_tool_calls": True},
    }
    asked = read(**wishes, input="", max_output_tokens=1)
    assert {*asked.ignored} == {"reasoning.summary", "include[0]", "truncation", "text.verbosity"}
    assert asked.stream and asked.tasks[0].messages == "" and asked.tasks[0].reasoning_effort == "low"
    assert asked.tasks[0].sampling.max_tokens == 1 and asked.tasks[0].sampling.logprobs is None
    assert read(include=[LOGPROBS], top_logprobs=2).tasks[0].sampling.logprobs == 2


@pytest.mark.parametrize(
    "body, field, says",
    [
        ({"input": None}, "input", "input must be a string or a list of items; got null"),
        ({"input": 5}, "input", "input must be a string or a list of items; got 5"),
        ({"input": ["x"]}, "input", r"input\[0\] must be a message"),
        ({"input": [{"type": [], "role": "user", "content": "x"}]}, "input", r"input\[0\] must be a message"),
        ({"input": [{"type": "web_search_call"}]}, "input", r"input\[0\] must be a message"),
        ({"background": True}, "background", "background must be false; got true"),
        ({"conversation": "c"}, "conversation", "conversation must be left out"),
        ({"prompt": {"id": "p"}}, "prompt", "prompt must be left out"),
        ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens must be a whole number, 1 to"),
        ({"text": []}, "text", "text must be an object"),
        ({"text": {"format": 5}}, "text", "text.format must be an object; got 5"),
        ({"text": {"verbosity": "loud"}}, "text", "text.verbosity must be medium"),
        ({"reasoning": {"effort": "none"}}, "reasoning", "reasoning.effort must be minimal"),
        ({"reasoning": {"summary": 5}}, "reasoning", "reasoning.summary must be left out"),
        ({"include": [5]}, "include", "include must be a list"),
        ({"top_logprobs": 2}, "top_logprobs", "top_logprobs needs"),
        ({"previous_response_id": 5}, "previous_response_id", "previous_response_id must be a string; got 5"),
        ({"store": "yes"}, "store", "store must be true or false"),
        ({"metadata": []}, "metadata", "metadata must be an object"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(body, field, says):
    with pytest.raises(Refused, match=says) as refused:
        read(**body)
    assert refused.value.field == field


@pytest.mark.parametrize("body", [{"stream": True}, {"previous_response_id": "resp_0"}, {"stream_options": {}}])
def test_what_only_a_live_server_can_do_is_refused_elsewhere(body):
    read(**body)
    with pytest.raises(Refused, match="which is not supported"):
        read(Reading(live=False, strict=False), **body)


def test_a_prompt_that_is_too_long_has_openais_code():
    with pytest.raises(ValueError, match="tokens but context is") as error:
        check_length("prompt", 100, TINY, 64)
    refused = reading.refusal(read(), str(error.value))
    assert (str(refused), refused.field) == ("prompt has 100 tokens but context is 64; shorten it.", "input")
    assert refused.code == "context_length_exceeded"
    with pytest.raises(ValueError) as error:
        check_length("prompt", 100, TINY, 64, least=True)
    refused = reading.refusal(read(), str(error.value))
    assert str(refused) == "prompt has at least 100 tokens but context is 64; shorten it." and refused.code == "context_length_exceeded"
