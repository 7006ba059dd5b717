"""What a client puts together of a stream's events, by the rules of each endpoint; fails where the events break them."""

from collections.abc import Sequence

from gptoss_jax.openai.events import Event

ABOUT = ("id", "created", "model", "system_fingerprint")
_CONTENT = {"reasoning": "response.reasoning_text", "message": "response.output_text", "function_call": "response.function_call_arguments"}


def chat(events: Sequence[Event], *, logprobs: bool = False) -> dict:
    """The chat.completion of a stream, its usage if that was told.

    Args:
        logprobs: whether they were asked for: then there is a list of them, though it be empty.
    """
    choices: dict[int, dict] = {}
    out = _begun(events, "chat.completion")
    for _, chunk in _chunks(events, "chat.completion.chunk"):
        for choice in chunk["choices"]:
            delta, index = choice["delta"], choice["index"]
            if index not in choices:
                assert delta == {"role": "assistant", "content": ""}
                choices[index] = {"content": "", "logprobs": [] if logprobs else None, "finish": None, "calls": []}
                continue
            one = choices[index]
            assert one["finish"] is None, "something came behind the finish reason"
            assert len(delta) == bool(delta) + ("reasoning" in delta)
            assert choice["finish_reason"] is None or delta == {}
            one["finish"] = choice["finish_reason"]
            if choice["logprobs"]:
                assert "content" in delta and choice["logprobs"]["content"]
                one["logprobs"] += choice["logprobs"]["content"]
            for name in ("content", "reasoning", "reasoning_content"):
                one[name] = one.get(name, "") + delta.get(name, "")
            for part in delta.get("tool_calls", ()):
                if part["index"] == len(one["calls"]):
                    assert part["function"]["arguments"] == "" and part["function"]["name"] and part["type"] == "function"
                    one["calls"].append({"id": part["id"], "type": "function", "function": dict(part["function"])})
                else:
                    assert part["index"] == len(one["calls"]) - 1 and part.keys() == {"index", "function"}
                    assert part["function"].keys() == {"arguments"} and part["function"]["arguments"]
                    one["calls"][-1]["function"]["arguments"] += part["function"]["arguments"]
    out["choices"] = [_choice(index, choices[index]) for index in sorted(choices)]
    return out


def completion(events: Sequence[Event], *, logprobs: bool = False) -> dict:
    """The text_completion of a stream; as `chat`."""
    choices: dict[int, dict] = {}
    lists = lambda: {name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")} if logprobs else None
    out = _begun(events, "text_completion")
    for _, chunk in _chunks(events, "text_completion"):
        for part in chunk["choices"]:
            one = choices.setdefault(part["index"], {"text": "", "index": part["index"], "logprobs": lists(), "finish_reason": None})
            assert one["finish_reason"] is None
            one["text"] += part["text"]
            one["finish_reason"] = part["finish_reason"]
            if part["logprobs"]:
                one["logprobs"] = {name: values + part["logprobs"][name] for name, values in one["logprobs"].items()}
                assert len({len(values) for values in one["logprobs"].values()}) == 1
    return out | {"choices": [choices[index] for index in sorted(choices)]}


def response(events: Sequence[Event]) -> dict:
    """The Response that a stream ends with, found to be what its events add up to."""
    names = [name for name, _ in events]
    assert names[:2] == ["response.created", "response.in_progress"]
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert all(data["type"] == name for name, data in events)
    for _, data in events[:2]:
        begun = data["response"]
        assert (begun["status"], begun["output"], begun["usage"]) == ("in_progress", [], None)
    last = events[-1][1]["response"]
    assert names[-1] == f"response.{last['status']}" and last["status"] in ("completed", "incomplete", "failed")
    assert (names[-2] == "error") is (last["status"] == "failed")
    middle, output = list(events[2 : -1 - (last["status"] == "failed")]), []
    while middle:
        output.append(_item(middle, len(output)))
    assert output == last["output"]
    same = {name for name in begun if name not in ("status", "output", "usage", "completed_at", "incomplete_details", "error")}
    assert last.keys() == begun.keys() and all(begun[name] == last[name] for name in same)
    return last


def _item(events: list[Event], index: int) -> dict:
    """Takes the events of the next item off; returns it as it was done."""
    take = lambda expected: _taken(events, expected, index)
    item = take("response.output_item.added")["item"]
    kind = item["type"]
    assert item["status"] == "in_progress" if "status" in item else kind == "reasoning"
    assert item["arguments"] == "" if kind == "function_call" else item["content"] == []
    about = {"item_id": item["id"], "output_index": index} | ({} if kind == "function_call" else {"content_index": 0})
    part = None if kind == "function_call" else take("response.content_part.added")["part"]
    assert part is None or part["text"] == ""
    text, logprobs = "", []
    while events and events[0][0] == f"{_CONTENT[kind]}.delta":
        data = take(f"{_CONTENT[kind]}.delta")
        assert about.items() <= data.items() and (data["delta"] or data["logprobs"])
        text += data["delta"]
        logprobs += data.get("logprobs", ())
    done = take(f"{_CONTENT[kind]}.done")
    assert about.items() <= done.items()
    if kind == "function_call":
        assert (done["arguments"], done["name"]) == (text, item["name"])
        whole = item | {"arguments": text}
    else:
        part |= {"text": text} | ({"logprobs": logprobs} if kind == "message" else {})
        assert done["text"] == text and done.get("logprobs", []) == logprobs
        closed = take("response.content_part.done")
        assert about.items() <= closed.items() and closed["part"] == part
        whole = item | {"content": [part]}
    found = take("response.output_item.done")["item"]
    assert found == whole | ({"status": found["status"]} if "status" in found else {})
    assert found.get("status") in ("completed", "incomplete", None)
    return found


def _taken(events: list[Event], expected: str, index: int) -> dict:
    name, data = events.pop(0)
    assert name == expected and data["output_index"] == index
    return data


def _begun(events: Sequence[Event], kind: str) -> dict:
    """What all chunks say alike, and the usage."""
    first = {name: events[0][1][name] for name in ABOUT}
    assert all(name is None and first.items() <= data.items() for name, data in events)
    usages = [data["usage"] for _, data in events if "usage" in data]
    assert not usages or (len(usages) == len(events) and not any(usages[:-1]))
    return first | {"object": kind, "usage": usages[-1] if usages else None}


def _chunks(events: Sequence[Event], kind: str) -> Sequence[Event]:
    assert all(data["object"] == kind for _, data in events)
    assert all(data["choices"] for _, data in events[:-1])
    return events


def _choice(index: int, one: dict) -> dict:
    """As a whole answer has it: no content beside nothing but calls."""
    message = {"role": "assistant", "content": one["content"] or (None if one["calls"] else ""), "refusal": None}
    if one.get("reasoning"):
        message |= {name: one[name] for name in ("reasoning", "reasoning_content")}
    if one["calls"]:
        message["tool_calls"] = one["calls"]
    logprobs = None if one["logprobs"] is None else {"content": one["logprobs"], "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": one["finish"]}
