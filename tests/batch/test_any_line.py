"""Whatever stands in a line: it becomes a request or a refusal, and never stops the job."""

import json

from fake_llm import FakeLLM, FakeTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_jax.batch import fields, lines, openai_chat, openai_responses, results
from gptoss_jax.batch.fields import Defaults, Refused
from gptoss_jax.turns.tasks import Task

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    sorted({*lines._PLAIN, *openai_chat._KNOWN, *openai_chat._FIXED, *openai_responses._KNOWN, *openai_responses._FIXED, "model"} - {"id"})
)
likely = {"temperature": 0.5, "top_p": 0.5, "n": 2, "stop": "x", "seed": 1, "logprobs": True, "top_logprobs": 2, "stream": False}
bodies = st.dictionaries(names, values, max_size=3).flatmap(
    lambda body: st.sampled_from(
        [body, {"messages": [{"role": "user", "content": "x"}]} | body, {"input": "x"} | body, {"prompt": "x"} | body]
    )
)
bodies = bodies.flatmap(
    lambda body: st.sets(st.sampled_from(sorted(likely))).map(lambda more: {name: likely[name] for name in more} | body)
)


def answer(text: bytes) -> dict:
    """What the job does with a line; the result as JSON."""
    line = lines.parse(text, 1)
    try:
        request = lines.read(line, Defaults())
        outcome = FakeLLM().answer(Task(**request.task))
    except Refused as refusal:
        assert str(refusal)
        return json.loads(results.refused(line, refusal))
    return json.loads(results.answered(request, outcome, FakeTokenizer()))


def id_of(result: dict) -> object:
    return result.get("custom_id", result["id"])


@given(st.binary(max_size=40))
def test_any_bytes(text):
    assert "error" in answer(text)


@given(values)
def test_any_json(value):
    assert "error" in answer(json.dumps(value).encode())


@settings(max_examples=300)
@given(bodies)
def test_any_plain_fields(body):
    assert id_of(answer(json.dumps({"id": "a"} | body).encode())) == "a"


@settings(max_examples=400)
@given(bodies, st.sampled_from(["/v1/chat/completions", "/v1/responses"]), st.dictionaries(st.sampled_from(["method", "more"]), values))
def test_any_bodies(body, url, more):
    out = answer(json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body} | more).encode())
    assert id_of(out) == "a" and out["response"]["status_code"] in (200, 400)
    if out["response"]["status_code"] == 200:
        known = openai_chat if url.endswith("completions") else openai_responses
        assert {name for name, value in body.items() if value is not None} <= {*known._KNOWN, *known._FIXED, *known._WITHOUT_EFFECT}


@given(values)
def test_any_item_of_a_response(item):
    try:
        openai_responses.messages([item])
    except Refused:
        pass


@given(values, values)
def test_any_tools(tools, choice):
    try:
        fields.tools({"tools": tools, "tool_choice": choice})
    except Refused:
        pass
