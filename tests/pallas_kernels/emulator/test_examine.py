"""What is called right, of made-up runs; and the command's table and exit status. No kernel is compiled here but in the last test."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

from absl import app
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import aot, emulator
from pallas_kernels.bench import small
from pallas_kernels.emulator import __main__ as command
from pallas_kernels.emulator import examine

CASE = small.Small("op", "3 tokens", 3, jnp.sin, jnp.sin, jnp.sin, lambda: (np.ones(3, np.float32),))
WANTED = [np.array([3.0, 4.0], np.float32), np.array([1, 2], np.int32)]


def judged(*runs, plain=(1e-3, 0.0), reports=()):
    """The outcome of runs whose results are these; one that is an error is raised."""
    left = list(runs)

    def emulated(*, seed, policy):
        out = left.pop(0)
        if isinstance(out, Exception):
            raise out
        launch = SimpleNamespace(name="kernel", reports=reports, executed={"add": 2, "ld": 3}, seconds=0.5)
        return tuple(out), SimpleNamespace(launches=[launch])

    return examine.judge(CASE, emulated, WANTED, list(plain), examine.schedules(len(runs)))


def test_the_same_right_results_are_right():
    outcome = judged(WANTED, WANTED)
    assert outcome.right and outcome.errors == (0, 0)
    assert outcome.launches == (examine.Launch("kernel", 5, 0.5),) and outcome.schedules == 2


@pytest.mark.parametrize("factor, right", [(1.0015, True), (1.0025, False), (np.nan, False), (np.inf, False)])
def test_an_error_may_be_twice_that_of_the_plain_form(factor, right):
    assert judged([factor * WANTED[0], WANTED[1]]).accurate is right


def test_an_error_of_the_order_of_sums_is_allowed_where_the_plain_form_has_none():
    run = lambda error: judged([WANTED[0] * np.float32(1 + error), WANTED[1]], plain=(0.0, 0.0))
    assert run(1e-6).right and not run(4e-6).right


def test_integers_must_be_equal():
    assert judged([WANTED[0], np.array([1, 3], np.int32)]).errors == (0, float("inf"))


def test_other_bits_under_another_schedule_are_wrong():
    outcome = judged(WANTED, [WANTED[0] * np.float32(1.0001), WANTED[1]])
    assert outcome.accurate and not outcome.same and not outcome.right
    zeros = [np.zeros(2, np.float32), WANTED[1]]
    assert not judged(zeros, [-zeros[0], WANTED[1]]).same  # equal numbers, other bits


def test_a_broken_rule_and_a_fault_are_wrong():
    finding = ("race: read", "/somewhere/mosaic.py:7", "ld.shared", "at 0", 1)
    outcome = judged(WANTED, reports=[finding, finding])
    assert outcome.accurate and not outcome.right and outcome.findings == ("kernel: race: read (mosaic.py:7)",)
    outcome = judged(WANTED, emulator.Fault("deadlock:\n  block (0, 0, 0)"))
    assert not outcome.right and outcome.findings == ("fault: deadlock:",) and outcome.worst[0] == float("inf")
    none = judged(emulator.Fault("deadlock"))
    assert not none.right and none.launches == ()


def test_policies_take_turns():
    assert examine.schedules(6) == [*enumerate(emulator.POLICIES), (5, emulator.POLICIES[0])]


def test_the_table_has_a_row_for_each_launch():
    outcome = dataclasses.replace(judged(WANTED), launches=(examine.Launch("a", 1200, 0.25), examine.Launch("b", 3, 0)))
    assert command.rows(outcome) == [
        ["a", "3 tokens", "1", "yes", "yes", "0", "0.001", "1,200", "0.2", ""],
        ["b", "3 tokens", "1", "yes", "yes", "0", "0.001", "3", "0.0", ""],
    ]
    assert command.rows(judged(emulator.Fault("deadlock")))[0][3:] == ["NO", "yes", "inf", "0.001", "0", "0.0", "fault: deadlock"]


def test_calls_are_chosen_by_name_or_made_for_a_number_of_tokens():
    assert {case.op for case in small.cases(["moe", "norm"])} == {"moe.decode", "moe.grouped", "norm.add_norm"}
    assert all("2880" in case.name for case in small.cases(names=["2880"]))
    assert {case.tokens for case in small.cases(["projection"], tokens=[7, 2])} == {7, 2}
    assert len({(case.op, case.name) for case in small.cases()}) == len(small.cases()), "two calls of an op have one name"
    with pytest.raises(ValueError, match="no small call of .*moe.decode.* is called so"):
        small.cases(["mow"])


def test_tables_hold_while_kernels_are_traced_and_not_after():
    room = SimpleNamespace(ROWS=1)
    with pytest.raises(RuntimeError), dataclasses.replace(CASE, tables=((room, "ROWS", 5),)).tuned():
        assert room.ROWS == 5
        raise RuntimeError
    assert room.ROWS == 1


@pytest.fixture
def flag(monkeypatch):
    """Sets a flag of the command, which does not configure jax here, nor need the extra `aot`."""
    values = {"_OP": [], "_NAME": [], "_TOKENS": [], "_SEEDS": 1, "_OUT": None}
    set_one = lambda name, value: monkeypatch.setattr(command, name, SimpleNamespace(value=value))
    for name, value in values.items():
        set_one(name, value)
    monkeypatch.setattr(command.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(command.aot, "unavailable", lambda: None)
    monkeypatch.setattr(command.importlib.metadata, "version", lambda _: "13.5")
    return set_one


@pytest.mark.parametrize("tokens", ["0", "4097", "99999999999", "9" * 5000, "-1", "x"])
def test_numbers_of_tokens(flag, tokens):
    flag("_TOKENS", ["3", tokens])
    with pytest.raises(app.UsageError, match=f"--tokens must be integers from 1 to 4,096; got {tokens[:80]}; pass"):
        command.main([""])


@pytest.mark.parametrize("name", ["", "there/is/none"])
def test_a_file_that_cannot_be_written(flag, tmp_path, name):
    """Is said before the work."""
    flag("_OUT", str(tmp_path / name))
    with pytest.raises(app.UsageError, match="--out must be a file that can be appended to; got"):
        command.main([""])


def test_ctrl_c_keeps_the_table(flag, monkeypatch, tmp_path, capsys):
    outcomes = iter([judged(WANTED)])

    def one(*_):
        for outcome in outcomes:
            return outcome
        raise KeyboardInterrupt

    monkeypatch.setattr(examine, "examine", one)
    flag("_OUT", str(tmp_path / "out.jsonl"))
    assert command.main([""]) == 130
    header, row, empty, *table = capsys.readouterr().out.splitlines()
    assert header.startswith("kernel  case  schedules") and row.startswith("kernel  3 tokens  1  yes") and not empty
    assert table[-1].split()[:3] == ["kernel", "3", "tokens"]
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 1


@pytest.mark.thorough
@pytest.mark.skipif(aot.unavailable() is not None, reason=str(aot.unavailable()))
def test_the_command(tmp_path):
    out = tmp_path / "out.jsonl"
    run = lambda *flags: subprocess.run([sys.executable, "-m", "pallas_kernels.emulator", *flags], capture_output=True, text=True)
    done = run("--op=norm", "--tokens=2", "--seeds=2", f"--out={out}")
    assert done.returncode == 0, done.stderr[-2000:]
    table = done.stdout.splitlines()
    assert table[-2].startswith("kernel    case") and table[-1].split()[0] == "add_norm"
    (line,) = map(json.loads, out.read_text().splitlines())
    assert (line["op"], line["schedules"], line["same"], line["findings"]) == ("norm.add_norm", 2, True, [])
    assert {"jax", "ptxas", "date"} <= line.keys()
    done = run("--tokens=0")
    assert done.returncode == 1 and "--tokens must be integers from 1 to 4,096; got 0" in done.stdout + done.stderr
