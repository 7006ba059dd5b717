"""A batch job in parts, each done by a process of its own: together they are the job of one process alone, or nothing."""

import json

from absl import flags
from fake_llm import run_job
import pytest

from gptoss_jax.batch import merge, shards
from gptoss_jax.batch.shards import Shard

COUNT = 3


@pytest.fixture
def given(tmp_path):
    path = tmp_path / "requests.jsonl"
    lines = [json.dumps({"id": f"r{i % 20}", "prompt": f"question {i}"}) if i % 5 else ["{bad", "", "  "][i % 3] for i in range(26)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(params=["", ".gz"])
def whole(given, tmp_path, request):
    """What one process writes."""
    path = tmp_path / f"whole.jsonl{request.param}"
    assert run_job(given, path)
    return path


@pytest.fixture
def output(given, whole, tmp_path):
    """The job in parts, all finished."""
    path = tmp_path / whole.name.replace("whole", "out[1]")
    for index in (1, 0, 2):
        assert run_job(given, path, shard=Shard(index, COUNT))
    return path


def run_merge(output, *arguments: str) -> None:
    told = flags.FlagValues()
    merge.define_flags(told)
    told(["merge", f"--output={output}", *arguments])
    merge.main([], told)


def test_shards_together_are_what_one_process_writes(whole, output, capsys):
    run_merge(output)
    assert output.read_bytes() == whole.read_bytes()
    assert "results" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is there already"):
        run_merge(output)
    run_merge(output, "--overwrite")
    assert output.read_bytes() == whole.read_bytes()


def test_a_shards_name_keeps_the_ending(output):
    first = Shard(0, COUNT).path(output)
    assert first.name.startswith("out[1].jsonl.shard-00000-of-00003") and first.suffix == (
        output.suffix if output.suffix == ".gz" else first.suffix
    )
    assert Shard().path(output) == output


def test_a_missing_shard_is_named(output):
    Shard(1, COUNT).path(output).unlink()
    with pytest.raises(SystemExit, match="all 3 shards must be finished.*number 1 is missing"):
        run_merge(output)
    assert not output.exists()
    shards.partial(Shard(1, COUNT).path(output)).touch()
    with pytest.raises(SystemExit, match="number 1 is missing.*number 1 is begun"):
        run_merge(output)


def test_shards_of_different_jobs_are_refused(given, output):
    path = Shard(2, COUNT).path(output)
    path.unlink()
    assert run_job(given, output, shard=Shard(2, COUNT), seed=5)
    with pytest.raises(SystemExit, match="of one job.*other flags"):
        run_merge(output)
    path.unlink()
    given.write_text(given.read_text().replace("question 6", "Question 6"))
    assert run_job(given, output, shard=Shard(2, COUNT))
    with pytest.raises(SystemExit, match="of one job"):
        run_merge(output)
    assert not output.exists()


def test_different_numbers_of_shards_are_refused(given, output):
    assert run_job(given, output, shard=Shard(0, 2))
    with pytest.raises(SystemExit, match="found those of 2 and of 3"):
        run_merge(output)


def test_no_shards_at_all(tmp_path):
    with pytest.raises(SystemExit, match="found those of none"):
        run_merge(tmp_path / "out.jsonl")


@pytest.mark.parametrize("whole", [""], indirect=True)
def test_results_that_were_lost_or_added_are_noticed(output):
    path = Shard(1, COUNT).path(output)
    lines = path.read_bytes().splitlines(keepends=True)
    for changed in (lines[:-1], [*lines, lines[-1]], [*lines[:-1], lines[-1][:-1]], lines[1:], []):
        path.write_bytes(b"".join(changed))
        with pytest.raises(SystemExit, match="must have one result|must begin with a line"):
            run_merge(output)
        assert not output.exists()


def test_a_file_under_another_shards_name_is_noticed(output):
    Shard(0, COUNT).path(output).replace(Shard(1, COUNT).path(output))
    Shard(0, COUNT).path(output).write_bytes(Shard(1, COUNT).path(output).read_bytes())
    with pytest.raises(SystemExit, match="a line about shard 1"):
        run_merge(output)


def test_more_shards_than_requests(tmp_path):
    given, output, whole = tmp_path / "requests.jsonl", tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    given.write_text('{"id": 1, "prompt": "x"}\n')
    assert run_job(given, whole)
    for index in range(COUNT):
        assert run_job(given, output, shard=Shard(index, COUNT))
    run_merge(output)
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    "environment, wanted",
    [
        ({}, None),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, Shard(3, 8)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, Shard(1, 2)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, Shard(1, 2)),
        ({"SLURM_PROCID": "3"}, None),
    ],
)
def test_launchers_say_which_shard_a_process_is(environment, wanted):
    found = shards.from_launcher(environment)
    assert (found and found[0]) == wanted


@pytest.mark.parametrize("index, count", [(3, 3), (-1, 3), (0, 0)])
def test_shards_that_are_none(index, count):
    with pytest.raises(ValueError, match="shard_index must lie in"):
        Shard(index, count)
