"""What the bits are recorded of: requests of all kinds, the same for a seed; and what differs is found."""

import copy
import json

from absl import app, flags
import pytest

from benchmarks.faults import asked, bits


def run(*arguments: str) -> int:
    given = flags.FlagValues()
    bits.define_flags(given)
    return bits.main(given(["bits", *arguments]), given)


def test_the_same_seed_draws_the_same_requests():
    assert asked.draw(50, 3) == asked.draw(50, 3) != asked.draw(50, 4)


def test_two_hundred_requests_are_of_all_kinds():
    drawn = asked.draw(bits.REQUESTS, bits.SEED)
    tasks = [one.task for one in drawn]
    assert len(tasks) == 200 and {one.setting for one in drawn} == set(asked.SETTINGS)
    assert {one.way for one in drawn} == {"run", "generate", "chat", "stream"}
    samplings = [task.sampling for task in tasks]
    names = "top_k presence_penalty frequency_penalty min_p logit_bias stop stop_token_ids ignore_eos logprobs"
    for name in names.split():
        assert sum(bool(getattr(one, name)) for one in samplings) >= 8, name
    assert any(one.temperature == 0 for one in samplings) and any(one.top_p < 1 for one in samplings)
    forms = {task.response_format["type"] for task in tasks if task.response_format}
    assert forms == {"json_schema", "json_object", "regex", "choice"} and any(task.tools for task in tasks)
    assert {task.n for task in tasks} == {1, 2, 3} and len({task.priority for task in tasks}) == 3
    assert all(one.seed is not None for one in samplings) and all(task.time_limit is None for task in tasks)


def test_what_differs_is_said():
    before = {"a": {"tokens": [1, 2, 3], "text": "x"}, "b": {"tokens": [4], "text": "y"}}
    assert bits.differences(before, copy.deepcopy(before)) == []
    now = copy.deepcopy(before)
    now["a"]["tokens"][1], now["c"] = 7, now.pop("b")
    lines = bits.differences(before, now)
    assert len(lines) == 3
    assert "a: tokens was [1, 2, 3], is [1, 7, 3] (of 3 and 3, the first at 1 differs)" in lines
    assert "c: not asked before" in lines and "b: not answered" in lines


@pytest.mark.parametrize("arguments", [(), ("record",), ("look", "file"), ("record", "one", "two")])
def test_what_to_do_must_be_said(arguments):
    with pytest.raises(app.UsageError, match="record FILE, or compare FILE"):
        run(*arguments)


def test_a_record_of_another_machine_is_refused(tmp_path):
    file = tmp_path / "bits.json"
    file.write_text(json.dumps({"about": bits.about() | {"processor": "another", "requests": 200, "seed": 0}, "answers": {}}))
    with pytest.raises(app.UsageError, match="on the machine"):
        run("compare", str(file))


@pytest.mark.thorough
def test_bits_are_recorded_and_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(asked, "_SHARES", dict.fromkeys(("tight", "routed"), 0.5))
    monkeypatch.setattr(bits, "SETTINGS", {name: asked.SETTINGS[name] for name in ("tight", "routed")})
    file = tmp_path / "bits.json"
    assert run("record", str(file), "--requests=16") == 0
    assert run("compare", str(file), "--requests=16") == 0 and "all the same to the bit" in capsys.readouterr().out
    record = json.loads(file.read_text())
    name, answer = next((name, answer) for name, answer in record["answers"].items() if answer.get("logprobs"))
    answer["logprobs"][0] = (float.fromhex(answer["logprobs"][0]) * (1 + 2**-22)).hex()
    file.write_text(json.dumps(record))
    assert run("compare", str(file), "--requests=16") == 1
    assert f"{name}: logprobs was" in capsys.readouterr().out
