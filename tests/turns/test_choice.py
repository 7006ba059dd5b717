"""tool_choice and parallel_tool_calls: what they may be, and that a turn of nano's keeps to them, beside others that notice nothing."""

import asyncio
import dataclasses
import json

from byte_tokenizer import ByteTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
import jsonschema
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax.turns import tasks
from gptoss_jax.turns.forms import Choice, read_choice

WEATHER = {"type": "object", "properties": {"city": {"enum": ["Bern", "Chur"]}}, "required": ["city"], "additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Gets the weather in a city.", "parameters": WEATHER}},
    {"name": "functions.get_time", "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC"]}}, "required": ["zone"]}},
]


def named(name):
    return {"type": "function", "function": {"name": name}}


def allowed(mode, *names):
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


@pytest.mark.parametrize(
    "given, read",
    [
        (None, Choice()),
        ("auto", Choice()),
        ("none", Choice("none")),
        ("required", Choice("required")),
        (named("functions.f"), Choice("required", ("f",))),
        (allowed("auto", "f", "g"), Choice("auto", ("f", "g"))),
        (allowed("required", "g"), Choice("required", ("g",))),
    ],
)
def test_forms_of_a_choice(given, read):
    assert read_choice(given) == read


@pytest.fixture(scope="module")
def blank():
    """An LLM that runs nothing."""
    return gj.LLM(dataclasses.replace(small_model(), tokenizer=ByteTokenizer()), slots=4, context=1024, chunk=16)


REFUSED = [
    ({"tool_choice": "any"}, """tool_choice must be "none", "auto", "required", {"type": "function","""),
    ({"tool_choice": "Required"}, "got 'Required'; pass one of them."),
    ({"tool_choice": {"type": "custom"}}, "got {'type': 'custom'}"),
    ({"tool_choice": {"type": "function", "name": "get_time"}}, 'must name one function as {"type": "function", "function": '),
    ({"tool_choice": named("get_time") | {"strict": True}}, "must name one function as"),
    ({"tool_choice": named(["get_time"])}, "must name one function as"),
    ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, 'must be {"type": "allowed_tools", "allowed_tools": '),
    ({"tool_choice": allowed("none", "get_time")}, "mode must be \"auto\" or \"required\"; got 'none'"),
    ({"tool_choice": allowed("auto")}, "tools must be a list of at least one"),
    ({"tool_choice": allowed("auto", "get_time", "functions.get_time")}, "must name each function once; got 'get_time' twice"),
    ({"tool_choice": named("f")}, "must name functions that are in tools; 'f' is not among them; pass one of 'get_weather, get_time'"),
    ({"tool_choice": allowed("auto", "get_time", "f\ud800")}, r"'f\ud800' is not among them"),
    ({"tool_choice": "required", "tools": None}, "must come with tools where it asks for calls; there are none"),
    ({"tool_choice": allowed("auto", "get_time"), "tools": []}, "must come with tools"),
    ({"tool_choice": "required", "sampling": gj.Sampling(ignore_eos=True, max_tokens=9)}, "ignore_eos and tool_choice contradict"),
    (
        {"tool_choice": "required", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "It is"}],
         "options": {"continue_final_message": True}},
        "tool_choice and continue_final_message contradict each other",
    ),
    ({"tool_choice": "required", "tools": [{"name": "f", "parameters": {"not": {}}}]}, "tools[0]: parameters must"),
    ({"tool_choice": named("f"), "tools": [*TOOLS, {"name": "f", "parameters": {"not": {}}}]}, "tools[2]: parameters must"),
    ({"parallel_tool_calls": None}, "parallel_tool_calls must be True or False; got None"),
    ({"parallel_tool_calls": 0}, "parallel_tool_calls must be True or False; got 0"),
]  # fmt: skip


@pytest.mark.parametrize("more, words", REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_chosen_is_refused_in_a_sentence(blank, more, words):
    with pytest.raises(ValueError) as refused:
        tasks.begin(blank, gj.Task(**{"messages": "x", "tools": TOOLS} | more))
    assert words in str(refused.value) and len(str(refused.value)) < 400 and "\n" not in str(refused.value)


def test_a_tool_that_no_grammar_follows_harms_no_choice_of_another(blank):
    tools = [*TOOLS, {"name": "f", "parameters": {"not": {}}}]
    for choice in (None, named("get_time"), allowed("auto", "f", "get_time")):
        tasks.begin(blank, gj.Task(messages="x", tools=tools, tool_choice=choice))


def test_nothing_is_asked_of_tokens_where_the_model_chooses(blank):
    for choice in (None, "auto", "none"):
        [request] = tasks.begin(blank, gj.Task(messages="x", tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)).requests
        assert request.constraint is None


def test_the_prompt_shows_all_tools_whatever_may_be_called(blank):
    prompts = [
        tasks.begin(blank, gj.Task(messages="x", tools=TOOLS, tool_choice=choice)).requests[0].prompt
        for choice in (None, "required", named("get_time"), allowed("auto", "get_weather"))
    ]
    assert all(prompt == prompts[0] for prompt in prompts)
    assert len(tasks.begin(blank, gj.Task(messages="x", tools=TOOLS, tool_choice="none")).requests[0].prompt) < len(prompts[0])


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.text(max_size=5) | st.integers() | st.sampled_from(["function", "allowed_tools", "auto", "required"]),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "function", "name", "allowed_tools", "mode", "tools"]), inner, max_size=3),
    )
)
def test_anything_is_a_choice_or_refused_in_a_sentence(value):
    try:
        found = read_choice(value)
    except ValueError as error:
        assert str(error).startswith("tool_choice") and len(str(error)) < 400
    else:
        assert found.mode in ("none", "auto", "required")


@pytest.fixture(scope="module")
def llm():
    return gj.LLM("nano", slots=4, context=1024)


def check(reply, names=("get_weather", "get_time")):
    """A turn that had to call one of names."""
    assert not reply.malformed and reply.error is None and reply.text == ""
    if reply.finish_reason == "length":
        return
    [call] = reply.tool_calls
    assert reply.finish_reason == "tool_calls" and call.name in names and reply.parsed.messages[-1].end == "<|call|>"
    parameters = {"get_weather": WEATHER, "get_time": TOOLS[1]["parameters"]}[call.name]
    jsonschema.validate(call.parsed, parameters)


@pytest.mark.thorough
def test_nano_calls_what_it_must_whatever_it_would_have_said(llm):
    """Every effort, several answers, beside free ones, whose bits stay what they are alone."""
    free = [gj.Task(key=("free", i), messages=f"What is {i} + 48?", sampling=gj.Sampling(seed=i, logprobs=1)) for i in range(6)]
    alone = {one.task.key: one.answers for one in llm.run(free)}
    must = [
        gj.Task(key=("must", effort, i), messages=asked, n=2, tools=TOOLS, reasoning_effort=effort, tool_choice=choice,
                sampling=gj.Sampling(seed=i, temperature=1.2, max_tokens=300), parallel_tool_calls=bool(i % 2),
                response_format={"type": "json_object"} if i == 2 else None)
        for effort in ("low", "medium", "high")
        for i, (asked, choice) in enumerate([
            ("What is 40 + 45?", "required"), ("Is it warm in Bern?", named("get_time")), ("Hi", allowed("required", "get_weather")),
        ])
    ]  # fmt: skip
    ends = []
    for one in llm.run([task for pair in zip(must, [*free, *free], strict=False) for task in pair]):
        assert one.error is None
        if one.task.key[0] == "free":
            assert one.answers == alone[one.task.key]
            continue
        assert len(one.answers) == 2
        for reply in one.answers:
            check(reply, read_choice(one.task.tool_choice).names or ("get_weather", "get_time"))
            ends.append(reply.finish_reason)
    assert ends.count("tool_calls") > len(ends) // 2


@pytest.mark.thorough
def test_reasoning_is_as_it_is_without_a_choice(llm):
    greedy = gj.Sampling(temperature=0)
    free = llm.chat("What is 40 + 45?", greedy, tools=TOOLS)
    must = llm.chat("What is 40 + 45?", greedy, tools=TOOLS, tool_choice="required")
    assert must.reasoning.startswith(free.reasoning) and free.reasoning and not free.tool_calls
    check(must)


@pytest.mark.thorough
def test_of_the_allowed_tools_only_can_one_be_called_and_none_need_be(llm):
    greedy = gj.Sampling(temperature=0, max_tokens=200)
    how = {"tools": TOOLS, "tool_choice": allowed("auto", "get_time")}
    assert llm.chat("What is 40 + 45?", greedy, **how).text == llm.chat("What is 40 + 45?", greedy, tools=TOOLS).text != ""
    assert [call.name for call in llm.chat("What is the weather in Bern?", greedy, tools=TOOLS).tool_calls] == ["get_weather"]
    for seed in range(4):
        reply = llm.chat("What is the weather in Bern?", gj.Sampling(seed=seed, max_tokens=200), **how)
        assert not reply.malformed and {call.name for call in reply.tool_calls} <= {"get_time"}
    reply = llm.chat("What is 40 + 45?", greedy, **how, response_format={"type": "json_object"})
    assert reply.tool_calls or isinstance(json.loads(reply.text), dict)


@pytest.mark.thorough
def test_streams_keep_to_a_choice_too(llm):
    how = {"tools": TOOLS, "tool_choice": named("get_time"), "parallel_tool_calls": False}
    greedy = gj.Sampling(temperature=0)
    with llm.stream("What is 40 + 45?", greedy, **how) as stream:
        pieces = list(stream)
    check(stream.reply, ["get_time"])
    assert {piece.call for piece in pieces} == {None, "get_time"} and not any(piece.answers for piece in pieces)

    async def go():
        astream = llm.astream("What is 40 + 45?", greedy, **how)
        texts = [piece.text async for piece in astream if piece.call]
        return "".join(texts), astream.reply, await llm.achat("What is 40 + 45?", greedy, **how)

    arguments, streamed, whole = asyncio.run(go())
    assert streamed == whole == stream.reply and arguments == whole.tool_calls[0].arguments
