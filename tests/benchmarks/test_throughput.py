"""The benchmark of throughput and the soak run, count what they say they count, and notice what is wrong."""

import json
import threading

from absl import app, flags
import numpy as np
import pytest
from small_model import DIRECTORY, small_model

from benchmarks import soak, throughput
from gptoss_jax.engine.engine import Engine
from gptoss_jax.engine.requests import Request
from gptoss_jax.sampling.options import Sampling

pytestmark = pytest.mark.thorough


def run(program, *arguments: str):
    given = flags.FlagValues()
    program.define_flags(given)
    given(["program", *arguments])
    return program.main([], given)


def results(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


SIZES = ["--requests=6", "--input_len=3-20", "--output_len=2-9", "--slots=2", "--chunk=64"]


def test_requests_are_timed(capsys):
    run(throughput, f"--checkpoint={DIRECTORY}", *SIZES)
    (result,) = results(capsys)
    assert result["computed"] == result["prompt_tokens"] - 6  # the last token of each is its slot's first input
    assert result["output_tokens_per_second"] == pytest.approx(result["output_tokens"] / result["seconds"])
    assert result["total_tokens_per_second"] == pytest.approx((result["output_tokens"] + result["prompt_tokens"]) / result["seconds"])
    assert result["requests_per_second"] == pytest.approx(6 / result["seconds"])
    assert 0 < result["occupancy"] <= 1 and result["device"] == "cpu" and result["date"]


@pytest.mark.slow
def test_shared_prefixes_are_computed_once(capsys):
    run(throughput, f"--checkpoint={DIRECTORY}", *SIZES, "--shared_prefix=128", "--reuse=both")
    (result,) = results(capsys)
    assert result["computed_without"] == result["computed"] + result["reused"] and result["reused"] == 5 * 128
    assert result["computed_ratio"] > 3


@pytest.mark.slow
def test_requests_that_come_one_by_one_get_the_same_answers():
    model = small_model()
    work = throughput.draw(6, (3, 20), (2, 9), 0, model.config.vocab_size, 0)
    options = {"slots": 2, "chunk": 64, "reuse": True}
    came = throughput.measure(model, work, rate=50.0, **options)
    assert came.tokens == throughput.measure(model, work, **options).tokens
    assert came.seconds >= np.random.default_rng(0).exponential(1 / 50, 6).sum()


def test_work_is_drawn_by_its_seed():
    work = throughput.draw(200, (3, 5), (1, 2), 7, 320, 1)
    assert {len(prompt) - 7 for prompt in work.prompts} == {3, 4, 5} and set(work.new) == {1, 2}
    assert len({tuple(prompt[:7]) for prompt in work.prompts}) == 1
    assert work == throughput.draw(200, (3, 5), (1, 2), 7, 320, 1) != throughput.draw(200, (3, 5), (1, 2), 7, 320, 2)


@pytest.mark.parametrize("text", ["0-5", "9-5", "0", "-3", "a"])
def test_lengths_that_are_none(text):
    with pytest.raises(ValueError):
        throughput.span(text)


@pytest.mark.parametrize("arguments", [["--preset=tiny", "--checkpoint=nano"], ["--peer_python=python", "--reuse=both"]])
def test_options_that_do_not_go_together(arguments):
    with pytest.raises(app.UsageError):
        run(throughput, *arguments)


@pytest.mark.slow
def test_a_soak_leaves_nothing_behind(capsys):
    run(soak, f"--checkpoint={DIRECTORY}", "--requests=40", "--round=20")
    (result,) = results(capsys)
    assert sum(result["ended"].values()) == 40 and result["compilations"] == 0


def test_a_soak_notices_what_is_held():
    model = small_model()
    engine = Engine(model.params, model.config, eos_token_ids=(), slots=2, context=64, chunk=64, page=16)
    soak.check_nothing_is_held(engine)
    looked, may_go_on = threading.Event(), threading.Event()

    class Slow:
        pauses, problem = (), ""

        def mask(self, out):
            looked.set()
            may_go_on.wait()
            out[:] = 1
            return True

        def advance(self, token): ...

    pieces = engine.run([Request([1, 2, 3], Sampling(temperature=0, max_tokens=40, ignore_eos=True), constraint=Slow())])
    reading = threading.Thread(target=list, args=(pieces,))
    reading.start()
    looked.wait()
    with pytest.raises(RuntimeError, match="nobody may be left"):
        soak.check_nothing_is_held(engine, seconds=0.05)
    may_go_on.set()
    reading.join()
    soak.check_nothing_is_held(engine)
    engine.scheduler.pages[0].take_full()
    with pytest.raises(RuntimeError, match="no page may be in use"):
        soak.check_nothing_is_held(engine)
