"""The innocent of a storm: requests whose answers are known from when they were alone, asked again in every form, compared to the bit."""

from collections.abc import Sequence
import dataclasses
import math
import time

import numpy as np

from benchmarks.faults.broken import RARE
import gptoss_jax as gj

_COUNT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
_FORMS = (
    {"type": "json_schema", "json_schema": {"name": "count", "schema": _COUNT}},
    {"type": "regex", "regex": "[0-9]{2,8}( is (bigger|smaller))?"},
    {"type": "choice", "choices": ["yes", "no", "perhaps not"]},
)
_DRAWS = (
    {"temperature": 0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 20, "presence_penalty": 1.0},
    {"temperature": 0.9, "min_p": 0.05, "repetition_penalty": 1.2},
)


class Wrong(Exception):
    """An innocent request was answered otherwise than alone."""


class Failed(Exception):
    """An innocent request ended with an error."""


@dataclasses.dataclass(frozen=True)
class Known:
    """A task and its answers alone, `facts` of each."""

    task: gj.Task
    answers: tuple[tuple, ...]

    def check(self, answers: Sequence[gj.Completion | gj.Reply]) -> None:
        """Raises Wrong or Failed where these are not the same."""
        for answer in answers:
            no_error(answer)
        if len(answers) != len(self.answers):
            raise Failed(f"{self.task.key}: {len(self.answers)} answers were asked for; {len(answers)} came.")
        for was, now in zip(self.answers, map(facts, answers), strict=True):
            if was != now:
                differ = [f"{name} was {a}, is {b}" for name, a, b in zip(_FACTS, was, now, strict=True) if a != b]
                raise Wrong(f"{self.task.key}: {'; '.join(differ)}")

    def check_beginning(self, answer: gj.Completion | gj.Reply) -> None:
        """The same of the first answer where it was ended before its time."""
        no_error(answer)
        if answer.tokens != self.answers[0][2][: len(answer.tokens)]:
            raise Wrong(f"{self.task.key}: {answer.tokens} is no beginning of {self.answers[0][2]}")


@dataclasses.dataclass(frozen=True)
class Pool:
    """Requests with known answers.

    Attributes:
      chats, texts: tasks of messages, and of prompts.
      scored: prompts, continuations and their scores.
    """

    chats: list[Known]
    texts: list[Known]
    scored: list[tuple[list[int], list[int], np.ndarray]]


_FACTS = ("the reason", "the text", "the tokens", "the log-probabilities")


def facts(answer: gj.Completion | gj.Reply) -> tuple:
    """What must be the same of an answer."""
    return answer.finish_reason, answer.text, answer.tokens, answer.logprobs


def no_error(answer: gj.Completion | gj.Reply) -> None:
    """Raises Failed where an answer has ended with an error, or has numbers that are none."""
    if answer.finish_reason == "error":
        raise Failed(f"an answer ended with an error: {getattr(answer, 'error', None)}")
    if not all(map(math.isfinite, answer.logprobs or ())):
        raise Wrong("an answer has log-probabilities that are not finite.")


def pool(llm: gj.LLM, count: int, rng: np.random.Generator) -> Pool:
    """About so many of each kind, asked one at a time, and without the poisoned token."""
    common = llm.tokenizer.encode("What is 27 + 58? In columns: ones, tens, carry 1. So 85, 27 is less; 49 - 30 is bigger.")
    prefixes = [rng.choice(common, 70).tolist() for _ in range(2)]
    chats, texts, scored = [], [], []
    for i in range(2 * count):
        sampling = gj.Sampling(seed=i, max_tokens=int(rng.integers(5, 70)), logprobs=0, **_DRAWS[i % len(_DRAWS)])
        more = {"response_format": _FORMS[int(rng.integers(len(_FORMS)))]} if rng.random() < 0.4 else {}
        more |= {"sampling": sampling, "n": 2 if rng.random() < 0.2 else 1, "priority": int(rng.integers(3))}
        a, b = rng.integers(1, 99, 2).tolist()
        if i % 2:
            effort = ("low", "medium", "high")[int(rng.integers(3))]
            task = gj.Task(key=f"chat {i}", messages=f"What is {a} {'+-'[i % 4 // 2]} {b}?", reasoning_effort=effort, **more)
        else:
            prompts = [f"{a} + {b}", llm.render(f"What is {a} + {b}?"), prefixes[i % 4 // 2] + rng.choice(common, 80).tolist()]
            if (which := int(rng.integers(3))) == 2:
                more["priority"] = -1  # those that are longest come first, so that others have to give way
            task = gj.Task(key=f"text {i}", prompt=prompts[which], **more)
        [outcome] = llm.run([task])
        if outcome.error is not None:
            raise RuntimeError(f"an innocent request must not be refused: {outcome.error}")
        answers = tuple(map(facts, outcome.answers))
        (chats if i % 2 else texts).append(Known(task, answers))
        prompt, tokens = llm.render(f"What is {a} + {b}?"), list(answers[0][2])
        if i % 4 == 0:
            scored.append((prompt, tokens, llm.score(prompt, tokens)))
    rare = set(llm.tokenizer.encode(RARE))
    clean = lambda known: not any(rare & set(tokens) for _, _, tokens, _ in known.answers)
    return Pool(list(filter(clean, chats)), list(filter(clean, texts)), [one for one in scored if not rare & set(one[1])])


def generate(llm: gj.LLM, pool: Pool, rng: np.random.Generator) -> None:
    """Some prompts at once, or one with several answers."""
    some = [pool.texts[i] for i in rng.integers(0, len(pool.texts), rng.integers(1, 5)).tolist()]
    free = [one for one in some if one.task.n == 1 and one.task.response_format is None]
    if len(free) > 1:
        answers = llm.generate([one.task.prompt for one in free], [one.task.sampling for one in free], priority=int(rng.integers(-1, 3)))
        for known, answer in zip(free, answers, strict=True):
            known.check([answer])
        return
    task = some[0].task
    answers = llm.generate(task.prompt, task.sampling, n=task.n, response_format=task.response_format, priority=task.priority)
    some[0].check(answers if task.n > 1 else [answers])


def chat(llm: gj.LLM, pool: Pool, rng: np.random.Generator) -> None:
    """One `llm.chat`: the first answer of its task."""
    known = first_of(pool, rng)
    known.check([llm.chat(known.task.messages, known.task.sampling, **of_chat(known.task))])


def stream(llm: gj.LLM, pool: Pool, rng: np.random.Generator) -> None:
    """One `llm.stream`, whose reader may be slow."""
    known, pause = first_of(pool, rng), float(rng.choice([0, 0, 0, 0.01]))
    found = llm.stream(known.task.messages, known.task.sampling, **of_chat(known.task))
    for _ in found:
        time.sleep(pause)
    known.check([found.reply])


def run(llm: gj.LLM, pool: Pool, rng: np.random.Generator) -> None:
    """One `llm.run` of tasks of both kinds."""
    some = mixed(pool, rng)
    if check_run(llm, [one.task for one in some], some) != len(some):
        raise Failed("each task must have an outcome.")


def score(llm: gj.LLM, pool: Pool, rng: np.random.Generator) -> None:
    prompt, tokens, want = pool.scored[int(rng.integers(len(pool.scored)))]
    if not np.array_equal(llm.score(prompt, tokens), want):
        raise Wrong("a score changed.")


def replay(llm: gj.LLM, pool: Pool, rng: np.random.Generator) -> None:
    """What was drawn is taken again: its log-probabilities to the bit."""
    known = pool.texts[int(rng.integers(len(pool.texts)))]
    _, _, tokens, want = known.answers[0]
    again = llm.replay(known.task.prompt, tokens)
    no_error(again)
    if again.logprobs != want or again.tokens != tokens:
        raise Wrong(f"a replay changed: {again.tokens} is not {tokens}, or the numbers are not.")


def check_run(llm: gj.LLM, tasks, some: Sequence[Known]) -> int:
    """Runs tasks, and checks those that are known; how many outcomes came."""
    by_task, count = {id(one.task): one for one in some}, 0
    for outcome in llm.run(tasks):
        count += 1
        known = by_task.pop(id(outcome.task), None)
        if known is None:
            continue
        if outcome.error is not None:
            raise Failed(f"an innocent task was refused: {outcome.error}")
        known.check(outcome.answers)
    return count


def mixed(pool: Pool, rng: np.random.Generator) -> list[Known]:
    """Some tasks, none of them twice."""
    both = pool.chats + pool.texts
    count = rng.integers(1, min(5, len(both)), endpoint=True)
    return [both[i] for i in rng.choice(len(both), count, replace=False).tolist()]


def first_of(pool: Pool, rng: np.random.Generator) -> Known:
    """A conversation, with its first answer alone."""
    known = pool.chats[int(rng.integers(len(pool.chats)))]
    return Known(known.task, known.answers[:1])


def of_chat(task: gj.Task) -> dict:
    """Options of `llm.chat` and `stream`."""
    return {"reasoning_effort": task.reasoning_effort, "response_format": task.response_format, "priority": task.priority}


ASK = {"generate": generate, "chat": chat, "stream": stream, "run": run, "score": score, "replay": replay}
