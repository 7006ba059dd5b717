"""Answers to the objects that OpenAI's /v1/responses returns. Knows no jax."""

from collections.abc import Mapping

from gptoss_jax.batch import replies


def response(body: Mapping, digest: str, outcome, tokenizer) -> dict:
    """The response object. `created_at` is 0, so that two runs give the same.

    Args:
        digest: of the request's id; the ids of the object are made of it.
    """
    (reply,) = outcome.answers
    cut = reply.finish_reason in replies.CUT
    how = outcome.task.sampling
    return {
        "id": f"resp_{digest}",
        "object": "response",
        "created_at": 0,
        "status": "incomplete" if cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata", {}),
        "model": body.get("model", ""),
        "output": _output(reply, digest, tokenizer, "incomplete" if cut else "completed"),
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": outcome.task.reasoning_effort, "summary": None},
        "temperature": how.temperature,
        "text": body.get("text", {"format": {"type": "text"}}),
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools", []),
        "top_logprobs": how.logprobs or 0,
        "top_p": how.top_p,
        "truncation": "disabled",
        "usage": replies.usage(outcome, "input_tokens", "output_tokens"),
    }


def _output(reply, digest: str, tokenizer, status: str) -> list[dict]:
    """Reasoning, text, calls; those of the three that there are."""
    items = []
    if reply.reasoning:
        text = [{"type": "reasoning_text", "text": reply.reasoning}]
        items.append({"id": f"rs_{digest}", "type": "reasoning", "summary": [], "content": text})
    said = replies.content(reply)
    if said is not None:
        listed = [] if reply.logprobs is None else replies.logprobs(reply, tokenizer)
        part = {"type": "output_text", "text": said, "annotations": [], "logprobs": listed}
        items.append({"id": f"msg_{digest}", "type": "message", "role": "assistant", "status": status, "content": [part]})
    for i, call in enumerate(reply.tool_calls):
        ids = {"id": f"fc_{digest}_{i}", "call_id": f"call_{digest}_{i}"}
        items.append({**ids, "type": "function_call", "name": call.name, "arguments": call.arguments, "status": status})
    return items

