"""Eight minutes on a GPU, rehearsed: pieces in order, limits, what was killed goes on, what is done stays done, tables of what came."""

import dataclasses
import fcntl
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from absl import flags
import pytest

from benchmarks.gpu_day import __main__ as program
from benchmarks.gpu_day import peers, pieces, profile, report, running, serving
from benchmarks.gpu_day.pieces import PIECES, Piece
from benchmarks.whole_model import Point
from pallas_kernels.check import selection

ROOT = Path(__file__).parents[3]
ABOUT = {"device": "NVIDIA H200", "driver": "580", "jax": "0.11.2", "jaxlib": "0.11.2", "kernels": "ab", "gigabytes": 106.0}
ABOUT |= {"hopper": True, "peer": False}
TINY = """
import json, sys, time
name, seconds, status = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
print("words"); print(json.dumps({"op": name, "name": "20b, 1 token", "seconds": 1e-5, "floor": 5e-6, "error": 1e-3}))
time.sleep(seconds)
print(json.dumps({"benchmark": "decode", "preset": "gpt-oss-20b", "batch": 1, "context": 1024, "tokens_per_second": 1000.0}))
sys.exit(status)
"""


@pytest.fixture
def days(tmp_path, monkeypatch):
    """Runs with tiny programs in the places of pieces, on a GPU that is not there: (flags) -> exit status."""
    (tmp_path / "tiny_piece.py").write_text(TINY)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setattr(program.Day, "_probe", lambda self: dict(ABOUT))
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(*arguments: str):
        given = flags.FlagValues()
        program.define_flags(given)
        given(["gpu_day", f"--out={tmp_path / 'day'}", *arguments])
        return program.main([], given)

    run.folder = tmp_path / "day"
    return run


def tiny(name: str, seconds: float = 0, status: int = 0, **changes) -> Piece:
    made = ("tiny_piece", name, str(seconds), str(status))
    return dataclasses.replace(Piece(name, f"what {name} is", made, made, limit=10, least=1), **changes)


def chosen(monkeypatch, *some: Piece) -> None:
    monkeypatch.setattr(program, "PIECES", some)


def statuses(folder: Path) -> dict[str, str]:
    return {path.stem: json.loads(path.read_text())["status"] for path in sorted((folder / "pieces").glob("*.json"))}


def test_pieces_are_done_in_order_and_once(days, monkeypatch, capsys):
    chosen(monkeypatch, tiny("b"), tiny("a"), tiny("c", status=3))
    assert days() == 1
    out = capsys.readouterr().out
    assert out.index("b: done") < out.index("a: done") < out.index("c: failed in") and "ended with status 3" in out
    assert statuses(days.folder) == {"a": "done", "b": "done", "c": "failed"}
    assert len((days.folder / "results.jsonl").read_text().splitlines()) == 6, "what a failed one has said is kept"
    stamp = (days.folder / "pieces" / "b.json").stat().st_mtime_ns
    chosen(monkeypatch, tiny("b"), tiny("a"), tiny("c", status=3), tiny("d"))
    assert days() == 1
    out = capsys.readouterr().out
    assert "b: done" not in out and out.index("d: done") < out.index("c: failed"), "what failed comes after what is new"
    assert (days.folder / "pieces" / "b.json").stat().st_mtime_ns == stamp


def test_other_kernels_are_measured_again(days, monkeypatch, capsys):
    chosen(monkeypatch, tiny("a"))
    assert days() == 0 and days() == 0
    assert capsys.readouterr().out.count("a: done") == 1
    monkeypatch.setitem(ABOUT, "kernels", "cd")
    assert days() == 0 and "a: done" in capsys.readouterr().out


def test_a_piece_that_takes_too_long_is_cut_and_its_results_count(days, monkeypatch):
    chosen(monkeypatch, tiny("slow", 60, limit=1.5), tiny("a"))
    began = time.monotonic()
    assert days() == 1 and time.monotonic() - began < 20
    assert statuses(days.folder) == {"a": "done", "slow": "cut"}
    assert '"piece": "slow", "op": "slow"' in (days.folder / "results.jsonl").read_text()


def test_what_does_not_fit_the_budget_is_not_begun(days, monkeypatch):
    chosen(monkeypatch, tiny("long", least=100), tiny("huge", gigabytes=200), tiny("other", peer=True), tiny("a"))
    assert days("--budget=30") == 0 and statuses(days.folder) == {"a": "done"}
    text = (days.folder / "RESULTS.md").read_text()
    assert "it needs 100" in text and "it needs 200 GB, the device has 106" in text and "give --peer_python" in text


def test_a_broken_state_is_none(days, monkeypatch):
    chosen(monkeypatch, tiny("a"))
    (days.folder / "pieces").mkdir(parents=True)
    (days.folder / "pieces" / "a.json").write_text('{"name"')
    assert days() == 0 and statuses(days.folder) == {"a": "done"}


def test_two_runs_do_not_share_a_folder(days, monkeypatch):
    chosen(monkeypatch, tiny("a"))
    days.folder.mkdir()
    with (days.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "one is at work in" in days()


def test_a_killed_run_takes_its_piece_with_it(tmp_path):
    (tmp_path / "tiny_piece.py").write_text(TINY)
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu_day import running; import os;"
        "running.run('a', 'key', ['tiny_piece', 'a', '60', '0'], Path(sys.argv[1]), 60, os.environ)"
    )
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "pieces")], env=env)
    try:
        until = time.monotonic() + 60
        while not running.results(tmp_path / "pieces", "a") and time.monotonic() < until:
            time.sleep(0.05)
        inside = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal() and _command(path) == ["tiny_piece", "a"]]
        assert len(inside) == 1
    finally:
        process.kill()
        process.wait()
    while _command(Path(f"/proc/{inside[0]}")) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _command(Path(f"/proc/{inside[0]}")) and running.state(tmp_path / "pieces", "a").status == "begun"
    assert len(running.results(tmp_path / "pieces", "a")) == 1, "what it had found is there"


def _command(process: Path) -> list[str]:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
    return [word.decode() for word in words if word in (b"tiny_piece", b"a")]


def test_kernels_that_did_not_pass_are_left_out_of_what_follows(days, monkeypatch):
    chosen(monkeypatch, tiny("check"))
    assert days() == 0
    given = flags.FlagValues()
    program.define_flags(given)
    given(["gpu_day", f"--out={days.folder}"])
    places = days.folder / "pieces"
    lines = [
        {"kernel": "route", "verdict": "hung"},
        {"kernel": "unembed", "verdict": "passed"},
        {"kernel": "add_norm", "verdict": "unchecked"},
    ]
    running.lines(places, "check").write_text("\n".join(map(json.dumps, lines)) + "\n{torn")
    left_out = program.Day(given, days.folder).left_out()
    assert left_out == ["route"]
    running.lines(places, "check").write_text(json.dumps({"kernel": "together", "verdict": "wrong"}) + "\n")
    assert set(program.Day(given, days.folder).left_out()) == set(selection.DECODING)
    decode = next(piece for piece in PIECES if piece.name == "decode-1")
    assert pieces.command(decode, False, {"lines": "", "out": "", "peer": ""}, left_out)[-1] == "--without=route"
    assert not any("without" in word for word in pieces.command(decode, False, {"lines": "", "out": "", "peer": ""}, []))


def test_programs_take_what_they_are_given():
    """Every flag of every piece is one that its program has; the bench's cases are there."""
    from benchmarks import decode, prefill
    from pallas_kernels import bench

    programs = {"benchmarks.decode": decode, "benchmarks.prefill": prefill, "benchmarks.gpu_day.serving": serving}
    programs |= {"benchmarks.gpu_day.profile": profile, "benchmarks.gpu_day.peers": peers}
    for piece in PIECES:
        for rehearse in (False, True):
            module, *arguments = pieces.command(piece, rehearse, {"lines": "l", "out": "o", "peer": "p"}, ["route"])
            if module in programs:
                given = flags.FlagValues()
                programs[module].define_flags(given)
                assert given([module, *arguments]) == [module]
            elif module == "pallas_kernels.bench":
                given = flags.FlagValues()
                flags.DEFINE_list("op", [], "", given)
                for name in ("name", "out"):
                    flags.DEFINE_multi_string(name, [], "", given)
                given([module, *arguments])
                asked = bench.cases(given.op, given.name)
                assert 15 < len(asked) < 80 and all(case.name.startswith("20b") for case in asked)
                assert all(bench.cases(given.op, [name]) for name in given.name), "no name is without a case"
            else:
                assert module in ("pallas_kernels.check", "benchmarks.gpu_day.rehearsed")


def test_where_there_is_no_hopper_a_sentence_says_so(days, monkeypatch):
    monkeypatch.setitem(ABOUT, "hopper", False)
    assert days().startswith("There is no Hopper GPU (H100, H200) here to measure on: JAX runs on NVIDIA H200")


def test_transformers_are_measured_by_themselves(monkeypatch, capsys):
    asked = []

    def run_peer(*arguments):
        asked.append(arguments)
        return {Point(1, 8): {"batch": 1, "prompt": 8, "tokens_per_second": 5.0}}

    monkeypatch.setattr(peers.whole_model, "run_peer", run_peer)
    for piece in PIECES:
        if piece.peer:
            given = flags.FlagValues()
            peers.define_flags(given)
            given(pieces.command(piece, False, {"lines": "", "out": "", "peer": "python3"}, []))
            assert peers.main([], given) == 0
    assert asked[0] == (
        *("python3", "transformers_decode.py", "gpt-oss-20b"),
        *(["--batch=1,16", "--prompt=1024", "--repeats=2", "--new=32"], "prompt"),
    )
    assert asked[1][1:] == ("transformers_prefill.py", "gpt-oss-20b", ["--batch=1", "--prompt=1024,8192", "--repeats=2"], "prompt")
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "| gpt-oss-20b | decode | 1 | 8 | 5.0 |" in report.tables(found)


@pytest.mark.parametrize(
    "only",
    [pytest.param((), marks=pytest.mark.slow, id="all"), pytest.param(("kernels-1", "decode-1"), marks=pytest.mark.thorough, id="some")],
)
def test_it_is_rehearsed(only, tmp_path):
    """As a whole it takes four minutes."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.gpu_day", "--rehearse", f"--out={tmp_path}", f"--only={','.join(only)}"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False, timeout=1800)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    found = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    ran = set(only) or {piece.name for piece in PIECES if not piece.peer}
    assert {line["piece"] for line in found} >= ran and "A rehearsal on a CPU" in done.stdout
    text = (tmp_path / "RESULTS.md").read_text()
    others = () if only else ("Kernels, right or not", "Prompts", "The engine, as `vllm bench` counts", "by the profiler")
    for title in ("Decode steps", "Kernels\n", *others):
        assert f"### {title}" in text or title in text
    assert "predicted" not in text and (only or (tmp_path / "TUNING.txt").exists())
