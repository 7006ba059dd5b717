"""The storm sees what it is there to see; and the engine stands it, for five minutes, and for twenty."""

from pathlib import Path
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.faults import broken, chaos, innocents
from benchmarks.faults.innocents import Known, Pool
from benchmarks.faults.storm import Storm, Told
import gptoss_jax as gj
from gptoss_jax import grammar
from gptoss_jax.engine.requests import Piece, Request
from gptoss_jax.turns.completion import CompletionBuilder

ROOT = Path(__file__).parent.parent.parent.parent


def answer(*tokens: int, reason: str = "length", logprobs=(-1.0,)) -> SimpleNamespace:
    return SimpleNamespace(tokens=tokens, finish_reason=reason, text="", logprobs=logprobs, error=None)


def task(key: str) -> gj.Task:
    return gj.Task(key=key, messages="What is 2 + 2?", sampling=gj.Sampling(seed=1))


POOL = Pool([Known(task("one"), (("length", "", (1, 2, 3), (-1.0,)),))], [], [])


class Answers:
    """Stands in for an LLM: every task gets the answer that its key has here; what is raised comes instead of the last outcome."""

    def __init__(self, given: SimpleNamespace, raised: Exception | None = None):
        self.given, self.raised = given, raised

    def run(self, tasks):
        tasks = list(tasks)
        for i, one in enumerate(tasks):
            if self.raised is not None and i == len(tasks) - 1:
                raise self.raised
            yield SimpleNamespace(task=one, answers=(self.given,), error=None)

    def chat(self, messages, sampling, **options):
        return self.given


def told(llm, kind: str, interrupted: bool = False) -> Told:
    """What a caller sees of one call of a kind."""
    storm, seen = Storm(llm, POOL, 420), Told()
    for acts in (storm.innocents, storm.faults):
        for name in [name for name in acts if name != kind]:
            del acts[name]
    acts = storm.innocents or storm.faults
    storm.innocents = storm.faults = acts
    storm.call(seen, np.random.default_rng(0), interrupted)
    return seen


@pytest.mark.parametrize(
    "given, wrongs, fails",
    [
        (answer(1, 2, 3), 0, 0),
        (answer(1, 2, 4), 1, 0),
        (answer(1, 2, 3, logprobs=(-1.0000001,)), 1, 0),
        (answer(1, 2, 3, logprobs=(float("nan"),)), 1, 0),
        (answer(1, 2, 3, reason="stop"), 1, 0),
        (answer(1, 2, reason="error"), 0, 1),
    ],
)
@pytest.mark.parametrize("kind", ["chat", "run", "run left"])
def test_what_an_innocent_request_suffers_is_noted(kind, given, wrongs, fails):
    seen = told(Answers(given), kind)
    assert (seen.wrongs, seen.fails) == (wrongs, fails)
    assert seen.begun.total() == seen.ended.total() == 1 and seen.doing is None
    assert len(seen.wrong) == wrongs and len(seen.failed) == fails


@pytest.mark.parametrize("given, wrongs", [(answer(1, 2, reason="timeout"), 0), (answer(), 0), (answer(2, reason="timeout"), 1)])
def test_what_ends_early_must_be_a_beginning(given, wrongs):
    assert told(Answers(given), "time limit").wrongs == wrongs


@pytest.mark.parametrize("kind", ["NaN", "grammar gives up", "builder raises"])
def test_innocent_tasks_that_a_broken_one_takes_with_it_are_noted(kind):
    assert told(Answers(answer(1, 2, 3)), kind).fails == 0
    assert told(Answers(answer(1, 2, 3), ValueError("a fault of another")), kind).fails == 1
    assert told(Answers(answer(1, 2, 9)), kind).wrongs == 1


def test_a_raising_iterable_raises_in_its_own_run_only():
    assert told(Answers(answer(1, 2, 3)), "iterable raises").fails == 0
    assert told(Answers(answer(1, 2, 3), broken.Broken("a mask of another")), "iterable raises").fails == 0  # its own came first
    seen = told(SimpleNamespace(run=lambda tasks: (_ for _ in ()).throw(broken.Broken("a mask"))), "iterable raises")
    assert seen.fails == 1


def test_the_main_thread_is_interrupted_in_its_calls():
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("only the main thread is interrupted")

    class Hangs(Answers):
        def chat(self, *given, **options):
            threading.Event().wait(30)

    with chaos._alarm():
        seen = told(Hangs(answer()), "chat", interrupted=True)
    assert dict(seen.ended) == {("chat, interrupted", "interrupted"): 1} and seen.fails == 0


def test_only_what_bears_a_mark_raises():
    tokenizer = gj.load("nano", progress=False).tokenizer
    made = {"end_ids": [1], "vocab_size": 640}
    plain = {"type": "regex", "regex": "[0-9]{3,90}"}
    out = np.zeros(20, np.uint32)
    with broken.marked_ones_raise():
        for form in (plain, broken.MASK, broken.ADVANCE, broken.LIES):
            constraint = grammar.for_text(tokenizer, form, **made)
            digit = tokenizer.encode("7")[-1]
            raises = 0
            for _ in range(8):
                try:
                    constraint.mask(out)
                    constraint.advance(digit)
                except broken.Broken:
                    raises += 1
            assert (raises > 0) == (form in (broken.MASK, broken.ADVANCE))
            assert bool((out == 2**32 - 1).all()) == (form == broken.LIES)
        for seed, reason in ((3, "length"), (broken.SEEDS, "error"), (broken.SEEDS + 1, "error")):
            request = Request([40], gj.Sampling(seed=seed, max_tokens=2))
            builder = CompletionBuilder(request, tokenizer)
            for piece in (Piece(request, [41], [0.0], [{}], None), Piece(request, [42], [0.0], [{}], "length")):
                builder.add(piece)
            assert builder.result().finish_reason == reason
    assert not isinstance(grammar.for_text(tokenizer, broken.MASK, **made), broken._Constraint)


def test_growth_is_that_of_the_second_half():
    rises = [(float(t), 500.0 + (t if t < 50 else 50 + 0.2 * (t - 50))) for t in range(100)]
    assert chaos._growth(rises) == pytest.approx(0.2 * 49)
    assert chaos._growth([]) == chaos._growth([(0.0, 1.0)]) == 0.0


def test_what_must_not_be_is_said():
    assert chaos._judged(Told(), [], 0, 1.0) == []
    bad = Told()
    bad.suffered("chat", innocents.Wrong("one was two"))
    bad.suffered("run", ValueError("a fault of another"))
    bad.begun["run"] += 1
    said = "\n".join(chaos._judged(bad, [], 2, 900.0))
    parts = ("wrong tokens: 1", "one was two", "innocent errors: 1", "a fault of another", "1 calls were begun, 0 ended", "compilations: 2")
    for part in parts:
        assert part in said
    assert "grew by 900.0 MB" in said and "no end: 1 calls, as chat" in chaos._judged(Told(), ["chat"], 0, 0.0)[0]


def test_a_kind_that_is_none_is_refused():
    with pytest.raises(ValueError, match="faults must be of grammar gives up.*got rain"):
        Storm(Answers(answer()), POOL, 420, ["rain"])


@pytest.mark.parametrize(
    "minutes",
    [pytest.param(1, marks=pytest.mark.thorough), pytest.param(20, marks=pytest.mark.slow)],
)
def test_the_engine_stands_a_storm(minutes):
    command = [sys.executable, "-m", "benchmarks.faults.chaos", f"--minutes={minutes}", f"--seed={minutes}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=minutes * 60 + 600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "all of it holds" in done.stdout
