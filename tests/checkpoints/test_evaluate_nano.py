"""The evaluation, and the bundled checkpoint: what it states about itself, and that it does that."""

import json

import pytest

from checkpoints import nano_conversations as conversations
from checkpoints import nano_evaluation
from checkpoints.nano_prompts import EFFORTS
import gptoss_jax as gj
from gptoss_jax.weights import locate

REQUIRED = {"add": 95, "subtract": 95, "well-formed harmony": 99}  # per cent; 90 for every other task


@pytest.fixture(scope="module")
def llm():
    return gj.LLM(gj.load("nano", progress=False), slots=16, context=512, chunk=192)


def graded(example, given, well_formed=True):
    return nano_evaluation.Graded(example, given, well_formed, given)


def test_accuracies_count_right_answers_in_well_formed_turns():
    a, b = nano_evaluation.questions(2, seed=0)[:2]
    rows = nano_evaluation.accuracies([graded(a, a.final), graded(b, b.final + "0")])
    assert rows["add"] == {"low": 50.0}
    assert rows["well-formed harmony"] == {"low": 100.0}
    assert nano_evaluation.accuracies([graded(a, a.final, False)])["add"] == {"low": 0.0}


def test_questions_are_seeded_and_held_out():
    assert nano_evaluation.questions(3, seed=4) == nano_evaluation.questions(3, seed=4)
    assert {q.task for q in nano_evaluation.questions(1, seed=0)} == set(conversations.TASKS)


def test_the_stated_accuracies_are_what_is_promised():
    stated = json.loads((locate.checkpoint("nano") / "accuracies.json").read_text(encoding="utf-8"))
    assert stated["split"] == "test"
    assert stated["per_task"] >= 100
    assert set(stated["accuracies"]) == {*conversations.TASKS, "well-formed harmony"}
    for task, cells in stated["accuracies"].items():
        for effort in EFFORTS:
            assert cells[effort] >= REQUIRED.get(task, 90), (task, effort)


@pytest.mark.thorough
def test_the_bundled_checkpoint_answers(llm):
    rows = nano_evaluation.accuracies(nano_evaluation.grade(llm, nano_evaluation.questions(4, seed=123)))
    for task, cells in rows.items():
        assert sum(cells.values()) / len(EFFORTS) > 90, task


@pytest.mark.thorough
def test_effort_governs_how_much_work_is_shown(llm):
    shown = [len(llm.chat("What is 27 + 58?", gj.Sampling(temperature=0), reasoning_effort=effort).reasoning) for effort in EFFORTS]
    assert shown[0] < shown[1] < shown[2]
