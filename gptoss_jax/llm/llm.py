"""LLM: making one, and what it generates, from text or messages to text or messages."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import os
import time

from gptoss_jax.engine.engine import Engine
from gptoss_jax.engine.hooks.hook import Hook
from gptoss_jax.engine.metrics import Metrics
from gptoss_jax.llm.adapting import Adapting
from gptoss_jax.llm.asking import Asking
from gptoss_jax.llm.living import Living
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.turns import running, task, tasks
from gptoss_jax.turns.completion import Completion
from gptoss_jax.turns.doors import FURTHER, door
from gptoss_jax.turns.prompts import Prompt
from gptoss_jax.turns.reply import Reply
from gptoss_jax.turns.streams import AsyncStream, Stream
from gptoss_jax.turns.task import Messages, Outcome, Task
from gptoss_jax.weights.loading import Model, load

CONTEXT = 8192


@door()
class LLM(Asking, Adapting, Living):
    """One model, ready to answer.

    Args:
      model: a `Model`, or what `load` takes: a checkpoint directory, "nano", or a repository on the Hugging Face hub. It runs where its
        params lie: all on one device, whichever, or on the mesh that they were loaded onto.
      slots: most requests that run side by side.
      context: most tokens of a prompt and its answer; None is 8,192 or the model's own limit, if that is less.
      chunk: most prompt tokens that are read at a time; None is 2,048, or 128 on a CPU. As many are computed for a short prompt.
      cache_tokens: tokens that the cache holds, all requests and kept prefixes together; None for `slots` full contexts.
      prefix_reuse: compute what prompts begin with in common once, and keep it for later ones as long as there is room.
      cache_dtype: of keys and values: None for the weights' own, or "float8_e4m3fn": half of bfloat16's bytes, less exact; no kernels yet.
      routed_experts: report with every Completion and Reply the experts that each token was routed to. Those of a kept prefix are kept
        with it in the host's memory; on a Hopper decode steps take more launches. Log-probabilities are promised to the bit only
        between LLMs of the same setting.
      adapters: room for so many that are attached side by side, of which each request may name one; one that is changed while requests run
        with it needs a second place until these have ended. With 0 programs are those of a model without any; with more, requests without
        an adapter get the same numbers, but on a Hopper decode steps take more launches.
      adapter_rank: the most that one of them may have; smaller ones are filled up with zeros.
      adapter_targets: the matrices that they may be on, some of `adapters.TARGETS`; None for all. Experts take by far the most memory.

    Raises:
      ValueError, FileNotFoundError: as `load`; an option is out of range; or params lie on several devices without a mesh.
    """

    def __init__(
        self,
        model: Model | str | os.PathLike = "nano",
        *,
        slots: int = 8,
        context: int | None = None,
        chunk: int | None = None,
        cache_tokens: int | None = None,
        prefix_reuse: bool = True,
        cache_dtype: str | None = None,
        routed_experts: bool = False,
        adapters: int = 0,
        adapter_rank: int = 16,
        adapter_targets: Sequence[str] | None = None,
    ):
        model = model if isinstance(model, Model) else load(model)
        context = min(CONTEXT, model.config.max_position_embeddings) if context is None else context
        self._scores, ends = set(), model.eos_token_ids
        how = {"cache_tokens": cache_tokens, "prefix_reuse": prefix_reuse, "cache_dtype": cache_dtype, "routed_experts": routed_experts}
        how |= {"adapters": adapters, "adapter_rank": adapter_rank, "adapter_targets": adapter_targets}
        self.engine = Engine(model.params, model.config, eos_token_ids=ends, slots=slots, context=context, chunk=chunk, **how)
        self._shown = (self.engine.params, model)

    def __repr__(self) -> str:
        return f"LLM({self.model!r}, slots={self.engine.slots}, context={self.engine.context})"

    def __reduce_ex__(self, protocol):
        raise TypeError(
            "an LLM cannot be copied or pickled, for its engine belongs to this process; pass the checkpoint's path, and make an LLM there."
        )

    def prepare(self, *, progress: bool = False) -> None:
        """Compiles all programs that will ever run, which the first call does otherwise; with a progress bar if asked for.

        Programs are found again where JAX keeps a compilation cache: then nothing is traced either (`gptoss_jax.engine.device.lowered`).
        """
        self.engine.prepare(progress=progress)

    def metrics(self) -> Metrics:
        """What it does and has done, as it stood after the engine's last round; at any time, from any thread. Each LLM has its own."""
        return self.engine.metrics

    @door()
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling] | None = None,
        *,
        n: int = 1,
        response_format: Mapping | None = None,
        priority: int = 0,
        time_limit: float | None = None,
        routed_experts_from: int = 0,
        adapter: str | None = None,
        hook: Hook | Sequence[Hook | None] | None = None,
    ) -> Completion | list[Completion] | list[list[Completion]]:
        """Continues plain text or token ids, with no chat format.

        Args:
          prompts: one prompt, or a list of them. Text never becomes a control token.
          sampling: for all prompts, or a list with one for each; None is `Sampling()`.
          n: continuations of each prompt, which share what is computed for it. Those after the first have the seeds after `sampling.seed`.
          response_format: what each continuation must be like, see `gptoss_jax.grammar.for_text`.
          priority: of requests that wait, also those of other calls, the lowest come first.
          time_limit: seconds from now, those of waiting too, until the continuations end with what they have.
          routed_experts_from: tokens of each prompt, its first ones, whose experts are known already, from the turn before say: the
            `routed_experts` that are reported begin behind them. For `LLM(routed_experts=True)`.
          adapter: name of one that is attached, as it is when a request begins; None for none.
          hook: what is asked of the inside, for all prompts, or a list with one for each: `gptoss_jax.capturing`, `steering`, `patching`.
            One whose sites or functions are new has its programs compiled first, in this thread.

        Returns:
          A Completion, or for a list of prompts a list of them in the same order; lists of `n` in their places where n is above 1. What
          fails on the way ends one continuation with finish reason "error", and touches no other: see its `error`.

        Raises:
          ValueError: a prompt is empty, too long or not of the vocabulary; there is none; there are not as many samplings
            as prompts; or an option is out of its range.
        """
        options = {"n": n, "response_format": response_format, "priority": priority, "time_limit": time_limit}
        options |= {"routed_experts_from": routed_experts_from, "adapter": adapter, "hook": hook}
        jobs = tasks.Jobs(self, prompts, sampling, options)
        for piece in self.engine.run(jobs.requests):
            jobs.add(piece)
        return jobs.results()

    @door(*FURTHER)
    def chat(
        self,
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
    ) -> Reply:
        """The assistant's next turn.

        Args:
          messages: OpenAI-style messages, see `harmony.to_conversation`; a string is one user message.
          sampling: None is `Sampling()`. Stop strings are looked for in the answer, not in the reasoning.
          reasoning_effort: "low", "medium" or "high".
          tools: functions that the model may call, in OpenAI's form. The arguments of those with "strict": true, and of all where there
            is a response_format, can only come out as their parameters say.
          tool_choice: None or "auto": the model chooses by itself. "none" hides the tools; "required" has the turn end with a call,
            {"type": "function", "function": {"name": ...}} with one of that function, {"type": "allowed_tools", "allowed_tools": {"mode":
            "auto" or "required", "tools": [...]}} with one of those listed, if any. Then no other function can be called, and what must
            be called gets arguments as its parameters say. Reasoning stays free.
          parallel_tool_calls: False ends the turn with its first call, also where the model's format is broken and more could follow.
          response_format: what the answer must be like, in OpenAI's form: {"type": "json_schema", "json_schema": {"name": ..., "schema":
            ...}}, {"type": "json_object"}; or {"type": "regex", "regex": ...}, {"type": "choice", "choices": [...]}. Reasoning stays free.
          priority, time_limit, routed_experts_from, adapter, hook: as for `generate`.
          **options: instructions, current_date, knowledge_cutoff, model_identity of `harmony.to_conversation`; continue_final_message
            of `harmony.render`, for a turn that messages begin.

        Raises:
          ValueError: messages, tools or options are not valid, the conversation does not fit the context, or nothing can be like
            response_format.
          TypeError: a keyword is none of these; it says what may be meant.
        """
        called = {"tools": tools, "tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls}
        how = {"reasoning_effort": reasoning_effort, "response_format": response_format, "priority": priority, "time_limit": time_limit}
        how |= {"routed_experts_from": routed_experts_from, "adapter": adapter, "hook": hook}
        job = tasks.begin(self, task.chat(messages, sampling, **called, **how, **options))
        for piece in self.engine.run(job.requests):
            job.add(piece)
        return job.builders[0].result()

    @door(*chat.takes)
    def stream(self, messages: Messages, sampling: Sampling | None = None, **options) -> Stream:
        """As `chat`, piece by piece: iterate for pieces with `.text` and `.channel`; then `.reply` is the whole turn.

        Everything is checked before this returns. `with llm.stream(...) as stream:` ends the generation where the block is left, as `close`
        does, and letting the stream go; `.reply` then holds what came, "cancelled". After a bare `break` out of a stream that is kept a
        dispatch or two more are drawn; then it stands still until it is read on, and gives its place to requests that wait.
        """
        return Stream(self.engine, running.begin(self, task.chat(messages, sampling, **options)))

    @door(elsewhere=task.ELSEWHERE_OF_RUN)
    def run(self, jobs: Iterable[Task]) -> Iterator[Outcome]:
        """What becomes of each task, in the order in which they are done: conversations and prompts side by side in the slots.

        Tasks are taken from the iterable as slots fall free, two a slot ahead, so that there may be more of them than fit in memory. One
        that is refused or fails comes back with its `error`, and the others go on. Leaving the iteration early cancels what runs. What
        the iterable raises is raised here once the tasks before it are done.
        """
        return tasks.run(self, jobs)

    @door(*generate.takes)
    async def agenerate(self, prompts: Prompt | Sequence[Prompt], sampling: Sampling | Sequence[Sampling] | None = None, **options):
        """`generate` on the running event loop, with its arguments and results. Cancelling the asyncio task ends the generation."""
        jobs = await running.begun(tasks.Jobs, self, prompts, sampling, options, since=time.monotonic())
        await running.feed(self, jobs)
        return jobs.results()

    @door(*chat.takes)
    async def achat(self, messages: Messages, sampling: Sampling | None = None, **options) -> Reply:
        """`chat` on the running event loop, with its arguments. Cancelling the asyncio task ends the generation."""
        job = await running.begun(tasks.begin, self, task.chat(messages, sampling, **options), since=time.monotonic())
        await running.feed(self, job)
        return job.builders[0].result()

    @door(*chat.takes)
    def astream(self, messages: Messages, sampling: Sampling | None = None, **options) -> AsyncStream:
        """`stream` on the running event loop, with its arguments: `async for piece in llm.astream(...)`; then `.reply` is the whole turn.

        Everything is checked when the first piece is asked for. Thousands of streams cost one wake-up a round of the engine.
        """
        return AsyncStream(self, task.chat(messages, sampling, **options))
