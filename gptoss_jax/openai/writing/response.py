"""A Response but for what is answered: what it was asked, said back. Knows no jax."""

from collections.abc import Mapping

from gptoss_jax.openai.asked import Asked
from gptoss_jax.openai.told import Told

_NEW = (  # what results of batches have never had
    *("completed_at", "background", "max_tool_calls", "presence_penalty", "frequency_penalty", "prompt_cache_key", "safety_identifier"),
    *("service_tier", "store", "user"),
)
_FUNCTION = {"name": "", "description": None, "parameters": None, "strict": False}


def begun(asked: Asked, told: Told) -> dict:
    """The object before anything has come: in progress, with every field that there will be."""
    given, task = asked.given, asked.tasks[0]
    how = task.sampling
    out = {
        "id": f"resp_{told.id}",
        "object": "response",
        "created_at": told.created,
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": given.get("instructions"),
        "max_output_tokens": given.get("max_output_tokens"),
        "max_tool_calls": given.get("max_tool_calls"),
        "metadata": given.get("metadata", {}),
        "model": told.model,
        "output": [],
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "presence_penalty": how.presence_penalty,
        "frequency_penalty": how.frequency_penalty,
        "previous_response_id": given.get("previous_response_id"),
        "prompt_cache_key": given.get("prompt_cache_key"),
        "reasoning": {"effort": task.reasoning_effort, "summary": None},
        "safety_identifier": given.get("safety_identifier"),
        "service_tier": "default",
        "store": given.get("store", True),
        "temperature": how.temperature,
        "text": given.get("text", {"format": {"type": "text"}}),
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": given.get("tools", []),
        "top_logprobs": how.logprobs or 0,
        "top_p": how.top_p,
        "truncation": given.get("truncation", "disabled"),
        "usage": None,
        "user": given.get("user"),
    }
    if told.as_batch:
        return {name: value for name, value in out.items() if name not in _NEW} | dict(told.echo)
    out["reasoning"]["summary"] = _of(given.get("reasoning")).get("summary")
    out["text"] = {"format": {"type": "text"}, "verbosity": "medium"} | _present(given.get("text"))
    out["tools"] = [_tool(tool) for tool in out["tools"]]
    return out | dict(told.echo)


def _tool(tool: object) -> object:
    """A function with all that there is to say of one; a tool of another kind as it came."""
    if not isinstance(tool, Mapping):
        return tool
    own = tool.get("function")
    if isinstance(own, Mapping):  # chat's form of it
        return {"type": "function"} | _FUNCTION | _present(own)
    if tool.get("type", "function") == "function":
        return {"type": "function"} | _FUNCTION | _present(tool)
    return dict(tool)


def _of(value: object) -> Mapping:
    return value if isinstance(value, Mapping) else {}


def _present(value: object) -> dict:
    return {name: one for name, one in _of(value).items() if one is not None}
