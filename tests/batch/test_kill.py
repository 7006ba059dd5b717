"""A batch job that is killed again and again: nothing is lost, nothing is done twice, and the output is that of a job left alone.

The processes are forked from a server that has imported everything, so that a start takes milliseconds.
"""

import errno
import json
import multiprocessing
import os
from pathlib import Path
import random
import signal
import sys
import threading
import time

import fake_llm
import pytest

from gptoss_jax.batch.draining import UNFINISHED

KILLS = 50
SECONDS = 0.001  # an answer


@pytest.fixture(scope="module")
def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "fake_llm"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server has no path but this
        process = context.Process(target=time.time)
        process.start()
        process.join()
    return context


@pytest.fixture
def given(tmp_path) -> Path:
    path = tmp_path / "requests.jsonl"
    lines = [json.dumps({"id": f"r{i}", "prompt": f"question {i}"}) if i % 7 else "{bad" for i in range(400)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def whole(given, tmp_path) -> bytes:
    """What an uninterrupted job writes."""
    output = tmp_path / "whole.jsonl"
    assert fake_llm.run_job(given, output)
    return output.read_bytes()


def start(server, given: Path, output: Path, seconds: float = SECONDS, *more):
    process = server.Process(target=fake_llm.run_and_exit, args=(str(given), str(output), seconds, *more))
    process.start()
    return process


def begun(journal: Path) -> None:
    """Waits for the first results."""
    deadline = time.monotonic() + 30
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
        assert time.monotonic() < deadline, "nothing was done in 30 seconds"
        time.sleep(0.001)


@pytest.mark.thorough
def test_fifty_kills_at_random_moments_change_nothing(server, given, whole, tmp_path):
    rng, output, journal = random.Random(50), tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    kills, finished, redone = 0, 0, []
    while kills < KILLS or not finished:
        before = journal.read_bytes() if journal.exists() else b""
        process = start(server, given, output)
        if kills < KILLS:
            process.join(rng.uniform(0, 0.15))
        else:
            process.join()
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0
        if output.exists():
            assert output.read_bytes() == whole
            journal.unlink(missing_ok=True)  # killed between writing the one and removing the other
            output.unlink()
            finished += 1
        elif journal.exists():
            after = journal.read_bytes()
            kept = before[: before.rfind(b"\n") + 1]
            assert after.startswith(kept)  # what was done was not done again
            redone.append(len(after) - len(kept))
    assert any(redone), "the kills left no job in the middle"
    assert not list(tmp_path.glob("*.tmp"))  # what was killed while it wrote the output left some, the next job removed them


@pytest.mark.thorough
def test_a_torn_journal_loses_what_is_torn_and_no_more(given, whole, tmp_path, monkeypatch):
    output, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    with monkeypatch.context() as patch:
        patch.setattr("gptoss_jax.batch.files.written_whole", stop_here)
        with pytest.raises(InterruptedError):
            fake_llm.run_job(given, output)
    complete = journal.read_bytes()
    rng = random.Random(1)
    cuts = [0, 1, 30, complete.index(b"\n"), complete.index(b"\n") + 1, *(rng.randrange(len(complete)) for _ in range(20))]
    for cut in cuts:
        for tail in (b"", b"\0" * 700, b"7 0 1 1 0badcafe {}\n"):
            if tail and cut <= complete.index(b"\n"):
                continue  # the head is written alone
            journal.write_bytes(complete[:cut] + tail)
            assert fake_llm.run_job(given, output)
            assert output.read_bytes() == whole and not journal.exists()
            output.unlink()


def stop_here(path, **_):
    raise InterruptedError


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_lets_what_runs_end_and_the_job_go_on(server, given, whole, tmp_path, number):
    output, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    process = start(server, given, output, 0.005)
    begun(journal)
    os.kill(process.pid, number)
    process.join(20)
    assert process.exitcode == UNFINISHED and not output.exists()
    assert journal.read_bytes().endswith(b"\n")
    assert fake_llm.run_job(given, output) and output.read_bytes() == whole


def test_what_takes_too_long_after_a_signal_is_given_up(tmp_path):
    given, output = tmp_path / "requests.jsonl", tmp_path / "out.jsonl"
    given.write_text("".join(json.dumps({"id": str(i), "prompt": "long"}) + "\n" for i in range(3)))
    llm = fake_llm.FakeLLM(slots=1, seconds=60)
    began = time.monotonic()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert not fake_llm.run_job(given, output, llm, drain=0.2)
    assert time.monotonic() - began < 10 and llm.closed and not output.exists()


def test_a_second_signal_ends_it_at_once(server, given, tmp_path):
    output, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    process = start(server, given, output, 0.5)
    begun(journal)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.05)
    done = journal.read_bytes().count(b"\n")
    os.kill(process.pid, signal.SIGTERM)
    process.join(20)
    assert process.exitcode == UNFINISHED and journal.read_bytes().count(b"\n") < done + 4  # eight run, and one signal lets all of them end


def test_one_job_at_a_time(server, given, tmp_path):
    output, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    process = start(server, given, output, 0.5)
    begun(journal)
    with pytest.raises(ValueError, match="one job at a time"):
        fake_llm.run_job(given, output)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_full_disks_lose_nothing(server, given, whole, tmp_path):
    """First there is no room for the journal, then none for the output beside it."""
    output, journal = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    for most in (0, 100, 5_000, 5_001, 20_000):
        process = start(server, given, output, 0, most)
        process.join(20)
        assert process.exitcode == 1 and not output.exists()
        assert journal.stat().st_size <= most and (most < 1_000 or journal.read_bytes().endswith(b"\n"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="must be written, and that failed.*No space left"):
            fake_llm.run_job(given, output)
    assert not output.exists() and not list(tmp_path.glob("*.tmp"))
    assert fake_llm.run_job(given, output) and output.read_bytes() == whole


def full(descriptor):
    if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".tmp"):
        raise OSError(errno.ENOSPC, "No space left on device")
