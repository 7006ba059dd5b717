"""Grading nano: held-out questions through `gptoss_jax.LLM`, greedily, right or wrong by the exact final answer."""

import collections
import dataclasses
import random

from checkpoints import nano_conversations as conversations
from checkpoints.nano_prompts import EFFORTS
import gptoss_jax as gj
from gptoss_jax import harmony
from gptoss_jax.tokenizer import STOP

MAX_TOKENS = 160  # the longest right answer has about 90


@dataclasses.dataclass(frozen=True)
class Graded:
    """A question with what the model made of it.

    Attributes:
      example: The question.
      given: The final answer, or "name arguments" of a tool call.
      well_formed: The whole turn was harmony without a fault.
      text: The turn, control tokens spelled out.
    """

    example: conversations.Example
    given: str
    well_formed: bool
    text: str

    @property
    def right(self) -> bool:
        """The answer is exactly what was asked for, in a well-formed turn."""
        return self.well_formed and self.given == self.example.final


def questions(per_task: int, seed: int, split: str = "test") -> list[conversations.Example]:
    """`per_task` questions of every task at every effort."""
    rng = random.Random(seed)
    return [conversations.make(task, effort, rng, split) for task in conversations.TASKS for effort in EFFORTS for _ in range(per_task)]


def grade(llm: gj.LLM, examples: list[conversations.Example]) -> list[Graded]:
    """The model's greedy answers to the questions, in order."""
    prompts = [
        llm.render(list(e.messages), reasoning_effort=e.effort, tools=list(e.tools), instructions=e.instructions, current_date=e.date)
        for e in examples
    ]
    stops = tuple(llm.tokenizer.special[name] for name in STOP)
    completions = llm.generate(prompts, gj.Sampling(temperature=0, max_tokens=MAX_TOKENS, stop_token_ids=stops))
    graded = []
    for example, completion in zip(examples, completions, strict=True):
        parsed = harmony.parse(llm.tokenizer, completion.tokens)
        calls = " ".join(f"{call.name} {call.arguments}" for call in parsed.tool_calls)
        well_formed = not (parsed.malformed or parsed.incomplete)
        graded.append(Graded(example, calls or parsed.final, well_formed, llm.tokenizer.decode(completion.tokens)))
    return graded


def accuracies(graded: list[Graded]) -> dict[str, dict[str, float]]:
    """Per cent right of every task at every effort, and per cent well-formed at every effort."""
    cells = collections.defaultdict(list)
    for one in graded:
        cells[one.example.task, one.example.effort].append(one.right)
        cells["well-formed harmony", one.example.effort].append(one.well_formed)
    rows = {task: {} for task, _ in cells}
    for (task, effort), right in cells.items():
        rows[task][effort] = round(100 * sum(right) / len(right), 1)
    rows["well-formed harmony"] = rows.pop("well-formed harmony")
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = ["| % right | " + " | ".join(EFFORTS) + " |", "|---|" + "---:|" * len(EFFORTS)]
    lines += [f"| {task} | " + " | ".join(f"{cells[effort]:.1f}" for effort in EFFORTS) + " |" for task, cells in rows.items()]
    return "\n".join(lines)
