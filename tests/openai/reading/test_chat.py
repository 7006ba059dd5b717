"""Bodies of /v1/chat/completions: what clients send back, what is passed over, what is refused."""

import pytest

from gptoss_jax.harmony import to_conversation
from gptoss_jax.openai import reading
from gptoss_jax.openai.asked import Asked, Defaults, Reading
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.reading import messages
from gptoss_jax.sampling.options import Sampling

LIVE = Reading(Defaults(seed=None), live=True, strict=False)
HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}


def read(how: Reading = LIVE, **body) -> Asked:
    return reading.read("chat", {"model": "m", "messages": HELLO} | body, name="chatcmpl-1", reading=how)


def test_what_an_answer_holds_is_taken_back():
    answer = {
        **{"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None, "function_call": None},
        **{"reasoning": "Look.", "reasoning_content": "Look.", "tool_calls": [CALL | {"index": 0}]},
    }
    result = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sunny"}]}
    last = {"role": "assistant", "content": "", "reasoning": "Look.", "tool_calls": None}
    for how in (LIVE, Reading(live=True)):
        asked = read(how, messages=[*HELLO, answer, result, last, *HELLO], tools=[WEATHER])
        assert asked.ignored == () and len(asked.tasks[0].messages) == 5
        to_conversation(asked.tasks[0].messages, tools=asked.tasks[0].tools)


def test_what_is_null_is_left_out_at_every_depth():
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": None, "x": None}, "index": None}
    tool = {"type": "function", "function": {"name": "get_weather", "description": None, "parameters": None, "strict": None}}
    said = [{"role": "assistant", "content": None, "tool_calls": [call], "channel": None}]
    asked = read(messages=said, tools=[tool])
    (message,) = asked.tasks[0].messages
    assert message["tool_calls"] == [{"id": "c1", "type": "function", "function": {"name": "get_weather"}}] and asked.ignored == ()
    to_conversation(asked.tasks[0].messages, tools=asked.tasks[0].tools)


def test_a_refusal_is_what_was_said_and_nothing_is_nothing():
    asked = read(
        messages=[*HELLO, {"role": "assistant", "content": None, "refusal": "No."}, {"role": "assistant", "content": None}, *HELLO]
    )
    assert asked.tasks[0].messages[1] == {"role": "assistant", "content": "No."} and len(asked.tasks[0].messages) == 3
    assert asked.ignored == ("messages[2]",)
    refused = reading.refusal(asked, "messages[2]: role must be one of these")
    assert (str(refused), refused.field) == ("messages[3]: role must be one of these", "messages")


def test_unknown_fields_are_passed_over_and_named_or_refused():
    said = [{"role": "system", "content": "Be.", "name": "boss"}, {"role": "user", "content": [{"type": "text", "text": "Hi", "mood": 1}]}]
    said += [{"role": "assistant", "content": "", "reasoning_details": [1], "tool_calls": [CALL | {"extra": {"a": 1}}]}]
    tool = {"type": "function", "function": WEATHER["function"] | {"defer": True}, "cached": 1}
    body = {"messages": said, "tools": [tool], "next_month": 1, "stream": True, "stream_options": {"include_usage": True, "new": 2}}
    asked = read(**body)
    assert {*asked.ignored} == {
        *("next_month", "stream_options.new", "messages[0].name", "messages[1].content[0].mood", "messages[2].reasoning_details"),
        *("messages[2].tool_calls[0].extra", "tools[0].cached", "tools[0].function.defer"),
    }
    to_conversation(asked.tasks[0].messages, tools=asked.tasks[0].tools)
    assert asked.stream and asked.include_usage and "next_month" not in asked.given
    with pytest.raises(Refused, match="next_month is no field that is known here") as refused:
        read(Reading(live=True), **body)
    assert (refused.value.code, refused.value.field, refused.value.status) == ("unknown_field", "next_month", 400)


@pytest.mark.parametrize("role", messages.READ)
def test_the_keys_of_a_message_that_are_read_are_those_of_harmony(role):
    given = dict.fromkeys((*messages.READ[role], "new"), "x") | {"role": role}
    (message,) = read(messages=[given]).tasks[0].messages
    assert message.keys() == {*messages.READ[role]}


@pytest.mark.parametrize(
    "choice, becomes",
    [
        ("auto", None),
        (None, None),
        ("required", "required"),
        ({"type": "function", "function": {"name": "get_weather", "more": 1}}, {"type": "function", "function": {"name": "get_weather"}}),
    ],
)
def test_choices_of_tools(choice, becomes):
    task = read(tools=[WEATHER], tool_choice=choice).tasks[0]
    assert (task.tools, task.tool_choice) == ([WEATHER], becomes)


def test_tools_are_hidden_where_none_may_be_called():
    task = read(tools=[WEATHER], tool_choice="none").tasks[0]
    assert (task.tools, task.tool_choice) == (None, None)
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}}
    assert read(tools=[WEATHER], tool_choice=allowed).tasks[0].tool_choice == allowed


@pytest.mark.parametrize("said, effort", [("minimal", "low"), ("low", "low"), ("medium", "medium"), ("high", "high"), ("xhigh", "high")])
def test_efforts_are_the_nearest_that_there_are(said, effort):
    assert read(reasoning_effort=said).tasks[0].reasoning_effort == effort
    assert read(chat_template_kwargs={"reasoning_effort": said}).tasks[0].reasoning_effort == effort


def test_further_options():
    task = read(chat_template_kwargs={"model_identity": "You are it."}, top_k=5, min_p=0.1, max_completion_tokens=7, seed=3).tasks[0]
    assert task.options == {"model_identity": "You are it."} and task.sampling == Sampling(top_k=5, min_p=0.1, max_tokens=7, seed=3)
    assert read().tasks[0].sampling.seed is None
    assert read(Reading(LIVE.defaults, live=True, time_limit=9)).tasks[0].time_limit == 9
    assert read(logprobs=True, logprob_token_ids=[7, 5]).tasks[0].sampling == Sampling(logprobs=0, logprob_token_ids=[7, 5])
    form = read(structured_outputs={"choice": ["yes", "no"]}).tasks[0].response_format
    assert form == {"type": "choice", "choices": ["yes", "no"]}
    form = read(structured_outputs={"json": {"type": "object"}}).tasks[0].response_format
    assert form == {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
    assert read(verbosity="low").ignored == ("verbosity",)


@pytest.mark.parametrize(
    "body, field, says",
    [
        ({"messages": None}, "messages", "messages must be a list; got null; pass"),
        ({"messages": {"role": "user"}}, "messages", "messages must be a list; got {'role': 'user'}"),
        ({"functions": [{}]}, "functions", "functions must be left out; got .* pass tools"),
        ({"function_call": "auto"}, "function_call", "function_call must be left out; .* pass tool_choice"),
        ({"n": 1000}, "n", "n must be a whole number, 1 to 128; got 1000"),
        ({"n": True}, "n", "n must be a whole number, 1 to 128; got true"),
        ({"stream": "yes"}, "stream", "stream must be true or false; got 'yes'"),
        ({"stream_options": []}, "stream_options", "stream_options must be an object"),
        ({"stream_options": {"include_usage": 1}}, "stream_options", "stream_options.include_usage must be true or false; got 1"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens must be a whole number, 1 to .* pass null"),
        ({"max_completion_tokens": 10**400}, "max_completion_tokens", "max_completion_tokens must .* some 4.. digits"),
        ({"temperature": None, "top_p": 2}, "top_p", "top_p must be a number from 0 to 1; got 2"),
        ({"logprobs": 3}, "logprobs", "logprobs must be true or false; got 3; their number is top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs must be a whole number, 0 to 20; got 21"),
        ({"logprobs": True, "logprob_token_ids": [5, 5]}, "logprob_token_ids", "logprob_token_ids must name each token once; got"),
        ({"logprobs": True, "logprob_token_ids": "5"}, "logprob_token_ids", "logprob_token_ids must be a sequence of token ids; got '5'"),
        ({"logprob_token_ids": [5]}, "logprob_token_ids", "logprob_token_ids needs logprobs; ask for them, or remove"),
        ({"reasoning_effort": "none"}, "reasoning_effort", "reasoning_effort must be .*; got 'none'; gpt-oss .* always reasons"),
        ({"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "high"}}, "reasoning_effort", "must be said once"),
        ({"tools": "all"}, "tools", "tools must be a list of function definitions; got 'all'"),
        ({"tool_choice": "any"}, "tool_choice", "tool_choice must be"),
        ({"response_format": "json"}, "response_format", "response_format must be an object"),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs", "structured_outputs.grammar must be left out"),
        ({"structured_outputs": {"regex": "x"}, "response_format": {"type": "json_object"}}, "structured_outputs", "must be alone"),
        ({"structured_outputs": {"regex": "x", "json": {}}}, "structured_outputs", "must hold one form"),
        ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages", r"messages\[0\]: audio must be left out"),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages", r"messages\[0\]: function_call .* tool_calls"),
        ({"verbosity": "loud"}, "verbosity", "verbosity must be medium; got loud"),
        ({"min_tokens": 3}, "min_tokens", "min_tokens must be 0; got 3, which is not supported"),
        ({"user": 5}, "user", "user must be a string; got 5"),
        ({"metadata": "x"}, "metadata", "metadata must be an object; got 'x'"),
        ({"logit_bias": [[5, 1]]}, "logit_bias", r"logit_bias must be an object of token ids .*; got \[\[5, 1\]\]"),
        ({"logit_bias": {"05": 1, "5": 2}}, "logit_bias", "logit_bias must name each token once"),
        ({"logit_bias": {"word": 1}}, "logit_bias", "logit_bias must name token ids; got 'word'"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_what_cannot_be_done_is_refused_by_name(body, field, says, strict):
    with pytest.raises(Refused, match=says) as refused:
        read(Reading(live=True, strict=strict), **body)
    assert refused.value.field == field and refused.value.status == 400


def test_what_is_of_no_form_is_refused_as_it_came():
    flat = {"type": "function", "name": "get_weather"}
    for choice in (flat, {"type": "allowed_tools", "mode": "auto", "tools": [flat]}, {"type": "custom", "custom": {"name": "x"}}):
        asked = read(tools=[WEATHER], tool_choice=choice)
        assert asked.tasks[0].tool_choice == choice and asked.ignored == ()
    call = {"id": "1", "type": "custom", "custom": {"name": "f"}}
    assert read(messages=[{"role": "assistant", "tool_calls": [call]}]).tasks[0].messages[0]["tool_calls"] == [call]


def test_a_form_is_blamed_by_the_name_that_it_came_by():
    asked = read(structured_outputs={"json": {"not": {}}})
    refused = reading.refusal(asked, "response_format.json_schema.schema must hold what a grammar can follow")
    assert (str(refused), refused.field) == ("structured_outputs.json must hold what a grammar can follow", "structured_outputs")
    refused = reading.refusal(read(structured_outputs={"choice": [5]}), "response_format: choices[0] must be a string")
    assert (str(refused), refused.field) == ("structured_outputs.choice[0] must be a string", "structured_outputs")
    asked = read(response_format={"type": "choice", "choices": [5]})
    assert str(reading.refusal(asked, "response_format: choices[0] must be")) == "response_format: choices[0] must be"


@pytest.mark.parametrize("body", [None, [], "x", 5, True])
def test_a_body_is_an_object(body):
    with pytest.raises(Refused, match="body must be a JSON object; got"):
        reading.read("chat", body, name="a")


def test_images_are_refused_in_the_words_of_the_body():
    asked = read(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}])
    with pytest.raises(ValueError, match="gpt-oss reads text only") as error:
        to_conversation(asked.tasks[0].messages)
    assert reading.refusal(asked, str(error.value)).field == "messages"
