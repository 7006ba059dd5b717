"""A batch job with a stand-in for the model: every line has its result, in order, whatever the line is."""

import json

from fake_llm import FakeLLM, run_job
import pytest

from gptoss_jax.batch import source
from gptoss_jax.batch.draining import Draining
from gptoss_jax.batch.job import Job
from gptoss_jax.batch.journal import Totals
from gptoss_jax.batch.progress import Progress
from gptoss_jax.batch.shards import Shard
from gptoss_jax.openai.asked import Defaults

GOOD = {"id": "good", "prompt": "Hello"}


@pytest.fixture
def job(tmp_path):
    """Runs a job over lines; returns its results."""

    def run(lines, llm=None, suffix="", **options) -> list[dict]:
        given, output = tmp_path / f"requests.jsonl{suffix}", tmp_path / f"out.jsonl{suffix}"
        given.write_bytes(b"\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines))
        assert run_job(given, output, llm, **options)
        assert not output.with_name(output.name + ".partial").exists()
        return [json.loads(line) for line in output.read_bytes().splitlines()]

    return run


def test_results_are_in_the_order_of_the_input(job):
    llm = FakeLLM(slots=8)
    out = job([{"id": i, "prompt": f"question {i}"} for i in range(200)], llm)
    assert [one["id"] for one in out] == list(range(200))
    assert all(one["text"].startswith(f"question {i} seed") for i, one in enumerate(out))
    assert llm.ahead == 16  # the input is read as it is needed


def test_bad_lines_become_errors_and_the_others_go_on(job):
    long = {"id": "long", "prompt": "x" * 20_000}
    lines = [b"{", b"", GOOD, b"\xff", long, {"id": "odd", "prompt": "x", "nonsense": 1}, b"  ", b"[]", GOOD | {"id": "last"}]
    out = job(lines)
    assert [one["id"] for one in out] == [None, "good", None, "long", "odd", None, "last"]
    assert [one["error"] and one["error"]["code"] for one in out] == [
        *("invalid_json", None, "invalid_utf8", "invalid_request", "unknown_field", "invalid_json", None)
    ]
    assert [one.get("line") for one in out] == [1, None, 4, None, None, 8, None]
    assert "context is" in out[3]["error"]["message"]


def test_a_line_with_several_prompts_has_one_result_when_all_of_them_are_answered(job):
    url = {"method": "POST", "url": "/v1/completions"}
    given = [{"custom_id": f"c{i}", **url, "body": {"prompt": [f"question {i} {j}" for j in range(i % 4 + 1)], "n": 2}} for i in range(20)]
    given += [{"custom_id": "long", **url, "body": {"prompt": ["x", "y" * 20_000, "z"]}}]
    out = job(given, FakeLLM(slots=8))
    assert [one["custom_id"] for one in out] == [one["custom_id"] for one in given]
    for line, one in zip(given[:-1], out[:-1], strict=True):
        choices = one["response"]["body"]["choices"]
        assert [choice["index"] for choice in choices] == list(range(len(choices)))
        prompts = [prompt for prompt in line["body"]["prompt"] for _ in range(2)]
        assert all(choice["text"].startswith(prompt) for choice, prompt in zip(choices, prompts, strict=True))
    error = out[-1]["response"]["body"]["error"]
    assert out[-1]["response"]["status_code"] == 400 and error["param"] == "prompt" and "context is" in error["message"]


def test_the_first_of_two_lines_with_one_id_counts(job):
    chat = {"method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "x"}]}}
    out = job([GOOD, {"id": "good", "prompt": "other"}, {"custom_id": "good", **chat}, {"id": "b", "what": 1}, {"id": "b", "prompt": "x"}])
    assert out[0]["error"] is None and out[0]["text"].startswith("Hello")
    assert out[1]["error"]["code"] == "duplicate_id"
    assert out[2]["response"]["body"]["error"]["code"] == "duplicate_id"
    assert out[3]["error"]["code"] == "unknown_field" and out[4]["error"]["code"] == "duplicate_id"


def test_nothing_to_do(job):
    assert job([]) == [] and job([b"", b" "]) == []


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_output(tmp_path, suffix):
    given, output = tmp_path / "requests.jsonl", tmp_path / f"out.jsonl{suffix}"
    given.write_text(json.dumps(GOOD))
    written = []
    for _ in range(2):
        assert run_job(given, output)
        written.append(output.read_bytes())
    assert written[0] == written[1] and b"Hello" not in written[0]


def test_a_request_has_the_same_seed_in_every_run_and_another_with_another_seed(job):
    lines = [{"id": i, "prompt": "x"} for i in range(5)]
    texts = [[one["text"] for one in job(lines, seed=seed)] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2] and len(set(texts[0])) == 5


class Dies(FakeLLM):
    def run(self, tasks):
        for count, outcome in enumerate(super().run(tasks)):
            if count == 7:
                raise RuntimeError("out of memory")
            yield outcome


def begin(tmp_path, lines):
    given, output = tmp_path / "requests.jsonl", tmp_path / "out.jsonl"
    given.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RuntimeError, match="out of memory"):
        run_job(given, output, Dies())
    return given, output


def test_a_model_that_dies_loses_nothing_of_what_it_said(tmp_path):
    given, output = begin(tmp_path, [{"id": i, "prompt": f"question {i}"} for i in range(40)])
    assert not output.exists()
    seen = []

    class Watched(FakeLLM):
        def answer(self, task):
            seen.append(task.key[0])
            return super().answer(task)

    assert run_job(given, output, Watched())
    assert len(seen) == len(set(seen)) == 33
    alone = tmp_path / "alone.jsonl"
    assert run_job(given, alone) and alone.read_bytes() == output.read_bytes()


def test_a_job_goes_on_only_as_it_began(tmp_path):
    given, output = begin(tmp_path, [{"id": i, "prompt": f"question {i}"} for i in range(40)])
    with pytest.raises(ValueError, match=r"settings.seed \(0, now 3\)"):
        run_job(given, output, seed=3)
    given.write_text(given.read_text().replace("question 20", "Question 20"))
    with pytest.raises(ValueError, match="another input.blake2b"):
        run_job(given, output)


def test_a_model_that_leaves_something_out_is_an_error(tmp_path):
    class Forgets(FakeLLM):
        def run(self, tasks):
            yield from list(super().run(tasks))[1:]

    given, output = tmp_path / "requests.jsonl", tmp_path / "out.jsonl"
    given.write_text(json.dumps(GOOD))
    assert not run_job(given, output, Forgets())
    assert run_job(given, output)


def test_progress_is_told_now_and_then_and_at_the_end(tmp_path):
    said = []
    given, output = begin(tmp_path, [{"id": i, "prompt": f"question {i}"} for i in range(40)])
    llm = FakeLLM(seconds=0.005)
    with Draining(1) as draining, Job(source.survey(given), output, {"seed": 0}, Defaults(), Shard()) as job:
        with Progress(job.journal.totals, 40, generated=lambda: llm.engine.stats.generated, log=said.append, seconds=0.02) as progress:
            job.run(llm, draining)
        summary = progress.summary(0.5)
    assert said and " of 40 requests (" in said[0] and "output tokens/s" in said[0] and " left" in said[0]
    assert summary.startswith("40 of 40 requests, 0 errors, ") and "this run: 33 requests in " in summary and "50% of the slots" in summary


def test_a_bar_counts_what_was_there_before(capsys):
    totals = Totals(10, 1, 5, 5)
    with Progress(totals, 40, generated=lambda: 0, log=None):
        totals.add(False, 3, 4)
    shown = capsys.readouterr().err
    assert "11/40" in shown and "1 errors" in shown
