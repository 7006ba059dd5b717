"""Batch jobs end to end on the bundled model: the example file, shards, and kills at random moments."""

import json
from pathlib import Path

from absl import flags
import pytest

from benchmarks import kill_batch
from gptoss_jax.batch import __main__ as program
from gptoss_jax.batch import merge

pytestmark = pytest.mark.thorough

EXAMPLE = Path(__file__).parents[2] / "checkpoints" / "examples" / "requests.jsonl"


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for variable in ("SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(variable, raising=False)


def batch(given: Path, output: Path, *arguments: str) -> None:
    told = flags.FlagValues()
    program.define_flags(told)
    told(["batch", f"--input={given}", f"--output={output}", "--slots=4", "--context=512", "--compilation_cache=off", *arguments])
    assert program.main([], told) == 0


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """What the example file gives."""
    output = tmp_path_factory.mktemp("batch") / "results.jsonl"
    batch(EXAMPLE, output)
    return output


@pytest.fixture
def lines(results) -> dict[str, dict]:
    told = [json.loads(line) for line in results.read_text().splitlines()]
    return {one.get("custom_id") or one["id"]: one for one in told}


def test_every_request_has_its_result_in_order(results):
    asked = [json.loads(line) for line in EXAMPLE.read_text().splitlines()]
    told = [json.loads(line) for line in results.read_text().splitlines()]
    assert [one.get("custom_id") or one["id"] for one in told] == [one.get("custom_id") or one["id"] for one in asked]


def test_chat_completions(lines):
    body = lines["sum-1"]["response"]["body"]
    (choice,) = body["choices"]
    assert choice["message"]["content"] == "27 + 58 = 85" and choice["finish_reason"] == "stop"
    assert choice["message"]["reasoning_content"] == "27+58: 7+8=15, 2+5+1=8."
    usage = body["usage"]
    assert usage["prompt_tokens"] > 10 and usage["completion_tokens"] > usage["completion_tokens_details"]["reasoning_tokens"] > 0
    assert "39" in lines["talk-1"]["response"]["body"]["choices"][0]["message"]["content"]


def test_a_tool_call(lines):
    (choice,) = lines["tool-1"]["response"]["body"]["choices"]
    function = choice["message"]["tool_calls"][0]["function"]
    assert function["name"] == "get_weather" and json.loads(function["arguments"]) == {"city": "Paris"}
    assert choice["finish_reason"] == "tool_calls"


def test_responses(lines):
    body = lines["sum-2"]["response"]["body"]
    assert body["status"] == "completed" and [item["type"] for item in body["output"]] == ["reasoning", "message"]
    assert body["output"][1]["content"][0]["text"] == "27 + 58 = 85"


def test_plain_requests(lines):
    assert lines["plain-1"]["text"].endswith("77")
    exact = lines["plain-2"]
    assert exact["text"].endswith("35") and len(exact["tokens"]) == len(exact["logprobs"]) == exact["usage"]["completion_tokens"]
    assert all(value <= 0 for value in exact["logprobs"])
    assert len(lines["plain-3"]["choices"]) == 2
    assert "?" not in lines["prompt-1"]["text"] and lines["prompt-1"]["usage"]["completion_tokens"] <= 12


def test_what_cannot_be_done_is_told(lines):
    assert lines["stream-1"]["response"]["status_code"] == 400
    assert "stream must be false" in lines["stream-1"]["response"]["body"]["error"]["message"]


def test_what_only_the_model_can_refuse_and_what_the_examples_do_not_have(tmp_path):
    given, output = tmp_path / "requests.jsonl", tmp_path / "out.jsonl"
    long, odd = {"id": "long", "prompt": "word " * 2000}, {"id": "odd", "messages": [{"role": "nobody", "content": "x"}]}
    good = {"id": "good", "messages": "What is 8 + 5?"}
    weather = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
    asked = {"messages": [{"role": "user", "content": "What is 8 + 5?"}], "max_tokens": 200}
    asked |= {"tools": [{"type": "function", "function": weather}], "tool_choice": "required", "parallel_tool_calls": False}
    must = {"custom_id": "must", "method": "POST", "url": "/v1/chat/completions", "body": asked}
    prompts = {"prompt": ["What is 1 + 2", "3 + 4"], "max_tokens": 3, "logprobs": 1, "n": 2}
    several = {"custom_id": "several", "method": "POST", "url": "/v1/completions", "body": prompts}
    given.write_text("".join(json.dumps(line) + "\n" for line in (long, odd, good, must, several)))
    batch(given, output)
    told = [json.loads(line) for line in output.read_text().splitlines()]
    assert "context is 512" in told[0]["error"]["message"] and "role must be" in told[1]["error"]["message"]
    assert told[2]["text"] == "8 + 5 = 13"
    (choice,) = told[3]["response"]["body"]["choices"]
    assert choice["finish_reason"] in ("tool_calls", "length")
    assert [call["function"]["name"] for call in choice["message"].get("tool_calls", [])] in (["get_weather"], [])
    choices = told[4]["response"]["body"]["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3] and told[4]["response"]["body"]["object"] == "text_completion"
    assert all(len(choice["logprobs"]["tokens"]) <= 3 for choice in choices)


def test_shards_together_are_the_whole(results, tmp_path):
    output = tmp_path / "results.jsonl"
    for index in range(2):
        batch(EXAMPLE, output, f"--shard_index={index}", "--shard_count=2")
    told = flags.FlagValues()
    merge.define_flags(told)
    told(["merge", f"--output={output}"])
    merge.main([], told)
    assert without_logprobs(output) == without_logprobs(results)


def without_logprobs(path: Path) -> list[dict]:
    """Of a CPU, sums of other batches differ in their last bits."""
    told = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in one.items() if name != "logprobs"} for one in told]


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path):
    cache = f"--compilation_cache={tmp_path / 'compiled'}"
    killed = kill_batch.kill(tmp_path, kills=3, requests=40, seed=1, spread=0.3, arguments=("--slots=4", cache))
    assert killed.kills == 3 and killed.finished
