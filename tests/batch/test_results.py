"""Lines of a batch's output: OpenAI's objects for OpenAI's lines, plain ones for plain ones, and nothing in them that changes."""

import json

from fake_llm import FakeLLM, FakeTokenizer
import pytest

from gptoss_jax.batch import lines, results
from gptoss_jax.harmony import to_conversation
from gptoss_jax.openai.asked import Defaults
from gptoss_jax.openai.errors import Refused

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}


def line(content: dict) -> bytes:
    request = lines.read(lines.parse(json.dumps(content).encode(), 1), Defaults())
    outcomes = [FakeLLM().answer(task) for task in request.tasks]
    return results.answered(request, outcomes, FakeTokenizer())


def chat(**body) -> dict:
    given = {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": HELLO} | body}
    return json.loads(line(given))


def responses(**body) -> dict:
    given = {"custom_id": "r", "method": "POST", "url": "/v1/responses", "body": {"model": "m", "input": "Hello"} | body}
    return json.loads(line(given))


def test_chat_completions():
    out = chat(n=2, seed=5, logprobs=True, top_logprobs=1)
    assert out["id"].startswith("batch_req_") and out["custom_id"] == "c" and out["error"] is None
    assert out["response"]["status_code"] == 200 and out["response"]["request_id"]
    body = out["response"]["body"]
    assert (body["object"], body["model"], body["created"]) == ("chat.completion", "m", 0)
    first, second = body["choices"]
    assert "seed 5 at 1" in first["message"]["content"] and "seed 6 at 1" in second["message"]["content"]
    assert first["message"]["reasoning_content"] == "hm" and (first["index"], second["index"]) == (0, 1)
    assert first["finish_reason"] == "stop"
    entries = first["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == first["message"]["content"]  # neither reasoning nor headers
    assert bytes(entries[0]["bytes"]).decode() == entries[0]["token"]
    assert entries[0]["top_logprobs"][0]["logprob"] == entries[0]["logprob"]
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 10


def test_calls_of_chat_completions_can_be_said_back():
    (choice,) = chat(tools=[{"type": "function", "function": WEATHER}])["response"]["body"]["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls" and message["content"] is None
    assert message["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sunny"}
    to_conversation([*HELLO, message, result])


def test_responses():
    body = responses(seed=5, max_output_tokens=8, metadata={"a": "b"})["response"]["body"]
    assert (body["object"], body["created_at"], body["status"]) == ("response", 0, "incomplete")
    assert body["incomplete_details"] == {"reason": "max_output_tokens"} and body["metadata"] == {"a": "b"}
    reasoning, message = body["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert message["content"][0]["type"] == "output_text" and message["status"] == "incomplete"
    usage = body["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_fields_stand_where_they_always_stood():
    """A job that goes on writes the bytes that it would have written."""
    body = chat(seed=5, logprobs=True)["response"]["body"]
    assert list(body) == ["id", "object", "created", "model", "choices", "usage", "system_fingerprint"]
    [choice] = body["choices"]
    assert list(choice) == ["index", "message", "logprobs", "finish_reason"]
    assert list(choice["message"]) == ["role", "content", "refusal", "reasoning_content"]
    assert list(choice["logprobs"]["content"][0]) == ["token", "logprob", "bytes", "top_logprobs"]
    details = [("cached_tokens", "reasoning_tokens"), ("prompt_tokens_details", "completion_tokens_details")]
    assert list(body["usage"]) == ["prompt_tokens", "completion_tokens", "total_tokens", *details[1]]
    body = responses(seed=5)["response"]["body"]
    assert (
        list(body)
        == (
            "id object created_at status error incomplete_details instructions max_output_tokens metadata model output parallel_tool_calls "
            "previous_response_id reasoning temperature text tool_choice tools top_logprobs top_p truncation usage"
        ).split()
    )
    reasoning, message = body["output"]
    assert list(reasoning) == ["id", "type", "summary", "content"] and list(message) == ["id", "type", "role", "status", "content"]
    assert list(message["content"][0]) == ["type", "text", "annotations", "logprobs"]
    [call] = responses(tools=[{"type": "function", **WEATHER}])["response"]["body"]["output"][1:]
    assert list(call) == ["id", "call_id", "type", "name", "arguments", "status"]
    assert [list(body["usage"][f"{name}_tokens_details"]) for name in ("input", "output")] == [[name] for name in details[0]]


def test_output_items_of_a_response_can_be_its_next_input():
    output = responses(tools=[{"type": "function", **WEATHER}])["response"]["body"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "function_call"]
    result = {"type": "function_call_output", "call_id": output[1]["call_id"], "output": "sunny"}
    assert responses(input=[{"role": "user", "content": "Hello"}, *output, result])["response"]["status_code"] == 200


def test_plain_results():
    out = json.loads(line({"id": 7, "prompt": "Hello", "max_tokens": 5, "logprobs": 1, "return_tokens": True}))
    assert out["id"] == 7 and out["text"] == "Hello" and out["finish_reason"] == "length" and out["error"] is None
    assert out["tokens"] == [*map(ord, "Hello")] and len(out["logprobs"]) == len(out["top_logprobs"]) == 5
    assert out["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10} and "reasoning" not in out
    asked = {"logprob_token_ids": [9, 5], "processed_logprobs": 1}
    out = json.loads(line({"id": 7, "prompt": "Hello", "max_tokens": 5, **asked}))
    assert [list(one) for one in out["given_logprobs"]] == [["9", "5"]] * 5 and "logprobs" not in out
    assert len(out["processed_logprobs"]) == len(out["top_processed_logprobs"]) == 5 and min(out["processed_logprobs"]) >= -9999
    out = json.loads(line({"id": "a", "messages": HELLO, "tools": [WEATHER]}))
    assert out["reasoning"] == "hm" and out["tool_calls"][0]["name"] == "get_weather" and out["finish_reason"] == "tool_calls"
    assert not out.keys() & {"tokens", "logprobs", "top_logprobs"}
    out = json.loads(line({"id": "a", "messages": HELLO, "n": 2}))
    assert len(out["choices"]) == 2 and "text" not in out


def test_text_is_readable_and_half_a_surrogate_pair_does_not_stop_it():
    assert "ä" in line({"id": "a", "prompt": "ä"}).decode()
    assert json.loads(line({"id": "a", "prompt": "\ud83d"}))["text"].startswith("\ud83d")


@pytest.mark.parametrize("form", ["/v1/chat/completions", "/v1/responses", "/v1/nothing", None])
def test_refusals(form):
    content = {"id": "a", "what": 1} if form is None else {"custom_id": "a", "method": "POST", "url": form, "body": {"stream": True}}
    parsed = lines.parse(json.dumps(content).encode(), 3)
    with pytest.raises(Refused) as caught:
        lines.read(parsed, Defaults())
    out = json.loads(results.refused(parsed, caught.value))
    if form is None:
        assert out == {"id": "a", "error": {"code": "unknown_field", "message": str(caught.value)}}
    else:
        assert out["custom_id"] == "a" and out["response"]["status_code"] == 400 and out["error"] is None
        error = out["response"]["body"]["error"]
        assert error["type"] == "invalid_request_error" and error["message"] == str(caught.value) and error["code"]
        assert error["param"] == ("url" if form == "/v1/nothing" else "stream")


def test_lines_without_an_id_are_named_by_their_number():
    parsed = lines.parse(b"{", 3)
    out = json.loads(results.refused(parsed, parsed.problem))
    assert out["id"] is None and out["line"] == 3 and out["error"]["code"] == "invalid_json"
