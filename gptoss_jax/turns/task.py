"""What is asked for: a conversation to be answered or a prompt to be continued, with all that goes with it; and what became of it."""

from collections.abc import Mapping, Sequence
import dataclasses
import numbers
from typing import Any

from gptoss_jax.engine.hooks.hook import FOR_SEVERAL, Hook, hook_of
from gptoss_jax.keywords import own_words, refuse
from gptoss_jax.quoting import quoted
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.turns import forms
from gptoss_jax.turns.completion import Completion
from gptoss_jax.turns.doors import ELSEWHERE, FURTHER, OF_RUN, OF_TASK
from gptoss_jax.turns.prompts import Prompt, sampling_of
from gptoss_jax.turns.reply import Reply

Messages = str | Sequence[Mapping]

MOST_ANSWERS = 1 << 16  # of one task
PRIORITIES = 1 << 31
LONGEST = 10**9  # seconds


@own_words(elsewhere=OF_TASK)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Messages to be answered as `LLM.chat` does, or a prompt to be continued as `LLM.generate` does: one of the two.

    Attributes:
      key: the caller's own; not looked at.
      messages, reasoning_effort, tools, tool_choice, parallel_tool_calls, response_format, options: as for `LLM.chat` (`options` are its
        further keywords).
      prompt: text or token ids.
      sampling: how; None is `Sampling()`.
      n: how many answers. Those after the first have the seeds after `sampling.seed`.
      priority: of the tasks that wait, those with the lowest come first.
      time_limit: seconds from when the task is asked for, those of waiting too, until it is ended with what it has; None for no limit.
      routed_experts_from: tokens of its prompt whose experts are known already, as for `LLM.generate`.
      adapter: name of one that is attached to the LLM; None for none.
      hook: what is asked of the inside, as for `LLM.generate`; of each of the answers.
    """

    key: Any = None
    messages: Messages | None = None
    prompt: Prompt | None = None
    sampling: Sampling | None = Sampling()
    n: int = 1
    priority: int = 0
    time_limit: float | None = None
    routed_experts_from: int = 0
    adapter: str | None = None
    reasoning_effort: str = "medium"
    tools: Sequence[Mapping] | None = None
    tool_choice: str | Mapping | None = None
    parallel_tool_calls: bool = True
    response_format: Mapping | None = None
    options: Mapping[str, Any] | None = dataclasses.field(default_factory=dict)
    hook: Hook | None = None


_FIELDS = dict.fromkeys(Task.__dataclass_fields__, "it is a field of Task: pass Task({name}={value})")
ELSEWHERE_OF_RUN = OF_RUN | _FIELDS


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
      task: the task itself, the same object.
      answers: `n` Replies for messages, Completions for a prompt; none where the task was refused.
      prompt_tokens: length of the prompt as the model read it; 0 where the task was refused before that was known.
      error: why the task was refused, or what an answer of it failed of; None where all went well.
      failed: whether it was accepted and then ended by a fault on the way; `answers` holds what came.
      cached_tokens: tokens of the prompt that were found in kept prefixes when its first answer was taken up.
    """

    task: Task
    answers: tuple[Reply | Completion, ...]
    prompt_tokens: int
    error: str | None = None
    failed: bool = False
    cached_tokens: int = 0


def chat(
    messages: Messages,
    sampling: Sampling | None = None,
    *,
    reasoning_effort: str = "medium",
    tools: Sequence[Mapping] | None = None,
    tool_choice: str | Mapping | None = None,
    parallel_tool_calls: bool = True,
    response_format: Mapping | None = None,
    priority: int = 0,
    time_limit: float | None = None,
    routed_experts_from: int = 0,
    adapter: str | None = None,
    hook: Hook | None = None,
    **options,
) -> Task:
    """The task that the arguments of `LLM.chat` stand for."""
    if messages is None:
        raise ValueError('messages must be a list of messages or a string; got None; pass [{"role": "user", "content": "..."}].')
    called = {"tools": tools, "tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls}
    how = {"reasoning_effort": reasoning_effort, "response_format": response_format, "priority": priority, "time_limit": time_limit}
    how |= {"routed_experts_from": routed_experts_from, "adapter": adapter}
    return Task(messages=messages, sampling=sampling_of(sampling), options=options, hook=hook, **called, **how)


def checked(task: Task) -> Sampling:
    """Its sampling. Raises where another of its fields cannot be what it is."""
    if not isinstance(task, Task):
        raise ValueError(f"a task must be a gptoss_jax.Task; got {quoted(task)}; make one of messages or a prompt.")
    sampling = sampling_of(task.sampling)
    for name, least, most in (("n", 1, MOST_ANSWERS), ("priority", -PRIORITIES, PRIORITIES)):
        value = getattr(task, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= value <= most:
            raise ValueError(f"{name} must be a whole number, {least:,} to {most:,}; got {quoted(value)}.")
    limit = task.time_limit
    number = isinstance(limit, numbers.Real) and not isinstance(limit, bool)
    if limit is not None and not (number and 0 <= limit <= LONGEST):
        raise ValueError(f"time_limit must be a number of seconds, 0 to {LONGEST:,}, or None; got {quoted(limit)}.")
    hook = hook_of(task.hook)
    if hook is not None and hook.for_one and task.n > 1:
        raise ValueError(f"what takes captures of one request must get those of one; got n={task.n}; {FOR_SEVERAL}.")
    if not isinstance(task.parallel_tool_calls, bool):
        raise ValueError(f"parallel_tool_calls must be True or False; got {quoted(task.parallel_tool_calls)}; leave it out for True.")
    forms.read_choice(task.tool_choice)
    if not isinstance(task.options, Mapping | None):
        raise ValueError(f"options must be a dict of keywords of chat; got {quoted(task.options)}; leave it out for none.")
    refuse("Task(options=...)", task.options or {}, FURTHER, ELSEWHERE | _FIELDS)
    extra = [name for name in ("tools", "tool_choice", "options") if not _empty(getattr(task, name))]
    extra += [] if task.parallel_tool_calls else ["parallel_tool_calls"]
    if task.prompt is not None and extra:
        raise ValueError(f"{extra[0]} needs messages; a prompt is continued as it stands; leave it out, or pass messages.")
    return sampling


def _empty(value: object) -> bool:
    return value is None or (isinstance(value, list | tuple | Mapping) and not value)
