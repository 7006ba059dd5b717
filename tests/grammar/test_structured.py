"""Structured output from end to end, on nano, which never saw JSON: forms hold, reasoning stays free, neighbours notice nothing."""

import json
import re

import jsonschema
import pytest

import gptoss_jax as gj

SCHEMA = {
    "type": "object",
    "properties": {
        "sum": {"type": "integer", "minimum": 0, "maximum": 999},
        "parity": {"enum": ["even", "odd"]},
        "sure": {"type": "boolean"},
    },
    "required": ["sum", "parity", "sure"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Gets the weather in a city.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["Bern", "Chur"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["place", "days"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def llm():
    return gj.LLM("nano", slots=4, context=512)


def seeded(seed):
    return gj.Sampling(temperature=1, seed=seed, max_tokens=300, logprobs=0)


@pytest.mark.thorough
@pytest.mark.parametrize("effort", ["low", "high"])
def test_an_answer_is_of_its_schema_and_reasoning_is_free(llm, effort):
    free = llm.chat("What is 27 + 58?", gj.Sampling(temperature=0), reasoning_effort=effort)
    formed = llm.chat("What is 27 + 58?", gj.Sampling(temperature=0), reasoning_effort=effort, response_format=FORM)
    jsonschema.validate(json.loads(formed.text), SCHEMA)
    assert formed.reasoning == free.reasoning != "" and formed.finish_reason == "stop" and not formed.malformed


@pytest.mark.thorough
def test_every_seed_gives_a_valid_answer_beside_others_and_where_the_cache_runs_out(llm):
    """The same to the bit alone, beside free requests, and after giving way."""
    tasks = [
        gj.Task(key=i, messages=f"What is {20 + i} + 4?", sampling=seeded(i), response_format=FORM if i % 2 else None) for i in range(12)
    ]
    told = lambda llm, tasks: {o.task.key: (o.answers[0].tokens, o.answers[0].logprobs, o.answers[0].text) for o in llm.run(tasks)}
    together = told(llm, tasks)
    for i in range(1, 12, 2):
        jsonschema.validate(json.loads(together[i][2]), SCHEMA)
    for i in (0, 3, 7):
        assert told(llm, [tasks[i]])[i] == together[i]
    small = gj.LLM("nano", slots=4, context=512, cache_tokens=512)
    long = [gj.Task(key=t.key, messages=[{"role": "user", "content": "What is 1 + 1? " * 12 + t.messages}], sampling=t.sampling,
                    response_format=t.response_format) for t in tasks]  # fmt: skip
    assert told(small, long) == told(llm, long)
    assert small.engine.stats.preemptions > 0


def test_a_stream_is_formed_too(llm):
    stream = llm.stream("What is 27 + 58?", gj.Sampling(temperature=0), response_format=FORM)
    text = "".join(piece.text for piece in stream if piece.channel == "final")
    assert text == stream.reply.text == llm.chat("What is 27 + 58?", gj.Sampling(temperature=0), response_format=FORM).text


def test_a_strict_tool_s_arguments_are_of_its_parameters(llm):
    """nano learned to write {"city": ...}; these parameters have no such property."""
    for seed in range(3):
        reply = llm.chat("What is the weather in Paris?", seeded(seed), tools=[TOOL])
        assert reply.finish_reason == "tool_calls"
        jsonschema.validate(reply.tool_calls[0].parsed, TOOL["function"]["parameters"])
    loose = {"type": "function", "function": {**TOOL["function"], "strict": False}}
    assert llm.chat("What is the weather in Paris?", gj.Sampling(temperature=0), tools=[loose]).tool_calls[0].parsed.keys() == {"city"}


def test_plain_text_is_formed_from_its_first_token(llm):
    formed = llm.generate(["abc", [5, 6]], [seeded(1), seeded(2)], response_format={"type": "regex", "regex": "[0-9]{3}-[a-z]{2,5}"}, n=2)
    assert all(re.fullmatch("[0-9]{3}-[a-z]{2,5}", one.text) and one.finish_reason == "stop" for samples in formed for one in samples)


def test_a_form_that_nothing_has_is_refused_and_the_others_go_on(llm):
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer", "minimum": 5, "maximum": 1}}}
    with pytest.raises(ValueError, match="minimum"):
        llm.chat("?", response_format=bad)
    tasks = [
        gj.Task(key=i, messages="What is 2 + 3?", sampling=gj.Sampling(temperature=0), response_format=bad if i == 1 else None)
        for i in range(3)
    ]
    outcomes = {outcome.task.key: outcome for outcome in llm.run(tasks)}
    assert "minimum" in outcomes[1].error and not outcomes[1].answers
    assert outcomes[0].answers[0].text == outcomes[2].answers[0].text == "2 + 3 = 5"
    with pytest.raises(ValueError, match="ignore_eos"):
        llm.generate("a", gj.Sampling(ignore_eos=True, max_tokens=5), response_format={"type": "regex", "regex": "a"})
