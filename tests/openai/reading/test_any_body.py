"""Whatever stands in a body: it becomes Tasks or a refusal, and nothing else is ever raised."""

import copy
import json

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from gptoss_jax.openai import errors, reading
from gptoss_jax.openai.asked import Asked, Reading
from gptoss_jax.sampling.options import Sampling

LIVE = Reading(live=True, strict=False)
WEATHER = {"name": "get_weather", "description": "Weather.", "parameters": {"type": "object"}, "strict": True}
BODIES = {
    "chat": {
        "model": "m",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}], "name": "ann"},
            {
                "role": "assistant",
                "content": None,
                "reasoning": "Look.",
                "refusal": None,
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "sunny"},
        ],
        "tools": [{"type": "function", "function": WEATHER}],
        "tool_choice": {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "get_weather"}}]},
        },
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        "stream": True,
        "stream_options": {"include_usage": True},
        "stop": ["a"],
        "logit_bias": {"3": 1},
        "chat_template_kwargs": {"reasoning_effort": "low"},
        "logprobs": True,
        "top_logprobs": 2,
        "n": 2,
        "seed": 3,
        "metadata": {"a": "b"},
    },
    "responses": {
        "model": "m",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Look."}]},
            {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "sunny"}]},
            {"type": "message", "role": "assistant", "phase": "commentary", "content": [{"type": "refusal", "refusal": "No."}]},
            {"type": "item_reference", "id": "msg_1"},
        ],
        "previous_response_id": "resp_1",
        "instructions": "Be brief.",
        "tools": [{"type": "function", **WEATHER}, {"type": "web_search"}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_weather"}]},
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {}}, "verbosity": "low"},
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
        "top_logprobs": 2,
        "stream": True,
        "store": True,
    },
    "completions": {
        "prompt": [[1, 2], [3]],
        "max_tokens": 3,
        "echo": True,
        "logprobs": 1,
        "n": 2,
        "best_of": 2,
        "stop": "x",
        "structured_outputs": {"regex": "a"},
    },
}
every_endpoint = pytest.mark.parametrize("endpoint", BODIES)
text = st.text(st.characters(), max_size=6) | st.sampled_from(["", "\ud800", "<|end|>", "auto", "function", "message", "x" * 3000])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text | st.just(10**4000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


class Kept:
    """Two responses, as if they were kept."""

    def items(self, response_id):
        return [{"type": "message", "role": "user", "content": "Hello"}] if response_id == "resp_1" else None

    def item(self, item_id):
        return {"type": "message", "role": "assistant", "id": item_id, "content": "Hi"} if item_id == "msg_1" else None


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Ways to all values of a body."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


def put(body: dict, path: tuple, value: object) -> object:
    if not path:
        return value
    body = copy.deepcopy(body)
    at = body
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return body


def read(endpoint: str, body: object, how: Reading = LIVE) -> Asked | errors.Refused:
    """Whichever comes of a body; it is checked that all that is said of it can be sent."""
    try:
        asked = reading.read(endpoint, body, name="a", reading=how, earlier=Kept())
    except errors.Refused as refused:
        assert refused.status in (400, 404) and len(str(refused)) < 1500
        json.dumps(errors.body_of(refused))
        return refused
    assert asked.tasks and all(isinstance(task.sampling, Sampling) for task in asked.tasks)
    assert isinstance(asked.stream, bool) and isinstance(asked.include_usage, bool) and asked.draws in (True, False)
    json.dumps([asked.ignored, reading.input_items(asked)])
    for word in ("messages[0]: role must", "messages[1] is", "tools[0]: name", "response_format.json_schema", "prompt", "temperature must"):
        assert str(reading.refusal(asked, word))
    return asked


@every_endpoint
def test_what_the_others_begin_with_is_read(endpoint):
    assert isinstance(read(endpoint, BODIES[endpoint]), Asked)


@settings(max_examples=50, deadline=None)
@given(st.data(), values)
@every_endpoint
def test_any_value_anywhere_is_read_or_refused(endpoint, data, value):
    body = BODIES[endpoint]
    body = put(body, data.draw(st.sampled_from(places(body))), value)
    for how in (LIVE, Reading(live=True)):
        read(endpoint, body, how)


@settings(max_examples=30, deadline=None)
@given(st.data(), text, values)
@every_endpoint
def test_whatever_is_added_anywhere_but_to_what_is_the_callers_own_is_passed_over_and_named(endpoint, data, name, value):
    body = BODIES[endpoint]
    objects = [path for path in places(body) if isinstance(at(body, path), dict) and not {"metadata", "parameters", "schema"} & {*path}]
    path = data.draw(st.sampled_from([path for path in objects if path[-1:] != ("logit_bias",) and path != ("tools", 1)]))
    read(endpoint, put(body, (*path, f"new_{name}"), value))
    found = read(endpoint, put(body, (*path, "new_field"), 1))
    assert isinstance(found, Asked) and any(one.endswith("new_field") for one in found.ignored)
    assert found.tasks == read(endpoint, body).tasks


def at(body: object, path: tuple) -> object:
    for key in path:
        body = body[key]
    return body


@settings(max_examples=25, deadline=None)
@given(values)
@every_endpoint
def test_any_json_is_read_or_refused(endpoint, value):
    read(endpoint, value)


@every_endpoint
def test_what_is_nested_deeply_is_read_or_refused(endpoint):
    deep = json.loads("[" * 490 + "]" * 490)
    body = BODIES[endpoint]
    for path in places(body):
        read(endpoint, put(body, path, deep))
        read(endpoint, put(body, path, {"a": deep}))
