"""A Response and the events that lead to it, as clients look for them."""

import folded
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
import pytest
from wholes import CALL, TOLD, asked, outcome, streamed, turn, whole

from gptoss_jax.openai import writing
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.told import Told

THOUGHT = "C!analysisM!Hm.E!S!assistant"
NULL = ("completed_at", "incomplete_details", "error", "previous_response_id", "instructions", "max_output_tokens", "max_tool_calls")
NULL += ("safety_identifier", "prompt_cache_key")
NOT_NULL = ("store", "background", "service_tier", "truncation", "top_p", "temperature", "presence_penalty", "frequency_penalty", "model")
NOT_NULL += ("top_logprobs", "parallel_tool_calls", "metadata", "tools", "tool_choice", "text", "id", "object", "created_at", "output")


def test_the_events_of_a_turn_in_order():
    events = streamed(asked("responses"), turn("C!analysisM!HE!S!assistantC!commentaryM!SE!S!assistantC!commentary to=functions.fM!{}A!"))
    item = ["response.output_item.added"], ["response.output_item.done"]
    part = ["response.content_part.added"], ["response.content_part.done"]
    assert [name.removeprefix("response.") for name, _ in events] == [
        one.removeprefix("response.")
        for one in [
            *("created", "in_progress"),
            *(*item[0], *part[0], "reasoning_text.delta", "reasoning_text.done", *part[1], *item[1]),
            *(*item[0], *part[0], "output_text.delta", "output_text.done", *part[1], *item[1]),
            *(*item[0], *["function_call_arguments.delta"] * 2, "function_call_arguments.done", *item[1]),
            "completed",
        ]
    ]
    folded.response(events)
    ids = [data["item"]["id"] for name, data in events if name == "response.output_item.done"]
    assert ids == ["rs_0f", "msg_0f", "fc_0f_0"]


@pytest.mark.parametrize(
    ("text", "reason", "kinds", "status"),
    [
        (f"{THOUGHT}C!finalM!HiR!", "stop", ["reasoning", "final_answer"], "completed"),
        (f"{THOUGHT}{CALL}", "stop", ["reasoning", "function_call"], "completed"),
        (
            f"{THOUGHT}C!commentaryM!See.E!S!assistant{THOUGHT}{CALL}",
            "stop",
            "reasoning commentary reasoning function_call".split(),
            "completed",
        ),
        ("C!analysisM!Hm", "length", ["reasoning"], "incomplete"),
        ("C!analysisM!HmE!", "length", ["reasoning"], "incomplete"),
        (f"{THOUGHT}C!fin", "length", ["reasoning"], "incomplete"),
        (f"{THOUGHT}C!finalM!", "timeout", ["reasoning", "final_answer"], "incomplete"),
        ("E!", "stop", [], "completed"),
        ("HiE!S!userM!xE!S!S!toolM!R!", "stop", ["reasoning", "final_answer"], "completed"),
        ("C!commentary to=functions.fM!A!", "stop", ["function_call"], "completed"),
    ],
)
def test_turns(text, reason, kinds, status):
    one = turn(text, reason=reason)
    found = folded.response(streamed(asked("responses"), one))
    assert found == whole(asked("responses"), one[1])
    assert [item.get("phase", item["type"]) for item in found["output"]] == kinds
    assert found["status"] == status and len({item["id"] for item in found["output"]}) == len(kinds)
    assert found["incomplete_details"] == ({"reason": "max_output_tokens"} if status == "incomplete" else None)
    assert found["completed_at"] == (9 if status == "completed" else None)
    ended = one[1].said and one[1].said[-1].end
    assert [item["status"] for item in found["output"]] == ["completed"] * (len(kinds) - 1) + [
        "completed" if status == "completed" or ended else "incomplete" for _ in kinds[-1:]
    ]


def test_every_field_is_there():
    response = whole(asked("responses"), turn("C!finalM!HiR!")[1])
    assert {*NULL, *NOT_NULL, "reasoning", "usage"} <= response.keys() and all(response[name] is not None for name in NOT_NULL)
    assert all(response[name] is None for name in NULL if name != "completed_at")
    assert response["usage"] == {
        "input_tokens": 7,
        "output_tokens": len(turn("C!finalM!HiR!")[1].tokens),
        "total_tokens": 7 + len(turn("C!finalM!HiR!")[1].tokens),
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    assert not any("encrypted_content" in item for item in whole(asked("responses"), turn("C!analysisM!HE!")[1])["output"])


def test_what_was_asked_is_said_back():
    search, choice = {"type": "web_search", "search_context_size": "low"}, {"type": "function", "name": "f"}
    given = {
        **{"tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}, search], "tool_choice": choice, "store": False},
        **{"metadata": {"a": "b"}, "instructions": "Be brief.", "max_output_tokens": 9, "truncation": "auto", "user": "u"},
        **{"text": {"verbosity": "low"}, "reasoning": {"effort": "low", "summary": "auto"}, "prompt_cache_key": "k"},
        **{"parallel_tool_calls": False, "previous_response_id": "resp_1"},
    }
    response = whole(asked("responses", **given), turn("C!finalM!HiR!")[1])
    assert response["tools"] == [
        {"type": "function", "name": "f", "description": None, "parameters": {"type": "object"}, "strict": False},
        search,
    ]
    assert response["text"] == {"format": {"type": "text"}, "verbosity": "low"}
    assert response["reasoning"] == {"effort": "medium", "summary": "auto"}  # what the task has, as defaults may have it
    same = given.keys() - {"tools", "text", "reasoning"}
    assert {name: response[name] for name in same} == {name: given[name] for name in same}


def test_a_fault_on_the_way():
    of, bad = asked("responses"), turn(f"{THOUGHT}C!finalM!H", error="its numbers are no numbers.")
    events = streamed(of, bad)
    last = folded.response(events)
    assert last["status"] == "failed" and last["error"]["code"] == "server_error" and "no numbers" in last["error"]["message"]
    assert [item["status"] for item in last["output"]] == ["completed", "incomplete"] and last["usage"]["input_tokens"] == 7
    with pytest.raises(Refused) as caught:
        whole(of, bad[1])
    assert caught.value.status == 500


@pytest.mark.parametrize("pieces", [0, 1, 9, 30])
def test_a_stream_that_has_to_end_says_why(pieces):
    of, one = asked("responses"), turn(f"{THOUGHT}C!finalM!Hi there, all of you R!")
    events = writing.events(of, TOLD, None)
    out = events.begin() + [event for piece in one[0][:pieces] for event in events.add(0, piece)]
    out += events.fail(Refused("the server stops.", "stopping", status=503))
    assert folded.response(out)["error"] == {"code": "server_error", "message": "the server stops."}
    assert events.fail(Refused("again")) == events.add(0, one[0][0]) == events.done(0, one[1]) == events.end([outcome(of, one[1])]) == []


def test_what_a_batch_has():
    response = whole(asked("responses"), turn(f"{THOUGHT}C!finalM!HiR!")[1], told=Told("a", as_batch=True))
    assert not response.keys() & {"completed_at", "background", "store", "service_tier", "user"}
    assert "phase" not in response["output"][1] and "status" not in response["output"][0]
    assert response["usage"]["input_tokens_details"] == {"cached_tokens": 0}
    response = whole(asked("responses"), turn(f"C!commentaryM!SeeE!S!assistant{CALL}")[1], told=Told("a", as_batch=True))
    assert response["output"][0]["phase"] == "commentary"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (f"{THOUGHT}{CALL}", None),
        (f"{THOUGHT}C!finalM!Hi éR!", None),
        ("C!commentary to=f", None),
        ("S!S!M!C!E!", None),
        ("C!finalM!H", "no."),
    ],
)
def test_the_sdk_knows_them(text, error):
    adapter = TypeAdapter(ResponseStreamEvent)
    tools = [{"type": "function", "name": "f"}, {"type": "web_search"}]
    of = asked("responses", logprobs=1, tools=tools, tool_choice={"type": "function", "name": "f"}, text={"verbosity": "low"})
    one = turn(text, logprobs=1, error=error)
    for name, data in streamed(of, one):
        assert adapter.validate_python(data).type == name
    if error is None:
        found = Response.model_validate(whole(of, one[1]))
        assert found.output_text == one[1].text and len(found.output) == len(one[1].said)
