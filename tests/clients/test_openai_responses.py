"""OpenAI's library at /v1/responses: it works at the first try, and all objects and events that it is sent have its types."""

import json
from typing import Literal

from openai import BadRequestError, NotFoundError, OpenAI
from openai_wire import Exchange
from pydantic import BaseModel
import pytest
from replaying import TWO_CALLS, turn

pytestmark = pytest.mark.thorough

SUM = "What is 40 + 45?"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Of a city.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
ASK = "How is it in Bern and Oslo?"


@pytest.fixture
def watched(served):
    with served.watched() as (http, wire):
        yield OpenAI(base_url=served.url, api_key="none", http_client=http, max_retries=0), wire


@pytest.fixture
def client(watched) -> OpenAI:
    return watched[0]


def events_of(exchange: Exchange) -> list[dict]:
    return [data for _, data in exchange.events]


def test_an_answer(client):
    answer = client.responses.create(model="nano", input=SUM, temperature=0)
    assert answer.output_text.endswith("85") and answer.status == "completed" and answer.error is None
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    [part] = answer.output[0].content
    assert part.type == "reasoning_text" and part.text and answer.output[0].summary == []
    assert answer.usage.output_tokens_details.reasoning_tokens > 0
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_a_stream_says_what_the_whole_answer_says(watched):
    client, wire = watched
    asked = dict(model="nano", input=SUM, temperature=0, top_logprobs=2, include=["message.output_text.logprobs"])
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[-1] == "response.completed" and "response.output_text.delta" in kinds and "response.reasoning_text.delta" in kinds
    assert final.output_text == whole.output_text and final.usage == whole.usage
    assert final.output[1].content[0].logprobs == whole.output[1].content[0].logprobs
    deltas = [event for event in events_of(wire.exchanges[-1]) if event["type"] == "response.output_text.delta"]
    entries = [entry["token"] for event in deltas for entry in event["logprobs"]]
    assert entries == [entry.token for entry in whole.output[1].content[0].logprobs]
    assert len(deltas[0]["logprobs"][0]["top_logprobs"]) == 2


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("output", ["rain", [{"type": "input_text", "text": "rain"}]], ids=["text", "parts"])
def test_calls_are_answered_and_nothing_of_the_turn_is_lost(client, served, streamed, output):
    served.says[ASK], served.says["rain"] = TWO_CALLS, turn(thought="Both are known.", answer="Bern sunny, Oslo rain.")
    asked = dict(model="nano", tools=[WEATHER], store=False)
    said = [{"role": "user", "content": ASK}]
    if streamed:
        with client.responses.stream(**asked, input=said) as stream:
            first = stream.until_done().get_final_response()
    else:
        first = client.responses.create(**asked, input=said)
    assert [item.type for item in first.output] == ["reasoning", "message", "function_call", "reasoning", "function_call"]
    assert [item.content[0].text for item in first.output if item.type == "reasoning"] == ["Two cities.", "And Oslo."]
    assert first.output[1].phase == "commentary" and first.output_text == "I look at both."
    calls = [item for item in first.output if item.type == "function_call"]
    assert [json.loads(call.arguments)["city"] for call in calls] == ["Bern", "Oslo"]
    said += [item.model_dump(exclude_unset=True) for item in first.output]
    said += [
        {"type": "function_call_output", "call_id": calls[0].call_id, "output": "sunny"},
        {"type": "function_call_output", "call_id": calls[1].call_id, "output": output},
    ]
    last = client.responses.create(**asked, input=said)
    assert last.output_text == "Bern sunny, Oslo rain." and last.output[-1].phase == "final_answer"
    heard_all(served)


def heard_all(served) -> None:
    """The last conversation that was read holds the whole first turn and what became of it."""
    heard = [(one.author, one.recipient, one.channel, one.text) for one in served.heard[-1]]
    for text in ("Two cities.", "And Oslo."):
        assert any(channel == "analysis" and text in said for _, _, channel, said in heard)
    assert ("assistant", None, "commentary", "I look at both.") in heard
    for city, text in (("Bern", "sunny"), ("Oslo", "rain")):
        assert ("assistant", "functions.get_weather", "commentary", f'{{"city": "{city}"}}') in heard
        assert ("functions.get_weather", "assistant", "commentary", text) in heard


@pytest.mark.parametrize("streamed", [False, True])
def test_a_conversation_goes_on_from_a_response(client, served, streamed):
    served.says[ASK], served.says["rain"] = TWO_CALLS, turn(answer="Bern sunny, Oslo rain.")
    served.says["Thanks."] = turn(answer="Bye.")
    asked = dict(model="nano", tools=[WEATHER], stream=streamed)

    def answered(**more):
        found = client.responses.create(**asked, **more)
        return list(found)[-1].response if streamed else found

    first = answered(input=ASK, instructions="Be brief.")
    calls = [item for item in first.output if item.type == "function_call"]
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": text}
        for call, text in zip(calls, ("sunny", "rain"), strict=True)
    ]
    second = answered(input=results, previous_response_id=first.id)
    assert second.output_text == "Bern sunny, Oslo rain." and second.previous_response_id == first.id
    heard_all(served)
    assert "Be brief." in "".join(one.text for one in served.heard[0])
    assert "Be brief." not in "".join(one.text for one in served.heard[-1]), "instructions are not inherited"
    third = answered(input="Thanks.", previous_response_id=second.id)
    assert [one.text for one in served.heard[-1] if one.author == "user"] == [ASK, "Thanks."]
    kept = client.responses.retrieve(third.id)
    assert kept.output == third.output and kept.id == third.id and kept.usage == third.usage
    listed = client.responses.input_items.list(second.id)
    assert [item.type for item in listed.data].count("function_call_output") == 2 and all(item.id for item in listed.data)
    client.responses.delete(third.id)
    for call in (lambda: client.responses.retrieve(third.id), lambda: answered(input="x", previous_response_id=third.id)):
        with pytest.raises(NotFoundError) as raised:
            call()
    assert raised.value.code == "previous_response_not_found" and raised.value.param == "previous_response_id"


def test_what_is_not_to_be_kept_is_not(client):
    answer = client.responses.create(model="nano", input=SUM, store=False, max_output_tokens=3)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(answer.id)


class Trip(BaseModel):
    city: Literal["Bern", "Oslo"]
    days: Literal[1, 2, 3]


def test_an_answer_is_parsed_into_a_class(client):
    answer = client.responses.parse(model="nano", input="Where to?", text_format=Trip, max_output_tokens=800)
    assert isinstance(answer.output_parsed, Trip)
    with client.responses.stream(model="nano", input="Where to?", text_format=Trip, max_output_tokens=800) as stream:
        assert isinstance(stream.until_done().get_final_response().output_parsed, Trip)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_that_was_cut_is_incomplete(client, served, streamed):
    served.says["Think."] = turn(thought="Hm. " * 50, answer="Yes.")
    answer = client.responses.create(model="nano", input="Think.", max_output_tokens=20, stream=streamed)
    answer = list(answer)[-1].response if streamed else answer
    assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].type == "reasoning" and answer.output[0].status == "incomplete" and answer.output_text == ""


@pytest.mark.parametrize(
    ("choice", "called"),
    [("required", True), ({"type": "function", "name": "get_weather"}, True), ("none", False)],
    ids=["required", "named", "none"],
)
def test_the_model_calls_what_it_is_told_to(client, choice, called):
    asked = dict(model="nano", tools=[{**WEATHER, "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}])
    answer = client.responses.create(input=SUM, tool_choice=choice, parallel_tool_calls=False, max_output_tokens=1500, **asked)
    assert [item.name for item in answer.output if item.type == "function_call"] == ["get_weather"] * called


def test_what_agents_send(client, served):
    """Bodies as codex and agents' libraries make them: fields and tools that are not for us, items without content."""
    served.says["Go on."] = turn(answer="Done.")
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Rules."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Do it."}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"},
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
        {
            "type": "message",
            "role": "assistant",
            "phase": "commentary",
            "content": [{"type": "output_text", "text": "I begin.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city": "Bern"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "sunny"}]},
        {"type": "message", "role": "assistant", "phase": "final_answer", "content": [{"type": "refusal", "refusal": "No."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Go on."}]},
    ]
    answer = client.responses.create(
        model="gpt-something-else",
        instructions="You are an agent.",
        input=items,
        tools=[
            WEATHER,
            {"type": "namespace", "name": "mcp", "description": "Others.", "tools": []},
            {"type": "web_search", "external_web_access": True},
        ],
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning={"effort": "medium", "summary": "auto"},
        include=["reasoning.encrypted_content"],
        store=False,
        stream=False,
        text={"verbosity": "low"},
        prompt_cache_key="0199",
        service_tier="auto",
        metadata={"a": "b"},
        extra_body={"client_metadata": {"x": "y"}, "a_field_of_next_month": {"deep": [1]}},
    )
    assert answer.model == "gpt-something-else", "an answer bears the name that it was asked under"
    assert answer.output_text == "Done." and [tool.type for tool in answer.tools] == ["function", "namespace", "web_search"]
    assert answer.metadata == {"a": "b"}
    with pytest.raises(BadRequestError) as raised:
        client.responses.create(model="nano", input=SUM, tools=[{"type": "web_search"}], tool_choice={"type": "web_search"})
    assert raised.value.param == "tool_choice"


def test_a_warm_up_is_answered(client):
    answer = client.responses.create(model="nano", input="", max_output_tokens=1)
    assert answer.status == "incomplete" and answer.usage.output_tokens == 1


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "said",
    [
        "<|channel|>oracle<|message|>Well.<|end|>",
        "Well.<|end|><|start|><|start|>user<|message|><|channel|>",
        "<|channel|>commentary to=functions.nobody<|message|>{not json<|call|>",
        "<|channel|>",
        "<|return|>",
        "<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|><|return|>",
    ],
    ids=["channel", "junk", "call", "header", "nothing", "empty"],
)
def test_what_a_model_writes_wrongly_is_an_answer_all_the_same(client, served, said, streamed):
    served.says["Say it."] = said
    answer = client.responses.create(model="nano", input="Say it.", max_output_tokens=200, stream=streamed)
    answer = list(answer)[-1].response if streamed else answer
    assert answer.status in ("completed", "incomplete") and answer.error is None


def test_a_stream_that_is_left_holds_nothing(client, served):
    stream = client.responses.create(model="nano", input=SUM, stream=True, max_output_tokens=3000, temperature=2)
    for event in stream:
        if event.type.endswith(".delta"):
            break
    stream.close()
    assert served.idle()
