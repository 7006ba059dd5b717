"""Whatever stands in a line: it becomes a request or a refusal, and never stops the job."""

import json

from fake_llm import FakeLLM, FakeTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_jax.batch import lines, plain, results
from gptoss_jax.openai import reading
from gptoss_jax.openai.asked import Defaults
from gptoss_jax.openai.errors import Refused

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    sorted({*plain.TABLE.fields, *(name for table in reading.TABLES.values() for name in table.fields)} - {"id"})
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
        outcomes = [FakeLLM().answer(task) for task in request.tasks]
    except Refused as refusal:
        assert str(refusal)
        return json.loads(results.refused(line, refusal))
    return json.loads(results.answered(request, outcomes, FakeTokenizer()))


def id_of(result: dict) -> object:
    return result.get("custom_id", result["id"])


@given(st.binary(max_size=40))
def test_any_bytes(text):
    assert "error" in answer(text)


@given(values)
def test_any_json(value):
    assert "error" in answer(json.dumps(value).encode())


@settings(max_examples=300, deadline=None)
@given(bodies)
def test_any_plain_fields(body):
    assert id_of(answer(json.dumps({"id": "a"} | body).encode())) == "a"


@settings(max_examples=250, deadline=None)
@given(bodies, st.sampled_from([*lines._URLS]), st.dictionaries(st.sampled_from(["method", "more"]), values))
def test_any_bodies(body, url, more):
    out = answer(json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body} | more).encode())
    assert id_of(out) == "a" and out["response"]["status_code"] in (200, 400)
    if out["response"]["status_code"] == 200:
        known = reading.TABLES[lines._URLS[url]].fields
        assert {name for name, value in body.items() if value is not None} <= known.keys()
