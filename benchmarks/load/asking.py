"""One request of a load, timed as it streams, and many of them at their moments."""

import asyncio
from collections.abc import Mapping, Sequence
import contextlib
import json
import time
from typing import Any

from benchmarks.load.figures import Timing
from benchmarks.load.wire import Server, asked
from benchmarks.load.work import PATHS, Endpoint, Prompt, body
from gptoss_jax.quoting import quoted

_LAST = ("response.completed", "response.incomplete")
_TEXTS = ("response.output_text.delta", "response.reasoning_text.delta", "response.function_call_arguments.delta")


async def ask(server: Server, endpoint: Endpoint, request: Mapping[str, Any], *, leave_after: int | None = None) -> Timing:
    """Sends a streamed request and reads it to its end; what goes wrong is its `error`.

    A chunk counts where it has text: of the answer, the reasoning or a call. (vLLM's counts a first one that names the role only.)

    Args:
      leave_after: closes the connection after so many chunks with text.
    """
    timing = Timing(time.perf_counter())
    try:
        async with asked(server, "POST", server.path(PATHS[endpoint]), request) as answer:
            if answer.status != 200:
                timing.error = f"status {answer.status}: {(await answer.body())[:500].decode(errors='replace')}"
                return timing
            await _read(answer, endpoint, timing, leave_after)
    except (OSError, ValueError, KeyError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        timing.error = f"{type(error).__name__}: {error}"
    return timing


async def _read(answer, endpoint: Endpoint, timing: Timing, leave_after: int | None) -> None:
    texts, over = [], False
    of = _of_responses if endpoint == "responses" else _of_choices
    async for now, data in answer.events():
        if data == b"[DONE]":
            over = True
            continue
        event = json.loads(data)
        if error := event.get("error") or (event if event.get("type") == "error" else None):
            timing.error = f"the stream said: {str(error)[:500]}"
            return
        text, usage, last = of(event)
        if text:
            texts.append(text)
            timing.arrivals.append(now)
            if len(timing.arrivals) == leave_after:
                timing.ended = now
                break
        if text or last:
            timing.ended = now
        over |= endpoint == "responses" and last
        if usage:
            timing.prompt_tokens = usage.get("prompt_tokens", usage.get("input_tokens"))
            timing.output_tokens = usage.get("completion_tokens", usage.get("output_tokens"))
    timing.text = "".join(texts)
    if not timing.arrivals:
        timing.error = "no chunk had any text."
    elif not over and leave_after is None:
        timing.error = "the stream ended without its last event."


def _of_choices(event: Mapping) -> tuple[str, Mapping | None, bool]:
    """Text, usage and whether it ends, of a chunk of chat or completions."""
    choices = event.get("choices")
    if not choices:
        return "", event.get("usage"), False
    choice = choices[0]
    delta = choice.get("delta")
    if delta is None:
        text = choice.get("text") or ""
    else:
        calls = "".join((call.get("function") or {}).get("arguments") or "" for call in delta.get("tool_calls") or ())
        text = (delta.get("reasoning") or delta.get("reasoning_content") or "") + (delta.get("content") or "") + calls
    return text, event.get("usage"), choice.get("finish_reason") is not None


def _of_responses(event: Mapping) -> tuple[str, Mapping | None, bool]:
    kind, response = event.get("type"), event.get("response") or {}
    if kind == "response.failed":
        raise ValueError(f"the response failed: {str(response.get('error'))[:500]}")
    return event.get("delta", "") if kind in _TEXTS else "", response.get("usage"), kind in _LAST


async def load(
    server: Server,
    endpoint: Endpoint,
    prompts: Sequence[Prompt],
    moments: Sequence[float],
    *,
    model: str,
    more: Mapping[str, Any] | None = None,
    max_concurrency: int | None = None,
) -> tuple[list[Timing], float]:
    """Sends every prompt at its moment; returns what became of each, in order, and the seconds of it all.

    Args:
      moments: seconds after the start, ascending.
      max_concurrency: most under way at once; the others wait, and their times begin when they are sent.
    """
    gate = asyncio.Semaphore(max_concurrency) if max_concurrency else contextlib.nullcontext()

    async def one(prompt: Prompt, moment: float) -> Timing:
        await asyncio.sleep(max(0.0, began + moment - time.perf_counter()))
        async with gate:
            return await ask(server, endpoint, body(endpoint, prompt, model=model, more=more))

    began = time.perf_counter()
    timings = await asyncio.gather(*(one(prompt, moment) for prompt, moment in zip(prompts, moments, strict=True)))
    return list(timings), time.perf_counter() - began


async def first_model(server: Server) -> str:
    """The first model that a server names. Raises ValueError where it names none, OSError where nobody answers."""
    async with asked(server, "GET", server.path("models")) as answer:
        data = await answer.body()
    try:
        return json.loads(data)["data"][0]["id"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"a server must name its models; status {answer.status}, {quoted(data)}; pass --model.") from error
