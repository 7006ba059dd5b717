"""`python -m gptoss_jax.batch` with a stand-in for the model: its flags, its words, its exit status."""

import io
import json
import signal
import stat
import sys

from absl import flags
from fake_llm import FakeLLM
import pytest

from gptoss_jax.batch import __main__ as program


@pytest.fixture
def given(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps({"id": i, "prompt": f"question {i}"}) + "\n" for i in range(9)) + "{bad\n")
    return path


@pytest.fixture
def batch(given, tmp_path, monkeypatch):
    """Runs the program with some flags, on a model that must not be loaded where it is None; returns its exit status."""
    for variable in ("SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(variable, raising=False)

    def run(*arguments: str, llm=None) -> int:
        told = flags.FlagValues()
        program.define_flags(told)
        told(["batch", f"--input={given}", f"--output={tmp_path / 'out.jsonl'}", "--compilation_cache=off", *arguments])
        loaded = []
        monkeypatch.setattr(program, "_llm", lambda *_: loaded.append(llm) or llm)
        status = program.main([], told)
        assert loaded == ([] if llm is None else [llm])
        return status

    return run


def results(tmp_path, name="out.jsonl") -> list[dict]:
    return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]


def test_a_job_and_the_same_command_again(batch, tmp_path, capsys):
    assert batch(llm=FakeLLM()) == 0
    assert "10 of 10 requests, 1 errors" in capsys.readouterr().out
    assert [one["id"] for one in results(tmp_path)] == [*range(9), None]
    assert "at 0" in results(tmp_path)[0]["text"]  # nano's temperature
    assert batch() == 0 and "is there already, nothing is done" in capsys.readouterr().out
    assert batch("--overwrite", "--seed=4", "--temperature=0.5", llm=FakeLLM()) == 0
    assert "at 0.5" in results(tmp_path)[0]["text"]


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device"), ValueError("closed file")])
def test_what_cannot_be_printed_costs_no_job(error, batch, tmp_path, monkeypatch):
    class Broken(io.StringIO):
        def write(self, text):
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Broken())
        assert batch(llm=FakeLLM()) == 0 and batch() == 0
    assert len(results(tmp_path)) == 10


@pytest.mark.parametrize("stderr", [None, object()], ids=["none", "no file"])
def test_without_a_standard_error_there_is_no_bar(stderr, batch, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        assert batch(llm=FakeLLM()) == 0
    assert len(results(tmp_path)) == 10


def test_a_job_that_cannot_begin_leaves_nothing(batch, tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("kernels must be run on a Hopper")

    with monkeypatch.context() as patch:
        patch.setattr(program.compile_cache, "enable", refuse)
        with pytest.raises(SystemExit, match="error: kernels must be run on a Hopper"):
            batch(llm=FakeLLM())
    assert [path.name for path in tmp_path.iterdir()] == ["requests.jsonl"]
    assert batch(llm=FakeLLM()) == 0


class Signalled(FakeLLM):
    """Is asked to end after some answers."""

    def __init__(self, after: int):
        super().__init__(slots=1)
        self.after = after

    def answer(self, task):
        self.after -= 1
        if not self.after:
            signal.raise_signal(signal.SIGTERM)
        return super().answer(task)


def test_a_signal_ends_it_with_75_and_the_same_command_goes_on(batch, tmp_path, capsys):
    assert batch(llm=Signalled(3)) == 75
    assert "stopped: 4 of 10 requests" in capsys.readouterr().out and not (tmp_path / "out.jsonl").exists()
    with pytest.raises(SystemExit, match=r"another settings.seed \(0, now 1\)"):
        batch("--seed=1")
    assert batch(llm=FakeLLM()) == 0
    assert "this run: 6 requests" in capsys.readouterr().out


def test_a_signal_before_anything_runs_ends_it_at_once(batch, tmp_path, monkeypatch):
    monkeypatch.setattr(program.launch, "start", lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as caught:
        batch()
    assert caught.value.code == 75


def test_what_is_complete_needs_no_model(batch, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("gptoss_jax.batch.job.files.written_whole", lambda path, **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            batch(llm=FakeLLM())
    assert batch() == 0 and len(results(tmp_path)) == 10


def test_an_output_beside_a_journal(batch, tmp_path, capsys):
    """What a kill between writing the one and removing the other leaves, and what an unfinished --overwrite leaves."""
    output, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    assert batch(llm=Signalled(3)) == 75
    output.write_text("old\n")
    with pytest.raises(SystemExit, match="pass --overwrite to go on"):
        batch()
    assert batch("--overwrite", llm=FakeLLM()) == 0 and len(results(tmp_path)) == 10
    assert not journal.exists()
    journal.touch()
    assert batch() == 0 and "nothing is done" in capsys.readouterr().out and not journal.exists()


def test_shards(batch, tmp_path, monkeypatch):
    assert batch("--shard_index=1", "--shard_count=2", llm=FakeLLM()) == 0
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert batch(llm=FakeLLM()) == 0
    assert len(results(tmp_path, "out.jsonl.shard-00000-of-00002")) == 1 + 5
    assert len(results(tmp_path, "out.jsonl.shard-00001-of-00002")) == 1 + 5
    assert batch("--shard_count=1", llm=FakeLLM()) == 0 and len(results(tmp_path)) == 10


def test_flags_from_a_file(batch, tmp_path):
    path = tmp_path / "flags"
    path.write_text("--temperature=0.25\n--max_tokens=500\n")
    assert batch(f"--flagfile={path}", llm=FakeLLM()) == 0
    assert "at 0.25" in results(tmp_path)[0]["text"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--input="], "--input must name a file"),
        (["--input=-"], "--input must be a file; - is a stream"),
        (["--output=-"], "--output must be a file; - is a stream"),
        (["--input=/nowhere/at/all"], "No such file"),
        (["--output=/nowhere/at/all"], "in a folder that is there"),
        (["--output=/tmp"], "is a folder"),
        (["--output=/dev/null"], "is a device or a stream"),
        (["--input=/dev/null"], "is a device or a stream"),
        (["--shard_index=1"], "go together"),
        (["--shard_index=2", "--shard_count=2"], "must lie in"),
        (["--distributed", "--mesh=1x2"], "give each a shard"),
        (["--process_id=0"], "give each a shard"),
        (["--mesh=8"], "DATAxMODEL"),
        (["--temperature=-1"], "temperature must be"),
    ],
)
def test_what_cannot_work_is_refused_before_the_model_is_loaded(batch, tmp_path, arguments, words):
    with pytest.raises(SystemExit, match=words) as caught:
        batch(*arguments)
    assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["requests.jsonl"]


def test_a_private_job_and_its_longest_line(batch, tmp_path):
    output = tmp_path / "out.jsonl"
    assert batch("--private", "--max_line_bytes=36", llm=Signalled(3)) == 75
    assert stat.S_IMODE((tmp_path / "out.jsonl.partial").stat().st_mode) == 0o600
    with pytest.raises(SystemExit, match="another settings.max_line_bytes"):
        batch("--private")
    with open(tmp_path / "requests.jsonl", "rb") as file:
        assert {len(line) for line in file} == {len('{"id": 1, "prompt": "question 1"}\n'), 5}
    assert batch("--private", "--max_line_bytes=36", llm=FakeLLM()) == 0 and stat.S_IMODE(output.stat().st_mode) == 0o600
    assert batch("--overwrite", "--max_line_bytes=20", llm=FakeLLM()) == 0 and stat.S_IMODE(output.stat().st_mode) == 0o600
    assert [one["error"]["code"] for one in results(tmp_path)] == ["line_too_long"] * 9 + ["invalid_json"]


def test_an_output_that_is_a_link_is_written_through(batch, tmp_path):
    output, away = tmp_path / "out.jsonl", tmp_path / "away"
    away.mkdir()
    output.symlink_to(away / "results")
    assert batch(llm=FakeLLM()) == 0
    assert output.is_symlink() and [path.name for path in away.iterdir()] == ["results"] and len(results(tmp_path)) == 10


@pytest.mark.parametrize(
    "target, words",
    [
        ("out.jsonl", "leads to itself"),
        ("no/such", "in a folder that is there"),
        ("/dev/null", "a device or a stream"),
        ("out.jsonl.partial", "must be other files than"),
    ],
)
def test_an_output_that_is_a_link_to_what_cannot_be_replaced_is_refused(batch, tmp_path, target, words):
    (tmp_path / "out.jsonl").symlink_to(target)
    with pytest.raises(SystemExit, match=words):
        batch()
    assert {path.name for path in tmp_path.iterdir()} == {"requests.jsonl", "out.jsonl"}


def test_an_output_that_is_the_input_is_refused(batch, given):
    before = given.read_bytes()
    with pytest.raises(SystemExit, match="another file than --input"):
        batch(f"--output={given}", "--overwrite")
    assert given.read_bytes() == before


def test_a_damaged_input_is_refused(batch, tmp_path):
    path = tmp_path / "requests.jsonl.gz"
    path.write_bytes(b"no such thing")
    with pytest.raises(SystemExit, match="must be a whole .gz file"):
        batch(f"--input={path}")


def test_the_model_gets_the_flags(monkeypatch):
    told = flags.FlagValues()
    program.define_flags(told)
    made = {}
    monkeypatch.setattr(program, "load", lambda name, **options: made.update(options) or name)

    class Recorder(FakeLLM):
        def __init__(self, model, **options):
            super().__init__()
            made.update(options, model=model)

    monkeypatch.setattr(program, "LLM", Recorder)
    told(["batch", "--slots=3", "--context=99", "--cache_tokens=1000", "--noprefix_reuse", "--dtype=float32", "--experts=split"])
    told(["batch", "--kernels=off"])
    program._llm(told, None)
    wanted = {"model": "nano", "slots": 3, "context": 99, "chunk": None, "cache_tokens": 1000, "prefix_reuse": False}
    assert made.items() >= (wanted | {"dtype": "float32", "experts": "split", "kernels": "off", "mesh": None}).items()
