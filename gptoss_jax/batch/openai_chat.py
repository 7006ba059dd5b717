"""Answers to the objects that OpenAI's /v1/chat/completions returns. Knows no jax."""

from collections.abc import Mapping

from gptoss_jax.batch import replies

REASONING = "reasoning_content"  # where clients look for it: DeepSeek's name, which vLLM, SGLang and llama.cpp took over

def response(body: Mapping, digest: str, outcome, tokenizer) -> dict:
    """The chat.completion object. `created` is 0, so that two runs give the same.

    Args:
        digest: of the request's id; the ids of the object are made of it.
    """
    return {
        "id": f"chatcmpl-{digest}",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model", ""),
        "choices": [_choice(index, reply, digest, tokenizer) for index, reply in enumerate(outcome.answers)],
        "usage": replies.usage(outcome, "prompt_tokens", "completion_tokens"),
        "system_fingerprint": None,
    }


def _choice(index: int, reply, digest: str, tokenizer) -> dict:
    message = {"role": "assistant", "content": replies.content(reply), "refusal": None}
    if reply.reasoning:
        message[REASONING] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = [
            {"id": f"call_{digest}_{index}_{i}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for i, call in enumerate(reply.tool_calls)
        ]
    logprobs = None if reply.logprobs is None else {"content": replies.logprobs(reply, tokenizer), "refusal": None}
    cut = reply.finish_reason in replies.CUT
    reason = "length" if cut else reply.finish_reason  # OpenAI knows no other word for an answer cut off
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

