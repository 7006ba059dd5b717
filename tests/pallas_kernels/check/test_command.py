"""The commands that check, time, predict and compile kernels: a sentence before any work, and what is stopped says what it has."""

import functools
import importlib.util
import json

from absl import app, flags
import pytest

from pallas_kernels import aot, check, hopper
from pallas_kernels.bench import lines
from pallas_kernels.check import Outcome, verdicts
from pallas_kernels.predict import table

DEFINED = ("bool", "enum", "float", "integer", "list", "multi_string", "string")


@pytest.fixture
def command(monkeypatch):
    """A command as its own program has it, with flags that are nobody else's: (package, flags) -> module."""

    def load(package: str, **values):
        own = flags.FlagValues()
        with monkeypatch.context() as patch:
            for kind in DEFINED:
                patch.setattr(flags, f"DEFINE_{kind}", functools.partial(getattr(flags, f"DEFINE_{kind}"), flag_values=own))
            spec = importlib.util.find_spec(f"pallas_kernels.{package}.__main__")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        own([package])
        for name, value in values.items():
            setattr(own, name, value)
        return module

    monkeypatch.setattr(aot, "unavailable", lambda: "")
    return load


@pytest.mark.parametrize("kernel, words", [([], "got none"), (["nothere"], "got nothere"), (["route", ""], "--kernel must name some of")])
def test_kernels_that_there_are_not(command, kernel, words):
    with pytest.raises(app.UsageError, match=words):
        command("check", kernel=kernel).main([])


@pytest.mark.parametrize("package", ["aot", "bench", "predict"])
@pytest.mark.parametrize("asked", [{"op": ["zzz"]}, {"name": ["20b,120b"]}, {"name": [""]}], ids=str)
def test_cases_that_there_are_not(command, package, asked):
    with pytest.raises(app.UsageError, match="no case of attention.decode, .* is called so"):
        command(package, **asked).main([])


@pytest.mark.parametrize("package", ["check", "bench"])
def test_files_that_cannot_be_appended_to(command, package, tmp_path):
    for out in ("", str(tmp_path), str(tmp_path / "no" / "file"), "/dev/null/file"):
        with pytest.raises(app.UsageError, match="--out must be a file that can be appended to; got "):
            command(package, out=out).main([])


def test_lines_are_appended(tmp_path):
    out = tmp_path / "lines.jsonl"
    assert lines.refusal(None) == lines.refusal(str(out)) == "" and not out.exists()
    for number in (1, 2):
        lines.append(str(out), {"n": number})
        assert lines.refusal(str(out)) == ""
    assert [json.loads(line)["n"] for line in out.read_text().splitlines()] == [1, 2]


def test_a_check_that_is_stopped_loses_nothing(command, monkeypatch, capsys, tmp_path):
    def run(kernels, preset, *, rehearse, told):
        told(Outcome("route", "passed", "", {"c": {"error": 1e-3, "worst": 1e-2}}, 1.0))
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "run", run)
    program = command("check", rehearse=True, out=str(tmp_path / "o"))
    assert program.main([]) == 130
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["route", "passed", "1"]
    assert json.loads((tmp_path / "o").read_text())["kernel"] == "route"
    monkeypatch.setattr(verdicts, "folder", lambda: tmp_path / "kernels")
    key = verdicts.Key("NVIDIA H200", "580", "0.12.0.1", "0.12.0.1", "abc")
    program.tell([], key, Outcome("unembed", "hung", "told so"))
    assert verdicts.read(key)["unembed"]["verdict"] == "hung", "as soon as it is known"


LOOPS = {"predict": "predicted", "bench": "timed", "aot": "compiled"}  # of a command, which adds rows to a list as they come


@pytest.mark.parametrize("package", LOOPS)
def test_what_is_stopped_says_what_it_has(command, package, monkeypatch, capsys):
    program = command(package)

    def stopped(*arguments):
        arguments[-1].append([f"cell {i}" for i in range(len(program._HEADER))])
        raise KeyboardInterrupt

    setattr(program, LOOPS[package], stopped)
    monkeypatch.setattr(hopper, "is_hopper", lambda kind: True)
    assert program.main([]) == 130 and capsys.readouterr().out.splitlines()[-1].startswith("cell 0")


@pytest.mark.parametrize("asked", [{"op": ["moe"]}, {"name": ["20b"]}, {"write": True}], ids=str)
def test_whole_steps_are_not_chosen_from(command, asked):
    with pytest.raises(app.UsageError, match="without --op, --name and --write"):
        command("predict", steps=True, **asked).main([])


def test_predictions_are_for_gpus_and_written_where_they_can_be(command, monkeypatch, tmp_path):
    with pytest.raises(app.UsageError, match="--gpu must name some of h100, h200; got none"):
        command("predict", gpu=[]).main([])
    monkeypatch.setattr(table, "PATH", tmp_path / "no" / "predicted.json")
    with pytest.raises(app.UsageError, match="--write needs a table that can be written to"):
        command("predict", write=True).main([])
