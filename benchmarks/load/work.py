"""What is asked of a server, and when: lengths, prompts and arrivals as `vllm bench serve` draws them, from a seed."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np

Endpoint = Literal["chat", "completions", "responses"]
PATHS: dict[Endpoint, str] = {"chat": "chat/completions", "completions": "completions", "responses": "responses"}
# Words of which most vocabularies have a token each, with the blank before it.
WORDS = (
    "the of and to in is was for on as with by he at from his an were are which this be had or but not one have new first also after "
    "who two its been other when time all there their more some would only out over such can these most into than where state years any"
).split()


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One request.

    Attributes:
      messages: of a chat; one of the user's for a text.
      most: tokens that the answer may have, or None for the server's own limit.
      words: as many as the prompt has: what stands for its tokens where a server does not tell them.
    """

    messages: tuple[Mapping, ...]
    most: int | None
    words: int


def lengths(mean: int, ratio: float, count: int, rng: np.random.Generator) -> list[int]:
    """Uniform from floor(mean * (1 - ratio)) to ceil(mean * (1 + ratio)), one at least."""
    low, high = math.floor(mean * (1 - ratio)), math.ceil(mean * (1 + ratio))
    return rng.integers(max(low, 1), max(high, 1), count, endpoint=True).tolist()


def random_prompts(
    count: int, *, input_len: int, output_len: int, range_ratio: float = 0.0, prefix_len: int = 0, seed: int = 0
) -> list[Prompt]:
    """Prompts of random words, the first `prefix_len` of them the same in all, and answers as long as that.

    A word is a token in large vocabularies, several in a small one; servers say how many tokens they read.
    """
    rng = np.random.default_rng(seed)
    asked, wanted = lengths(input_len, range_ratio, count, rng), lengths(output_len, range_ratio, count, rng)
    words = lambda n: " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), n))
    prefix = words(prefix_len)
    texts = [f"{prefix} {words(n)}".strip() for n in asked]
    return [Prompt(_user(text), most, prefix_len + n) for text, n, most in zip(texts, asked, wanted, strict=True)]


def read_prompts(path: Path, count: int, *, output_len: int | None = None, seed: int = 0) -> list[Prompt]:
    """Prompts of a file, drawn without repeats until there are no more: lines of JSON, or ShareGPT's list of conversations.

    Lines have "prompt" or "messages", and may have "output_tokens", as those of vLLM's custom data sets. Of a conversation the first
    turn is asked; one of less than two is left out.

    Args:
      output_len: for all, in place of what the file says.

    Raises:
      ValueError: a line is none of these.
    """
    text = path.read_text(encoding="utf-8")
    if text.lstrip()[:1] == "[":
        found = [_of_conversation(one, output_len) for one in json.loads(text)]
    else:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        found = [_of_line(path, number, line, output_len) for number, line in lines]
    found = [one for one in found if one is not None]
    if not found:
        raise ValueError(f"a dataset needs at least one prompt; {path} has none.")
    rng, order = np.random.default_rng(seed), []
    while len(order) < count:
        order += rng.permutation(len(found)).tolist()
    return [found[i] for i in order[:count]]


def arrivals(count: int, rate: float, burstiness: float = 1.0, seed: int = 0) -> list[float]:
    """Seconds after the start at which each request is sent: all at 0 for an infinite rate.

    Waits are gamma distributed with shape `burstiness` (1: a Poisson process, less: burstier, infinite: even), and stretched
    so that all together take count / rate, as vLLM does.
    """
    if math.isinf(rate):
        return [0.0] * count
    rng = np.random.default_rng(seed)
    waits = np.full(count, 1 / rate) if math.isinf(burstiness) else rng.gamma(burstiness, 1 / (rate * burstiness), count)
    moments = waits.cumsum()
    return (moments * (count / rate / moments[-1])).tolist()


def body(endpoint: Endpoint, prompt: Prompt, *, model: str, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A streamed request, in the words of an endpoint.

    Args:
      more: further fields, which have the last word.
    """
    out: dict[str, Any] = {"model": model, "stream": True}
    if endpoint == "responses":
        out |= {"input": [dict(message) for message in prompt.messages], "store": False}
        out |= {} if prompt.most is None else {"max_output_tokens": prompt.most}
        return out | dict(more or {})
    out["stream_options"] = {"include_usage": True}
    if endpoint == "chat":
        out |= {"messages": [dict(message) for message in prompt.messages]}
        out |= {} if prompt.most is None else {"max_completion_tokens": prompt.most}
    else:
        out |= {"prompt": "\n".join(message["content"] for message in prompt.messages)}
        out |= {} if prompt.most is None else {"max_tokens": prompt.most}
    return out | dict(more or {})


def _user(text: str) -> tuple[Mapping, ...]:
    return ({"role": "user", "content": text},)


def _of_line(path: Path, number: int, line: str, most: int | None) -> Prompt:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise ValueError(f"a dataset must hold a JSON object a line; line {number} of {path} is none: {error}.") from error
    fields = data if isinstance(data, dict) else {}
    text, messages = fields.get("prompt"), fields.get("messages")
    if isinstance(text, str):
        messages = _user(text)
    if not isinstance(messages, Sequence) or not messages or not all(isinstance(one, dict) for one in messages):
        raise ValueError(f'a line of a dataset must have "prompt", a text, or "messages"; line {number} of {path} has neither.')
    said = " ".join(str(one.get("content")) for one in messages)
    return Prompt(tuple(messages), most or fields.get("output_tokens"), len(said.split()))


def _of_conversation(data: Mapping, most: int | None) -> Prompt | None:
    """None where it has no two turns, as vLLM skips those."""
    turns = data.get("conversations", data.get("conversation", ())) if isinstance(data, dict) else ()
    if not isinstance(turns, Sequence) or len(turns) < 2:
        return None
    try:
        text, answer = str(turns[0]["value"]), str(turns[1]["value"])
    except (KeyError, TypeError) as error:
        raise ValueError('a turn of a conversation must have "from" and "value"; one of the dataset has not.') from error
    return Prompt(_user(text), most or max(1, len(answer.split())), len(text.split()))
