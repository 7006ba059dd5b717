"""nano's tasks: right answers, an honest split, and prompts exactly as `openai_harmony` renders them."""

import random
import re

import openai_harmony as harmony
import pytest

from checkpoints import nano_conversations as conversations
from checkpoints import nano_prompts as prompts
from checkpoints import nano_tasks as tasks
from gptoss_jax.harmony import render
from gptoss_jax.tokenizer import harmony_encoding, o200k


@pytest.fixture(scope="module")
def encoding():
    return harmony_encoding()


def examples(count, split="train", seed=0):
    rng = random.Random(seed)
    return [
        conversations.make(task, effort, rng, split) for task in conversations.TASKS for effort in prompts.EFFORTS for _ in range(count)
    ]


def test_prompts_are_what_the_product_renders(encoding):
    given = examples(40)
    assert any(e.tools and e.instructions for e in given)
    for e in given:
        ids = render(o200k(), e.messages, reasoning_effort=e.effort, tools=e.tools, instructions=e.instructions, current_date=e.date)
        assert e.prompt == encoding.decode(ids)


def test_completions_are_well_formed_harmony(encoding):
    for example in examples(3):
        tokens = encoding.encode(example.completion, allowed_special="all")
        messages = encoding.parse_messages_from_completion_tokens(tokens, harmony.Role.ASSISTANT, strict=True)
        last = messages[-1]
        if example.task == "tool_call":
            assert example.final == f"{last.recipient.removeprefix('functions.')} {last.content[0].text}"
        else:
            assert (last.channel, last.content[0].text) == ("final", example.final)
        assert conversations.graded(example.completion) == example.final


@pytest.mark.quick("worked_difference")
@pytest.mark.parametrize("work", [tasks.worked_sum, tasks.worked_difference])
def test_every_worked_sum_and_difference_is_right(work):
    sign = 1 if work is tasks.worked_sum else -1
    for a in range(100):
        for b in range(100):
            shown, final = work(a, b)
            assert final.endswith(f"= {a + sign * b}")
            assert shown["medium"].endswith(f"So {a + sign * b}.")
            for text in shown.values():  # every equation of the columns holds
                for left, right in re.findall(r"(?<!\d)(\d+(?:[+-]\d+)+)=(\d+)", text):
                    assert eval(re.sub(r"\b0+(?=\d)", "", left)) == int(right), text
                for x, relation, y in re.findall(r"(\d)([<>])(\d)", text):
                    assert (int(x) < int(y)) == (relation == "<")


def test_effort_governs_how_much_work_is_shown():
    for task in ("add", "subtract", "compare", "weekday", "lookup"):
        worked = conversations.WORKED[task](random.Random(1), "train")
        low, medium, high = (len(worked.analysis[effort]) for effort in prompts.EFFORTS)
        assert low < medium < high


def test_weekdays_and_comparisons_are_right():
    rng = random.Random(3)
    for _ in range(300):
        worked = tasks.weekday(rng, "train")
        day = next(d for d in tasks.DAYS if d in worked.question)
        n = int(re.search(r"\d+", worked.question).group())
        back = bool(re.search("before|ago|minus", worked.question))
        assert worked.final == f"It is {tasks.DAYS[(tasks.DAYS.index(day) + (-n if back else n)) % 7]}."
        compared = tasks.compare(rng, "train")
        a, b = map(int, re.findall(r"\d+", compared.question))
        best = min(a, b) if re.search("smaller|less", compared.question) else max(a, b)
        assert compared.final.startswith("They are equal" if a == b else f"{best} is")


def test_training_never_sees_a_held_out_sum():
    def operands(split):
        rng = random.Random(5)
        return {tuple(sorted(map(int, re.findall(r"\d+", tasks.add(rng, split).question)))) for _ in range(4000)}

    train, test = operands("train"), operands("test")
    assert not train & test
    assert len(test) > 200
    assert all(tasks.held_out(*pair) for pair in test)
    pairs = [(a, b) for b in range(100) for a in range(b + 1)]
    assert 0.04 < sum(tasks.held_out(*pair) for pair in pairs) / len(pairs) < 0.09


def test_same_seed_same_conversations():
    assert examples(2, seed=9) == examples(2, seed=9)
    assert examples(2, seed=9) != examples(2, seed=10)
