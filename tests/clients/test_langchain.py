"""langchain-openai: tools, structured output and streams, through /v1/chat/completions and /v1/responses."""

from typing import Literal

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel
import pytest
from replaying import turn

pytestmark = pytest.mark.thorough

SUM, ASK = "What is 40 + 45?", "How is it in Bern?"


@tool
def get_weather(city: str) -> str:
    """Of a city."""
    return f"sunny in {city}"


class Trip(BaseModel):
    """Where to."""

    city: Literal["Bern", "Oslo"]
    days: Literal[1, 2, 3]


@pytest.fixture(params=["chat", "responses"])
def model(request, served, http) -> ChatOpenAI:
    how = dict(use_responses_api=request.param == "responses", stream_usage=True, http_client=http, max_retries=0)
    return ChatOpenAI(model="nano", base_url=served.url, api_key="none", temperature=0, **how)


def test_an_answer_and_its_stream(model):
    answer = model.invoke(SUM)
    assert answer.text.endswith("85") and answer.usage_metadata["output_tokens"] > 0
    whole = None
    for chunk in model.stream(SUM):
        whole = chunk if whole is None else whole + chunk
    assert whole.text == answer.text and whole.usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"]


@pytest.mark.parametrize("streamed", [False, True])
def test_tools_are_called_and_answered(model, served, streamed):
    served.says[ASK] = turn(thought="I look.", said="A moment.", calls=[("get_weather", '{"city": "Bern"}')])
    served.says["sunny in Bern"] = turn(thought="Sunny.", answer="It is sunny.")
    bound, said = model.bind_tools([get_weather]), [HumanMessage(ASK)]
    if streamed:
        answer = None
        for chunk in bound.stream(said):
            answer = chunk if answer is None else answer + chunk
    else:
        answer = bound.invoke(said)
    [call] = answer.tool_calls
    assert (call["name"], call["args"], answer.text) == ("get_weather", {"city": "Bern"}, "A moment.")
    result = get_weather.invoke(call)
    assert isinstance(answer, AIMessage) and isinstance(result, ToolMessage)
    assert bound.invoke([*said, answer, result]).text == "It is sunny."
    heard = [(one.author, one.recipient, one.channel, one.text) for one in served.heard[-1]]
    assert heard[-1] == ("functions.get_weather", "assistant", "commentary", "sunny in Bern")
    assert ("assistant", None, "commentary", "A moment.") in heard
    assert heard[-2][:3] == ("assistant", "functions.get_weather", "commentary")


@pytest.mark.parametrize("choice", ["any", "get_weather"])
def test_a_call_is_demanded(model, choice):
    answer = model.bind_tools([get_weather, Trip], tool_choice=choice, parallel_tool_calls=False).invoke(SUM, max_tokens=1500)
    [call] = answer.tool_calls or answer.invalid_tool_calls
    assert call["name"] in (["get_weather"] if choice == "get_weather" else ["get_weather", "Trip"])


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output(model, method):
    found = model.with_structured_output(Trip, method=method, strict=True).invoke("Where to?")
    assert isinstance(found, Trip)


def test_a_conversation_that_the_server_keeps(served, http):
    served.says["Second."] = turn(answer="Yes.")
    how = dict(use_responses_api=True, use_previous_response_id=True, http_client=http, max_retries=0)
    model = ChatOpenAI(model="nano", base_url=served.url, api_key="none", **how)
    first = model.invoke([HumanMessage(SUM)])
    assert model.invoke([HumanMessage(SUM), first, HumanMessage("Second.")]).text == "Yes."
    assert [one.text for one in served.heard[-1] if one.author == "user"] == [SUM, "Second."]


def test_log_probabilities(served, http):
    model = ChatOpenAI(model="nano", base_url=served.url, api_key="none", http_client=http, logprobs=True, top_logprobs=2, temperature=0)
    answer = model.invoke(SUM)
    entries = answer.response_metadata["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == answer.text and len(entries[0]["top_logprobs"]) == 2


def test_plain_text_is_continued(served, http):
    model = OpenAI(model="nano", base_url=served.url, api_key="none", http_client=http, max_tokens=8, temperature=0, max_retries=0)
    assert model.invoke("What is") == "".join(model.stream("What is"))
