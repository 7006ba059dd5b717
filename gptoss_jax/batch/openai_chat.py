"""Bodies of OpenAI's /v1/chat/completions to Tasks, and answers to the objects that it returns. Knows no jax."""

from collections.abc import Mapping

from gptoss_jax.batch import fields, replies
from gptoss_jax.batch.fields import Defaults, Refused
from gptoss_jax.quoting import quoted

REASONING = "reasoning_content"  # where clients look for it: DeepSeek's name, which vLLM, SGLang and llama.cpp took over
_KNOWN = (
    *("messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "tools", "tool_choice", "response_format"),
    *("reasoning_effort", *fields.SAMPLING, "n", "priority", "continue_final_message", "add_generation_prompt"),
)
_WITHOUT_EFFECT = (
    *("model", "user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
)
_FIXED = {
    "stream": (False,),
    "parallel_tool_calls": (True,),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "echo": (False,),
    **{name: () for name in ("stream_options", "audio", "prediction", "web_search_options", "functions", "function_call")},
}


def given(body: Mapping) -> dict:
    """The body without what is null. Raises Refused for fields and values that are not served."""
    return fields.given(body, _KNOWN, without_effect=_WITHOUT_EFFECT, fixed=_FIXED)


def names(body: Mapping) -> dict[str, str]:
    """What a body calls what Task and Sampling have other names for."""
    limit = "max_completion_tokens" if body.get("max_tokens") is None else "max_tokens"
    return {"max_tokens": limit, "logprobs": "top_logprobs"}


def task(body: Mapping, name: str, defaults: Defaults) -> dict:
    """The fields of a Task. Raises Refused where they cannot be made."""
    if not isinstance(body.get("messages"), list):
        raise Refused('messages must be a list, [{"role": "user", "content": "..."}].', field="messages")
    fields.text(body, "model")
    limits = [body[key] for key in ("max_tokens", "max_completion_tokens") if key in body]
    if len(limits) == 2 and limits[0] != limits[1]:
        raise Refused(
            "max_tokens and max_completion_tokens must be the same; they are two names of one limit; drop one.", field="max_tokens"
        )
    how = fields.sampling(body, defaults, name, max_tokens=limits[0] if limits else None, logprobs=_logprobs(body), names=names(body))
    return fields.scheduling(body) | {
        "messages": body["messages"],
        "sampling": how,
        "reasoning_effort": body.get("reasoning_effort", defaults.reasoning_effort),
        "tools": fields.tools(body),
        "options": fields.continues(body),
        "response_format": None if fields.mapping(body, "response_format") in ({}, {"type": "text"}) else body["response_format"],
    }


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


def _logprobs(body: Mapping) -> int | None:
    wanted, top = body.get("logprobs", False), body.get("top_logprobs")
    if not isinstance(wanted, bool):
        raise Refused(f"logprobs must be true or false; got {quoted(wanted)}; their number is top_logprobs.", field="logprobs")
    if top and not wanted:
        raise Refused("top_logprobs needs logprobs to be true; set it, or remove top_logprobs.", field="top_logprobs")
    return (top or 0) if wanted else None
