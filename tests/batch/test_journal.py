"""The journal of a batch job: what it refuses, what it cuts off, and a disk that is full."""

import errno
import os
from pathlib import Path
import stat

import pytest

from gptoss_jax.batch.journal import Journal, Totals

HEADER = {"input": {"size": 5, "records": 3}, "settings": {"seed": 1}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.jsonl.partial"


def test_results_are_there_again_in_order_with_their_totals(path):
    with Journal(path, HEADER, 3) as journal:
        journal.add(2, b"two \xff", error=False, tokens_in=5, tokens_out=7)
        journal.add(0, b"zero", error=True)
    with Journal(path, HEADER, 3) as journal:
        assert [journal.has(place) for place in range(3)] == [True, False, True] and journal.missing == 1
        assert journal.totals == Totals(2, 1, 5, 7)
        journal.add(1, b"one", error=False)
        assert list(journal.results()) == [b"zero\n", b"one\n", b"two \xff\n"]
        journal.remove()
    assert not path.exists()


def test_a_result_is_written_once(path):
    with Journal(path, HEADER, 3) as journal:
        journal.add(1, b"one", error=False)
        with pytest.raises(ValueError, match="once"):
            journal.add(1, b"one", error=False)


def test_what_follows_something_damaged_is_done_again(path):
    with Journal(path, HEADER, 3) as journal:
        for place in range(3):
            journal.add(place, b"result %d" % place, error=False)
    whole = path.read_bytes()
    for old, new in ((b"result 1", b"resulT 1"), (b"\n1 0 0", b"\n1 1 0"), (b"\n1 ", b"\nx "), (b"\n1 ", b"\n9 "), (b"\n1 ", b"\n0 ")):
        path.write_bytes(whole.replace(old, new))
        with Journal(path, HEADER, 3) as journal:
            assert [journal.has(place) for place in range(3)] == [True, False, False] and journal.cut
            journal.add(2, b"result 2", error=False)
            journal.add(1, b"result 1", error=False)
            assert list(journal.results()) == [b"result 0\n", b"result 1\n", b"result 2\n"]


def test_another_jobs_journal_is_refused_and_left(path):
    Journal(path, HEADER, 3).close()
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"another settings.seed \(1, now 2\)") as caught:
        Journal(path, HEADER | {"settings": {"seed": 2}}, 3)
    assert path.name in str(caught.value) and path.read_bytes() == before
    Journal(path, HEADER, 3).close()  # it is not locked any more


@pytest.mark.parametrize("content", [b"something\nelse\n", b"gptoss-jax batch journal {\n", b"\n", b"some text", b"\xff\xfe\n"])
def test_another_file_is_refused_and_left(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="must be a job's journal"):
        Journal(path, HEADER, 3)
    assert path.read_bytes() == content


def test_one_process_at_a_time(path):
    with Journal(path, HEADER, 3), pytest.raises(ValueError, match="one job at a time"):
        Journal(path, HEADER, 3)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(OSError):
        Journal(tmp_path / "nowhere" / "out.partial", HEADER, 3)


def test_a_full_disk_leaves_what_was_written(path, monkeypatch):
    write = os.write

    def full(descriptor, data):
        if len(data) > 4:
            return write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal(path, HEADER, 3) as journal:
        journal.add(0, b"zero", error=False)
        before = path.read_bytes()
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match=r"No space left.*the 1 in it are safe"):
            journal.add(1, b"one", error=False)
        assert path.read_bytes() == before and not journal.has(1)
        monkeypatch.undo()
        journal.add(1, b"one", error=False)
    with Journal(path, HEADER, 3) as journal:
        assert journal.totals.done == 2 and not journal.cut


def test_a_disk_that_fails_later_is_told_with_the_next_result(path, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    journal = Journal(path, HEADER, 1000)
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        for place in range(1000):
            journal.add(place, b"x", error=False)
            journal._syncing._thread.join(0.01)
    monkeypatch.undo()
    journal.close()


@pytest.mark.parametrize("kind", ["link", "dangling", "circle", "device", "pipe", "folder"])
def test_a_journal_is_a_file_of_its_own(path, kind):
    victim = path.with_name("victim")
    victim.write_text("precious")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link": victim, "dangling": path.with_name("no such"), "circle": path, "device": Path("/dev/null")}[kind])
    with pytest.raises(ValueError, match="must be a file, .* it is a link or the like"):
        Journal(path, HEADER, 3)
    assert victim.read_text() == "precious" and not path.with_name("no such").exists()


def test_a_private_journal_is_its_owners_also_where_it_was_not(path):
    mode = lambda: stat.S_IMODE(path.stat().st_mode)
    with Journal(path, HEADER, 3) as journal:
        journal.add(0, b"zero", error=True)
        assert mode() & 0o600 == 0o600
    path.chmod(0o644)
    with Journal(path, HEADER, 3, private=True) as journal:
        assert mode() == 0o600 and journal.has(0)
    path.unlink()
    with Journal(path, HEADER, 3, private=True):
        assert mode() == 0o600


def test_some_other_file_is_refused_without_being_read(path):
    path.write_bytes(bytes(3_000_000))
    with pytest.raises(ValueError, match="must be a job's journal"):
        Journal(path, HEADER, 3)
    assert path.stat().st_size == 3_000_000
