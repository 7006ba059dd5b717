"""What `bits` asks for: requests of all kinds, drawn by a seed, and the settings of the engines that answer them. Nothing is run here."""

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

import numpy as np

from gptoss_jax.sampling.options import Sampling
from gptoss_jax.turns.task import Task

# Engines: the requests of "tight" do not fit its cache side by side, so that some have to give way.
SETTINGS: dict[str, Mapping[str, Any]] = {
    "tight": {"slots": 4, "context": 512, "cache_tokens": 640},
    "roomy": {"slots": 4, "context": 512},
    "unshared": {"slots": 4, "context": 512, "prefix_reuse": False},
    "routed": {"slots": 4, "context": 512, "routed_experts": True},
}
_SHARES = {"tight": 0.55, "roomy": 0.15, "unshared": 0.15, "routed": 0.15}

_DRAWS = (
    {"temperature": 0},
    {"temperature": 0, "presence_penalty": 1.5, "frequency_penalty": 0.5},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 12},
    {"temperature": 1.1, "min_p": 0.05},
    {"temperature": 1.5, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.3},
    {"temperature": 0.9, "presence_penalty": -1.0, "frequency_penalty": 1.0, "min_p": 0.02},
)
_ENDS = (
    {},
    {},
    {"ignore_eos": True},
    {"stop": "="},
    {"stop": ["bigger", "me.", "0"]},
    {"stop_token_ids": [20, 33, 47]},
    {"logit_bias": {1: -20.0, 30: 1.5, 41: -100.0}},
)
_REPORTS = ({}, {"logprobs": 0}, {"logprobs": 0}, {"logprobs": 3}, {"logprobs": 20})

_SUM = {"type": "object", "properties": {"a": {"type": "integer"}, "s": {"type": "string", "maxLength": 12}}, "required": ["a", "s"]}
_FORMS = (
    {"type": "json_schema", "json_schema": {"name": "sum", "schema": _SUM | {"additionalProperties": False}}},
    {"type": "json_object"},
    {"type": "regex", "regex": "[0-9]{2,8}( is (bigger|smaller))?"},
    {"type": "choice", "choices": ["yes", "no", "perhaps not"]},
)
_LOOK_UP = {"name": "look_up", "description": "Finds a sum.", "parameters": _SUM | {"additionalProperties": False}, "strict": True}
_TOOLS = [{"type": "function", "function": _LOOK_UP}]
_TEXTS = ("2 + 2", "The sum of 14 and", "What is 35 - 17?", "some text", "ba na na", "<|start|> is text here", "Zwölf Boxkämpfer")
_PREFIXES = 3


@dataclasses.dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
      setting: whose engine answers it.
      way: of `LLM`: with others in one `run`, or alone.
    """

    setting: str
    way: Literal["run", "generate", "chat", "stream"]
    task: Task


def draw(count: int, seed: int) -> list[Asked]:
    """As many requests. None has a time limit or draws without a seed: all must come out the same."""
    rng = np.random.default_rng(seed)
    prefixes = [rng.integers(9, 640, 150).tolist() for _ in range(_PREFIXES)]
    found = []
    for key in range(count):
        setting = str(rng.choice(list(_SHARES), p=list(_SHARES.values())))
        task = _chat(rng, key) if rng.random() < 0.5 else _plain(rng, key, prefixes)
        alone = "generate" if task.messages is None else ("chat", "stream")[int(rng.integers(2))]
        one_answer = task.n == 1 or task.messages is None
        found.append(Asked(setting, alone if one_answer and rng.random() < 0.4 else "run", task))
    return found


def _chat(rng: np.random.Generator, key: int) -> Task:
    a, b = rng.integers(1, 99, 2).tolist()
    question = f"{('What is', 'Compute', 'Tell me')[key % 3]} {a} {'+-'[key % 2]} {b}?"
    messages = question
    if rng.random() < 0.2:  # a conversation
        before = [{"role": "user", "content": f"What is {b} + 1?"}, {"role": "assistant", "content": f"{b} + 1 = {b + 1}"}]
        messages = [*before, {"role": "user", "content": question}]
    more: dict[str, Any] = {"options": {"instructions": "Answer in a word."}} if rng.random() < 0.2 else {}
    guided = rng.random()
    if guided < 0.2:
        more["response_format"] = _pick(rng, _FORMS)
    elif guided < 0.4:
        more["tools"] = _TOOLS
    effort = ("low", "medium", "high")[int(rng.integers(3))]
    return Task(key=key, messages=messages, reasoning_effort=effort, **_common(rng, key, guided=guided < 0.4), **more)


def _plain(rng: np.random.Generator, key: int, prefixes: list[list[int]]) -> Task:
    kind = rng.random()
    if kind < 0.4:
        prompt: str | list[int] = _pick(rng, _TEXTS)
    elif kind < 0.6:
        prompt = rng.integers(9, 640, rng.integers(1, 200)).tolist()
    else:
        prompt = _pick(rng, prefixes)[: int(rng.integers(60, 151))] + rng.integers(9, 640, rng.integers(1, 130)).tolist()
    guided = rng.random() < 0.25
    more = {"response_format": _pick(rng, _FORMS)} if guided else {}
    return Task(key=key, prompt=prompt, **_common(rng, key, guided=guided), **more)


def _common(rng: np.random.Generator, key: int, *, guided: bool) -> dict[str, Any]:
    """Sampling, n and priority; a form of the answer takes no ignore_eos."""
    ends = _pick(rng, _ENDS)
    while guided and "ignore_eos" in ends:
        ends = _pick(rng, _ENDS)
    sampling = Sampling(seed=key * 7, max_tokens=int(rng.integers(1, 120)), **_pick(rng, _DRAWS), **ends, **_pick(rng, _REPORTS))
    return {"sampling": sampling, "n": int(rng.choice([1, 1, 1, 2, 3])), "priority": int(rng.integers(-1, 2))}


def _pick(rng: np.random.Generator, some):
    return some[int(rng.integers(len(some)))]
