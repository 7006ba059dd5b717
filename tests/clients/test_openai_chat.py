"""OpenAI's library at /v1/chat/completions and /v1/completions: it works at the first try, and all that it is sent has its types."""

import asyncio
import json
from typing import Literal

import httpx
from openai import AsyncOpenAI, OpenAI
from openai_wire import Wire
from pydantic import BaseModel
import pytest
from replaying import TWO_CALLS, turn

pytestmark = pytest.mark.thorough

SUM = [{"role": "user", "content": "What is 40 + 45?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bern", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
ASK = [{"role": "user", "content": "How is it in Bern and Oslo?"}]


@pytest.fixture
def client(served, http) -> OpenAI:
    return OpenAI(base_url=served.url, api_key="none", http_client=http, max_retries=0)


def test_an_answer(client):
    answer = client.chat.completions.create(model="nano", messages=SUM, temperature=0, seed=1)
    [choice] = answer.choices
    assert choice.message.content.endswith("85") and choice.finish_reason == "stop"
    assert choice.message.reasoning and choice.message.reasoning == choice.message.reasoning_content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 < answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens


def test_a_stream_says_what_the_whole_answer_says(client):
    asked = dict(model="nano", messages=SUM, temperature=0, seed=1, n=2, logprobs=True, top_logprobs=2)
    whole = client.chat.completions.create(**asked)
    text, reasoning, tokens, ends = {}, {}, {}, {}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert [(c.choices[0].delta.role, c.choices[0].delta.content) for c in chunks[:1]] == [("assistant", "")]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    for chunk in chunks[:-1]:
        for choice in chunk.choices:
            i, delta = choice.index, choice.delta
            text[i] = text.get(i, "") + (delta.content or "")
            reasoning[i] = reasoning.get(i, "") + (getattr(delta, "reasoning", None) or "")
            assert getattr(delta, "reasoning", None) == getattr(delta, "reasoning_content", None)
            tokens.setdefault(i, []).extend((choice.logprobs and choice.logprobs.content) or [])
            ends[i] = choice.finish_reason or ends.get(i)
    for choice in whole.choices:
        i = choice.index
        assert (text[i], reasoning[i], ends[i]) == (choice.message.content, choice.message.reasoning, choice.finish_reason)
        assert tokens[i] == choice.logprobs.content and len(tokens[i][0].top_logprobs) == 2
        assert "".join(token.token for token in tokens[i]) == text[i]


def test_the_library_s_own_stream(client):
    with client.chat.completions.stream(model="nano", messages=SUM, temperature=0, seed=1) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds and kinds[-1] == "content.done"
    assert (
        final.choices[0].message.content
        == client.chat.completions.create(model="nano", messages=SUM, temperature=0, seed=1).choices[0].message.content
    )


@pytest.mark.parametrize("streamed", [False, True])
def test_calls_are_answered_and_nothing_of_the_turn_is_lost(client, served, streamed):
    served.says[ASK[0]["content"]] = TWO_CALLS
    served.says["rain"] = turn(thought="Both are known.", answer="Bern sunny, Oslo rain.")
    asked = dict(model="nano", messages=ASK, tools=[WEATHER])
    if streamed:
        with client.chat.completions.stream(**asked) as stream:
            choice = stream.until_done().get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**asked).choices[0]
    message = choice.message
    assert choice.finish_reason == "tool_calls" and message.content == "I look at both."
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == [{"city": "Bern"}, {"city": "Oslo"}]
    assert len({call.id for call in message.tool_calls}) == 2
    results = zip(message.tool_calls, ("sunny", "rain"), strict=True)
    answered = [{"role": "tool", "tool_call_id": call.id, "content": text} for call, text in results]
    last = client.chat.completions.create(model="nano", messages=[*ASK, message, *answered], tools=[WEATHER])
    assert last.choices[0].message.content == "Bern sunny, Oslo rain."
    heard = [(one.author, one.recipient, one.channel, one.text) for one in served.heard[-1][2:]]
    assert heard[0] == ("user", None, None, ASK[0]["content"])
    assert ("assistant", "functions.get_weather", "commentary", '{"city": "Bern"}') in heard
    assert ("functions.get_weather", "assistant", "commentary", "sunny") in heard
    assert heard[-1] == ("functions.get_weather", "assistant", "commentary", "rain")
    assert any(channel == "analysis" and "Two cities." in text for _, _, channel, text in heard), "reasoning before a call is kept"
    assert any(recipient is None and text == "I look at both." for _, recipient, _, text in heard)


def test_what_clients_send_back_of_an_assistant(client):
    """Fields that other servers put beside content, null or empty, come back."""
    beside = dict(refusal=None, annotations=[], audio=None, function_call=None, reasoning_content="Sums.", tool_calls=None)
    said = [{"role": "assistant", "content": "85", **beside}, {"role": "user", "content": "What is 1 + 1?"}]
    assert client.chat.completions.create(model="nano", messages=[*SUM, *said], temperature=0).choices[0].message.content


class Trip(BaseModel):
    city: Literal["Bern", "Oslo"]
    days: Literal[1, 2, 3]


def test_an_answer_is_parsed_into_a_class(client):
    ask = [{"role": "user", "content": "Where to?"}]
    answer = client.chat.completions.parse(model="nano", messages=ask, response_format=Trip, max_tokens=800, seed=3)
    assert isinstance(answer.choices[0].message.parsed, Trip)
    with client.chat.completions.stream(model="nano", messages=ask, response_format=Trip, max_tokens=800, seed=3) as stream:
        assert stream.until_done().get_final_completion().choices[0].message.parsed == answer.choices[0].message.parsed


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"get_weather", "get_time"}),
        ({"type": "function", "function": {"name": "get_time"}}, {"get_time"}),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_weather"}}]},
            },
            {"get_weather"},
        ),
        ("none", set()),
    ],
    ids=["required", "named", "allowed", "none"],
)
def test_the_model_calls_what_it_is_told_to(client, choice, names):
    asked = dict(model="nano", messages=SUM, tools=[WEATHER, TIME], tool_choice=choice, max_tokens=1500, seed=5)
    [found] = client.chat.completions.create(**asked, parallel_tool_calls=False).choices
    called = [call.function.name for call in found.message.tool_calls or ()]
    assert set(called) <= names and len(called) == bool(names)
    assert found.finish_reason == ("tool_calls" if names else "stop")
    if called == ["get_weather"]:
        assert json.loads(found.message.tool_calls[0].function.arguments)["city"] in ("Bern", "Oslo")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "said",
    [
        "<|channel|>oracle<|message|>Well.<|end|>",
        "<|message|>Well.<|return|>",
        "Well.<|end|><|start|><|start|>user<|message|><|channel|>",
        "<|channel|>commentary to=functions.nobody<|message|>{not json<|call|>",
        "<|channel|>commentary to= <|constrain|><|constrain|>json<|message|>",
        "<|channel|>",
        "<|return|>",
        "<|channel|>final<|message|>" + "\N{REPLACEMENT CHARACTER}\ud83d\u2028\N{GRINNING FACE}" + "<|return|>",
    ],
    ids=["channel", "none", "junk", "nobody", "recipient", "header", "nothing", "unicode"],
)
def test_what_a_model_writes_wrongly_is_an_answer_all_the_same(client, served, said, streamed):
    served.says["Say it."] = said
    asked = dict(model="nano", messages=[{"role": "user", "content": "Say it."}], tools=[WEATHER], max_tokens=200)
    if streamed:
        reasons = [choice.finish_reason for chunk in client.chat.completions.create(**asked, stream=True) for choice in chunk.choices]
        assert reasons[-1] and not any(reasons[:-1])
    else:
        [choice] = client.chat.completions.create(**asked).choices
        assert choice.finish_reason and (choice.message.content is not None or choice.message.tool_calls)


def test_an_answer_that_was_cut_has_content(client, served):
    served.says["Think."] = turn(thought="Hm. " * 50, answer="Yes.")
    ask = [{"role": "user", "content": "Think."}]
    [choice] = client.chat.completions.create(model="nano", messages=ask, max_tokens=20).choices
    assert choice.finish_reason == "length" and choice.message.content == "" and choice.message.reasoning.startswith("Hm.")
    [choice] = client.chat.completions.create(model="nano", messages=ask, stop=["es"]).choices
    assert choice.finish_reason == "stop" and choice.message.content == "Y"
    [choice] = client.chat.completions.create(model="nano", messages=ask, max_completion_tokens=10**9).choices
    assert choice.message.content == "Yes."


def test_log_probabilities_are_null_where_nobody_asked(client):
    [choice] = client.chat.completions.create(model="nano", messages=SUM, max_tokens=5).choices
    assert choice.logprobs is None
    chunks = client.chat.completions.create(model="nano", messages=SUM, max_tokens=5, stream=True)
    assert all(choice.logprobs is None for chunk in chunks for choice in chunk.choices)


def test_models(client, served):
    [model] = client.models.list()
    found = client.models.retrieve(model.id)
    assert found == model and found.object == "model" and found.max_model_len == served.llm.engine.context


def test_many_at_once_and_some_that_leave(served):
    async def ask(client: AsyncOpenAI, i: int) -> str:
        stream = await client.chat.completions.create(model="nano", messages=SUM, stream=True, seed=i, temperature=0)
        text = ""
        async for chunk in stream:
            text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
            if i % 4 == 3 and text == "" and chunk.choices[0].delta.role is None:
                await stream.close()
                return "left"
        return text

    async def all_of_them() -> list[str]:
        async with httpx.AsyncClient(transport=(wire := Wire()), timeout=120) as http:
            client = AsyncOpenAI(base_url=served.url, api_key="none", http_client=http, max_retries=0)
            found = await asyncio.gather(*(ask(client, i) for i in range(16)))
            waiting = asyncio.create_task(client.chat.completions.create(model="nano", messages=SUM, n=8, max_tokens=3000, temperature=2))
            await asyncio.sleep(0.3)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        wire.check()
        return found

    found = asyncio.run(all_of_them())
    assert [one == "left" for one in found] == [i % 4 == 3 for i in range(16)] and len(set(found)) == 2


def test_completions(client):
    asked = dict(model="nano", prompt=["What is", "1 + 1 ="], max_tokens=8, temperature=0, n=2, logprobs=2, seed=1)
    whole = client.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    streamed = {i: "" for i in range(4)}
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == {choice.index: choice.text for choice in whole.choices}
    for choice in whole.choices:
        assert "".join(choice.logprobs.tokens) == choice.text and len(choice.logprobs.top_logprobs[0]) >= 2
        assert len({len(choice.logprobs.tokens), len(choice.logprobs.token_logprobs), len(choice.logprobs.text_offset)}) == 1


def test_a_prompt_is_scored(client):
    """As lm-eval does: the prompt's own log-probabilities, and no token drawn or one."""
    for most in (0, 1):
        [choice] = client.completions.create(
            model="nano", prompt="What is 1 + 1?", max_tokens=most, echo=True, logprobs=1, temperature=0
        ).choices
        assert choice.text.startswith("What is 1 + 1?")
        assert choice.logprobs.token_logprobs[0] is None and all(value <= 0 for value in choice.logprobs.token_logprobs[1:])
        assert "".join(choice.logprobs.tokens) == choice.text
        assert choice.logprobs.text_offset[0] == 0 and choice.logprobs.text_offset == sorted(choice.logprobs.text_offset)
