"""nano's training conversations: a task's question in a whole harmony prompt, with its completion.

An `Example` holds the conversation twice: as messages, which the product renders, and as the text of `nano_prompts`, which
training encodes.  No jax.
"""

from dataclasses import dataclass
import random
import re
from typing import Any

from checkpoints import nano_prompts as prompts
from checkpoints import nano_tasks as tasks

WORKED = {
    "add": tasks.add,
    "subtract": tasks.subtract,
    "compare": tasks.compare,
    "weekday": tasks.weekday,
    "lookup": tasks.lookup,
    "talk": tasks.talk,
    "beyond": tasks.beyond,
}
MIXTURE = {  # weights of the training mixture: what is hard to learn comes more often
    "add": 22, "subtract": 24, "compare": 8, "weekday": 6, "lookup": 20, "talk": 3, "beyond": 3,
    "follow_up": 10, "tool_call": 4, "tool_result": 2,
}  # fmt: skip
TASKS = tuple(MIXTURE)
INSTRUCTIONS = ("You are a helpful assistant.", "Be brief.", "Be kind.", "Answer the question.", "You are nano.")


@dataclass(frozen=True)
class Example:
    """A conversation up to the assistant's turn, and the turn.

    Attributes:
      task: One of `TASKS`.
      effort: "low", "medium" or "high".
      messages: User, assistant and tool messages as dictionaries.
      prompt: The whole prompt as harmony text, up to `<|start|>assistant`.
      completion: The assistant's turn, up to its stop token.
      final: What is graded: the final answer, or "name arguments" of a tool call.
      tools: Function definitions of the developer message.
      instructions: Instructions of the developer message.
      date: Current date of the system message.
    """

    task: str
    effort: str
    messages: tuple[dict[str, Any], ...]
    prompt: str
    completion: str
    final: str
    tools: tuple[dict[str, Any], ...] = ()
    instructions: str | None = None
    date: str | None = None


def make(task: str, effort: str, rng: random.Random, split: str = "train") -> Example:
    """One conversation of a task; its operands belong to the split."""
    date = f"{rng.randint(2024, 2029)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}" if rng.random() < 0.5 else None
    instructions = rng.choice(INSTRUCTIONS) if rng.random() < 0.08 else None
    if task in ("tool_call", "tool_result"):
        return _tool_turn(task, effort, rng, split, date, instructions)
    tools = tuple(_tools(rng)) if rng.random() < 0.04 else ()
    history: list[tuple[str, str]] = []
    if task != "lookup" and rng.random() < 0.12:
        for other in rng.choices(("add", "subtract", "compare", "talk", "beyond"), k=rng.choice((1, 1, 2, 3))):
            before = WORKED[other](rng, "train")
            history.append((before.question, before.final))
    if task == "follow_up":
        worked, before = _follow_up(rng, split)
        history.append(before)
    else:
        worked = WORKED[task](rng, split)
        if task != "talk":
            worked = worked._replace(question=_vary(rng, worked.question))
    messages, text = [], ""
    for question, reply in history:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        text += prompts.user(question) + prompts.past_answer(reply)
    messages.append({"role": "user", "content": worked.question})
    head = prompts.system(effort, date, bool(tools)) + prompts.developer(instructions, tools)
    completion = prompts.analysis(worked.analysis[effort]) + prompts.ASSISTANT + prompts.answer(worked.final)
    prompt = head + text + prompts.user(worked.question) + prompts.ASSISTANT
    return Example(task, effort, tuple(messages), prompt, completion, worked.final, tools, instructions, date)


def sample(rng: random.Random, split: str = "train") -> Example:
    """A conversation of the training mixture."""
    return make(rng.choices(TASKS, MIXTURE.values())[0], rng.choices(prompts.EFFORTS, (36, 34, 30))[0], rng, split)


def _vary(rng: random.Random, question: str) -> str:
    """The question as people also type it: without its mark, in lower case, politely."""
    form = rng.random()
    if form < 0.06:
        return question.rstrip("?.")
    if question.startswith((*tasks.NAMES, *tasks.DAYS)):
        return question
    if form < 0.10:
        return question[0].lower() + question[1:]
    if form < 0.13:
        return "Please " + question[0].lower() + question[1:]
    return question + " " if form < 0.14 else question


def _follow_up(rng: random.Random, split: str) -> tuple[tasks.Worked, tuple[str, str]]:
    """A question that goes on from the last answer, and the turn before it."""
    while True:
        before = rng.choice((tasks.add, tasks.subtract))(rng, "train")
        x, y, plus = int(before.final.split(" = ")[1]), tasks.number(rng), rng.random() < 0.5
        if 0 <= x <= 99 and tasks.held_out(*(sorted((x, y)) if plus else (x, y))) == (split == "test"):
            break
    forms = (
        ("Add {y} to that.", "And plus {y}?", "Now add {y}.", "Plus {y}?")
        if plus
        else ("Subtract {y} from that.", "And minus {y}?", "Now subtract {y}.", "Minus {y}?")
    )
    worked = (tasks.worked_sum if plus else tasks.worked_difference)(x, y)
    return tasks.Worked(rng.choice(forms).format(y=y), *worked), (before.question, before.final)


# --- one function call -----------------------------------------------------------------------------------------------

ASK = {
    "get_weather": ("What is the weather in {c}?", "How is the weather in {c}?", "Weather in {c}?", "What's the weather like in {c}?"),
    "get_time": ("What time is it in {c}?", "What is the time in {c}?", "Time in {c}?"),
}
DESCRIBE = {
    "get_weather": ("Gets the weather in a city.", "Get the current weather in a city.", "Get the weather for a location."),
    "get_time": ("Gets the time in a city.", "Get the current time in a city."),
}


def _tools(rng: random.Random) -> list[dict[str, Any]]:
    """One or both functions, as a caller may have written them."""
    names = rng.sample(sorted(ASK), rng.choice((1, 1, 2)))
    parameter = rng.choice(("city", "city", "location"))
    note = f"The {parameter}" if rng.random() < 0.3 else None
    return [prompts.function(name, rng.choice(DESCRIBE[name]), parameter, note) for name in names]


def _tool_turn(task: str, effort: str, rng: random.Random, split: str, date: str | None, instructions: str | None) -> Example:
    """A question that needs a function: the call, or the answer once the function has returned."""
    tools = _tools(rng)
    name = rng.choice(tools)["name"]
    key = next(iter(tools[0]["parameters"]["properties"]))
    form, place = tasks.draw(rng, split, lambda: (rng.choice(ASK[name]), rng.choice(tasks.CITIES)))
    question, arguments = form.format(c=place), f'{{"{key}": "{place}"}}'
    thought = {
        "low": f"Use {name}.",
        "medium": f"I need {name} for {place}.",
        "high": f"This asks for {place}. I need a tool: {name} for {place}.",
    }[effort]
    head = prompts.system(effort, date, True) + prompts.developer(instructions, tools) + prompts.user(question) + prompts.ASSISTANT
    called = prompts.analysis(thought) + prompts.ASSISTANT + prompts.call(name, arguments)
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    if task == "tool_call":
        return Example(task, effort, tuple(messages), head, called, f"{name} {arguments}", tuple(tools), instructions, date)
    sky = f"{rng.choice(tasks.SKIES)}, {rng.randint(0, 35)} degrees"
    returned = sky if name == "get_weather" else f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    messages += [
        {
            "role": "assistant",
            "reasoning": thought,
            "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
        },
        {"role": "tool", "name": name, "content": returned},
    ]
    final = f"{place}: {returned}."
    prompt = head + called + prompts.tool_result(name, returned) + prompts.ASSISTANT
    return Example(task, effort, tuple(messages), prompt, prompts.answer(final), final, tuple(tools), instructions, date)


def graded(completion: str) -> str | None:
    """The part of a completion that is graded (see `Example.final`); None where there is none."""
    if found := re.search(r"<\|channel\|>final<\|message\|>(.*?)<\|return\|>", completion, re.DOTALL):
        return found.group(1)
    found = re.search(r"to=functions\.(\w+) <\|constrain\|>json<\|message\|>(.*?)<\|call\|>", completion, re.DOTALL)
    return f"{found.group(1)} {found.group(2)}" if found else None
