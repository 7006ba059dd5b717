"""Lines of a batch's input in all forms, and what is read of them."""

import json

from gptoss_jax.batch import lines
from gptoss_jax.openai.asked import Defaults
from gptoss_jax.turns.task import Task

DEFAULTS = Defaults(temperature=0.5, max_tokens=77, reasoning_effort="low", seed=9)
HELLO = [{"role": "user", "content": "Hello"}]


def read(content: object, number: int = 1) -> lines.Request:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lines.read(lines.parse(text, number), DEFAULTS)


def task_of(content: object) -> Task:
    (task,) = read(content).tasks
    return task


def chat(**body) -> dict:
    return {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": HELLO} | body}


def responses(**body) -> dict:
    return {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {"model": "m", "input": "Hello"} | body}


def completions(**body) -> dict:
    return {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "Hello"} | body}
