"""The folder of a day on a GPU: whose it is, that it can be written to, and that another run's numbers in it are not this one's."""

import json
import os
from pathlib import Path
import signal

from absl import app, flags
import pytest

from benchmarks.gpu_day import __main__ as program
from benchmarks.gpu_day import running
from benchmarks.gpu_day.pieces import Piece

ABOUT = {"device": "NVIDIA H200", "driver": "580", "jax": "0.12.0.1", "jaxlib": "0.12.0.1", "kernels": "ab", "gigabytes": 106.0}
ABOUT |= {"hopper": True, "peer": False}
FOUND = [
    {"kernel": "route", "preset": "20b", "verdict": "hung", "why": "w", "seconds": 3.0, "cases": {}},
    {"op": "projection.unembed", "name": "20b, 1 token", "seconds": 77e-6, "floor": 5e-6, "error": 1e-3}
    | {"device": "NVIDIA H200", "jax": "0.12.0.1", "date": "2026-11-30"},
]


@pytest.fixture
def day(tmp_path, monkeypatch):
    """Runs of pieces that are done without a process: (flags) -> exit status, or a sentence."""
    done = []

    def run_piece(name, key, command, folder, limit, environment):
        done.append((name, command))
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.log").write_text("\n".join(map(json.dumps, FOUND)))
        state = running.State(name, "done", "", 1.0, key)
        running.write(folder / f"{name}.json", json.dumps(vars(state)))
        return state

    monkeypatch.setattr(program.Day, "_probe", lambda self: dict(ABOUT))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(program.running, "run", run_piece)
    some = [Piece(name, f"what {name} is", ("x", "{without}"), ("y", "{without}"), limit=10, least=1) for name in ("check", "a")]
    monkeypatch.setattr(program, "PIECES", some)

    def run(*arguments: str, out: str | Path = tmp_path / "day"):
        given = flags.FlagValues()
        program.define_flags(given)
        given(["gpu_day", f"--out={out}", *arguments])
        return program.main([], given)

    run.folder, run.done = tmp_path / "day", done
    return run


def text(folder: Path) -> str:
    return "".join((folder / name).read_text() for name in ("RESULTS.md", "results.jsonl", "TUNING.txt"))


OTHERS = {"jax": "0.11.2", "device": "NVIDIA H100", "driver": "570", "kernels": "cd"}


@pytest.mark.parametrize("fact", OTHERS)
def test_what_another_run_measured_is_not_this_ones(day, monkeypatch, fact):
    assert day() == 0 and "77.0" in text(day.folder) and "hung" in text(day.folder)
    assert day.done[1] == ("a", ["x", "--without=route"])
    monkeypatch.setitem(ABOUT, fact, OTHERS[fact])
    assert day("--only=a") == 0 and day.done[2:] == [("a", ["x"])], "a verdict of elsewhere leaves nothing out"
    assert "| check | what check is | not run |  |  | not asked for |" in text(day.folder)
    assert '"piece": "check"' not in text(day.folder) and text(day.folder).count('"piece": "a"') == len(FOUND)


def test_what_was_rehearsed_is_never_measured(day):
    assert day("--rehearse") == 0 and "no number here means anything" in text(day.folder)
    assert (day.folder / "TUNING.txt").read_text() == "# A rehearsal: no rows.\n" and "77.0" in text(day.folder)
    day.done.clear()
    assert day("--only=a") == 0 and day.done == [("a", ["x"])], "a rehearsal's verdict leaves nothing out"
    assert '"piece": "check"' not in text(day.folder) and text(day.folder).startswith("Measured")
    assert day("--rehearse") == 0 and day("--only=a") == 0 and len(day.done) == 1, "a rehearsal costs nothing that was measured"
    assert text(day.folder).count('"piece": "a"') == len(FOUND)


@pytest.mark.parametrize("name", ["RESULTS.md", "results.jsonl", "TUNING.txt"])
def test_somebody_elses_files_stay(day, name):
    day.folder.mkdir()
    (day.folder / name).write_text("precious")
    assert day().startswith(f"error: --out must be a new folder or one of gpu_day's; {day.folder} has another's {name}")
    assert [path.name for path in day.folder.iterdir()] == [name] and (day.folder / name).read_text() == "precious" and not day.done


def test_a_folder_that_cannot_be_written_to_is_refused(day, tmp_path, monkeypatch):
    with pytest.raises(app.UsageError, match="--out must name a folder; got an empty name"):
        day(out="")
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "inside"):
        assert day(out=out).startswith(f"error: --out must be a folder that can be written to; got {out} (")
    assert day() == 0
    (day.folder / "results.jsonl").unlink()
    (day.folder / "results.jsonl").mkdir()
    day.done.clear()
    assert f"{day.folder / 'results.jsonl'} is none; move it" in day() and not day.done
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert day().startswith(f"error: --out must be a folder that can be written to; {day.folder} cannot")


def test_an_interrupted_run_says_what_it_has(day, monkeypatch, capsys):
    def interrupted(self, piece):
        if piece.name == "a":
            raise KeyboardInterrupt
        return do(self, piece)

    do = program.Day.do
    monkeypatch.setattr(program.Day, "do", interrupted)
    assert day() == 130 and "| check | what check is | done |" in capsys.readouterr().out


def test_files_have_the_modes_that_the_user_wants(day):
    before = os.umask(0o022)
    try:
        assert day() == 0 and {(day.folder / name).stat().st_mode & 0o777 for name in ("RESULTS.md", "results.jsonl")} == {0o644}
    finally:
        os.umask(before)


def test_the_peers_interpreter_must_be_one(day, tmp_path):
    with pytest.raises(app.UsageError, match="--peer_python must be an interpreter; 'nowhere/python' is none"):
        day("--peer_python=nowhere/python")
