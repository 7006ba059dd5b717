"""Many tasks for one LLM: conversations to be answered and prompts to be continued, in as they fit, out as they are done."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import time
from typing import Any

from gptoss_jax.engine.hooks.hook import hook_of
from gptoss_jax.engine.requests import Piece, Request, check_length
from gptoss_jax.harmony import Continued, continued, least_tokens
from gptoss_jax.keywords import UnknownKeyword
from gptoss_jax.quoting import said
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.tokenizer import STOP
from gptoss_jax.turns import forms
from gptoss_jax.turns.completion import Completion, CompletionBuilder
from gptoss_jax.turns.prompts import Prompt, hooks_of, ids_of, is_one_prompt, per_prompt
from gptoss_jax.turns.reply import Reply, ReplyBuilder
from gptoss_jax.turns.task import Outcome, Task, checked


@dataclasses.dataclass(frozen=True)
class Job:
    """A task on its way: its requests, and what adds up the pieces of each."""

    task: Task
    requests: list[Request]
    builders: list[ReplyBuilder | CompletionBuilder]

    def add(self, piece: Piece) -> None:
        """Takes the next tokens of one of its requests."""
        self.builders[self.requests.index(piece.request)].add(piece)

    @property
    def outcome(self) -> Outcome:
        return self.outcome_of([builder.result() for builder in self.builders])

    def outcome_of(self, answers: Sequence[Reply | Completion]) -> Outcome:
        """With its builders' results, where these are known already."""
        error = next((answer.error for answer in answers if answer.error), None)
        first, failed = self.requests[0], error is not None
        return Outcome(self.task, tuple(answers), len(first.prompt), error, failed=failed, cached_tokens=first.cached_tokens)


def begin(llm, task: Task, *, since: float | None = None) -> Job:
    """The requests that a task stands for; nothing is run yet.

    Args:
      since: when it was asked for, by `time.monotonic`; now if None. Its time limit counts from then.

    Raises:
      ValueError: it cannot be done.
      TypeError: its options hold a keyword that a chat does not take.
    """
    since = time.monotonic() if since is None else since
    sampling, hook = checked(task), hook_of(task.hook)
    if (task.messages is None) == (task.prompt is None):
        raise ValueError("a task must have either messages or a prompt; pass one of them.")
    if task.prompt is not None:
        ids, tools, begun = ids_of(llm, task.prompt), None, None
        if sampling.stop and llm.model.tokenizer is None:
            raise ValueError("stop strings need a tokenizer, and this checkpoint has none; use stop_token_ids.")
    else:
        ids, sampling, tools, begun = _chat_prompt(llm, task, sampling)
    requests, builders = [], []
    for i in range(task.n):
        own = sampling if sampling.seed is None or i == 0 else dataclasses.replace(sampling, seed=(sampling.seed + i) % 2**63)
        constraint = forms.constraint(llm, task, sampling, tools, begun)
        requests.append(Request(ids, own, priority=task.priority, constraint=constraint, hook=hook))
        requests[-1].routed_experts_from, requests[-1].adapter = task.routed_experts_from, task.adapter
        if task.prompt is not None:
            builders.append(CompletionBuilder(requests[-1], llm.model.tokenizer))
        else:
            builders.append(ReplyBuilder(requests[-1], llm.tokenizer, begun, one_call=not task.parallel_tool_calls))
    if task.time_limit is not None:
        for request in requests:
            request.time_limit = max(0.0, task.time_limit - (time.monotonic() - since))
    return Job(task, requests, builders)


class Jobs:
    """Prompts that are continued together.

    Attributes:
      requests: of all of them.
    """

    def __init__(self, llm, prompts: Prompt | Sequence[Prompt], sampling, options: Mapping[str, Any], *, since: float | None = None):
        since = time.monotonic() if since is None else since
        self._single = is_one_prompt(prompts)
        prompts = [ids_of(llm, prompt) for prompt in ([prompts] if self._single else prompts)]
        options = dict(options)
        own = per_prompt(sampling, len(prompts)), hooks_of(options.pop("hook", None), len(prompts))
        each = zip(prompts, *own, strict=True)
        self._jobs = [begin(llm, Task(prompt=ids, sampling=how, hook=hook, **options), since=since) for ids, how, hook in each]
        self._of = {request: job for job in self._jobs for request in job.requests}
        self.requests = list(self._of)

    def add(self, piece: Piece) -> None:
        """Takes the next tokens of one of the requests."""
        self._of[piece.request].add(piece)

    def results(self) -> Completion | list[Completion] | list[list[Completion]]:
        """As `LLM.generate` returns them."""
        found = [[builder.result() for builder in job.builders] for job in self._jobs]
        found = [one[0] if job.task.n == 1 else one for job, one in zip(self._jobs, found, strict=True)]
        return found[0] if self._single else found


def run(llm, tasks: Iterable[Task]) -> Iterator[Outcome]:
    """See `LLM.run`."""
    if isinstance(tasks, Task | str | bytes | Mapping) or not isinstance(tasks, Iterable) or getattr(tasks, "ndim", 1) == 0:
        raise ValueError(f"run takes an iterable of Tasks; got {type(tasks).__name__}; put brackets around a Task.")
    return _run(llm, tasks)


def _run(llm, tasks: Iterable[Task]) -> Iterator[Outcome]:
    refused: deque[Outcome] = deque()
    jobs: dict[Request, Job] = {}
    left: dict[Request, int] = {}  # requests of a job that have not ended, by its first

    def requests() -> Iterator[Request | None]:
        for task in tasks:
            try:
                job = begin(llm, task)
                llm.engine.check_request(job.requests[0])
            except (MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
                raise
            except BaseException as error:  # also a library's panic, which is no Exception
                refused.append(_refused(task, error))
                yield None  # so that it is told now
                continue
            left[job.requests[0]] = len(job.requests)
            jobs.update(dict.fromkeys(job.requests, job))
            yield from job.requests

    pieces = llm.engine.run(requests())
    try:
        for piece in pieces:
            yield from _all_of(refused)
            job = piece and jobs.get(piece.request)
            if job is None:  # nothing but a refusal, or the word that what has ended with a stop string was cancelled
                continue
            job.add(piece)
            if piece.finish_reason or piece.request.cancelled:
                del jobs[piece.request]
                left[job.requests[0]] -= 1
                if left[job.requests[0]] == 0:
                    del left[job.requests[0]]
                    yield job.outcome
    finally:
        pieces.close()


def _refused(task: Task, error: BaseException) -> Outcome:
    """What is refused says why; whatever else was raised is a fault that nobody thought of, and no other task's."""
    if isinstance(error, ValueError | UnknownKeyword) and not isinstance(error, UnicodeError):
        return Outcome(task, (), 0, str(error))
    return Outcome(task, (), 0, f"the task could not be begun: {said(error)}.", failed=True)


def _chat_prompt(llm, task: Task, sampling: Sampling) -> tuple[list[int], Sampling, Sequence[Mapping] | None, Continued | None]:
    """Token ids of the prompt, the sampling that also ends where a turn does, the tools that the prompt names, what it has begun."""
    choice = forms.read_choice(task.tool_choice)
    tools = None if choice.mode == "none" else task.tools
    context = llm.engine.context
    check_length("prompt", least_tokens(task.messages, tools), llm.model.config, context, least=True)
    if not isinstance(task.messages, str) and isinstance(task.messages, Sequence) and len(task.messages) > context:
        raise ValueError(f"messages must be at most {context:,}, as many as the context has tokens; got {len(task.messages):,}; drop some.")
    ids = llm.render(task.messages, reasoning_effort=task.reasoning_effort, tools=tools, **task.options or {})
    choice.check_tools(tools)
    special = llm.tokenizer.special
    if not sampling.ignore_eos:
        ends = dict.fromkeys((*sampling.stop_token_ids, *(special[name] for name in STOP)))
        sampling = dataclasses.replace(sampling, stop_token_ids=tuple(ends))
    return ids, sampling, tools, continued(task.messages, (task.options or {}).get("continue_final_message", False))


def _all_of(outcomes: deque[Outcome]) -> Iterator[Outcome]:
    while outcomes:
        yield outcomes.popleft()
