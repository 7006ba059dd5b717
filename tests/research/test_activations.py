"""Activations on disk: what is written comes back, whatever happens in between, and is plain NumPy's."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

from hypothesis import given, settings
from hypothesis import strategies as st
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gptoss_jax.research.activations import Folder, layout, read, save

rng = np.random.default_rng(0)
ROWS = rng.standard_normal((7, 2, 3)).astype(np.float32)


def test_rows_come_back_as_plain_files(tmp_path):
    with Folder(tmp_path / "a") as folder:
        one = folder.request("first")
        one.write("layers.0.residual_post", 5, ROWS[:3])
        one.write("layers.0.residual_post", 8, jnp.asarray(ROWS[3:]))
        folder.request(1).write("layers.0.moe.experts", 0, np.array([[1, 2]], np.int32))
        folder.write("norm", 0, ROWS[:0])
        kept = read(tmp_path / "a")  # while it writes
        assert np.array_equal(kept["first"]["layers.0.residual_post"], ROWS)
    assert list(kept) == ["0", "1", "first"] and dict(kept["first"].starts) == {"layers.0.residual_post": 5}
    assert kept["0"]["norm"].shape == (0, 2, 3) and len(kept["1"]) == 1
    plain = np.load(tmp_path / "a/first/layers.0.residual_post.npy")
    assert plain.dtype == np.float32 and np.array_equal(plain, ROWS)
    mapped = kept["first"]["layers.0.residual_post"]
    assert isinstance(mapped, np.memmap) and not mapped.flags.writeable
    with pytest.raises(KeyError, match=r"'first' has no 'norm'; it has layers\.0\.residual_post"):
        kept["first"]["norm"]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "y"]), st.integers(0, 4), st.booleans()), max_size=25),
    st.sampled_from(["float32", "int32", "bool", ">f8", "float16", "complex64"]),
)
def test_what_was_written_is_what_is_read(tmp_path_factory, writes, dtype):
    path = tmp_path_factory.mktemp("any")
    wanted: dict = {}
    folder = Folder(path)
    for key, name, count, again in writes:
        if again:  # another process, later
            folder.close()
            folder = Folder(path)
        rows = rng.integers(0, 2, (count, 3)).astype(dtype)
        have = wanted.setdefault((key, name), (count, []))
        folder.request(key).write(name, have[0] + sum(map(len, have[1])), rows)
        have[1].append(rows)
    folder.close()
    got = {(key, name): (one.starts[name], np.array(one[name])) for key, one in read(path).items() for name in one}
    assert got.keys() == wanted.keys()
    for at, (start, rows) in wanted.items():
        assert got[at][0] == start and got[at][1].dtype == dtype and np.array_equal(got[at][1], np.concatenate(rows))


def test_few_files_are_open_however_many_are_written(tmp_path):
    opened = lambda: len(os.listdir("/proc/self/fd"))
    before = opened()
    with Folder(tmp_path) as folder:
        for start in range(2):
            for key in range(5):
                for name in range(50):
                    folder.request(key).write(f"layers.{name}.x", start, np.full((1, 2), key * name))
        assert opened() - before <= 130
        for key in range(5):
            folder.request(key).close()
        assert opened() - before <= 2 and not folder._arrays, "ended requests leave nothing behind"
        folder.request(3).write("layers.7.x", 2, np.full((1, 2), 21))
    assert opened() == before
    assert np.array_equal(read(tmp_path)["3"]["layers.7.x"], np.full((3, 2), 21))


def test_threads_write_side_by_side(tmp_path):
    with Folder(tmp_path) as folder:

        def run(key):
            for start in range(60):
                folder.request(key).write("x", start, np.full((1, 4), start))

        threads = [threading.Thread(target=run, args=(key,)) for key in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for one in read(tmp_path).values():
        assert np.array_equal(one["x"][:, 0], np.arange(60))


KILLED = """
import numpy as np, sys
from gptoss_jax.research.activations import Folder
folder = Folder(sys.argv[1])
for start in range(10**9):
    folder.write("x", start, np.full((1, 1000), start))
"""


def test_a_killed_process_leaves_whole_files_and_another_goes_on(tmp_path):
    file = tmp_path / "0/x.npy"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    try:
        limit = time.monotonic() + 60
        while not (file.exists() and file.stat().st_size > 500_000):
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.01)
        with pytest.raises(ValueError, match="a folder must have one writer; another Folder writes to"):
            Folder(tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = np.load(file)
    assert len(found) > 50 and np.array_equal(found[:, -1], np.arange(len(found)))
    with Folder(tmp_path) as folder:
        folder.write("x", len(found), np.full((1, 1000), len(found)))
    assert np.array_equal(np.load(file)[:, 0], np.arange(len(found) + 1))


@pytest.mark.parametrize("fails_at", range(6))
def test_a_full_disk_leaves_what_was_written_and_the_same_rows_may_come_again(tmp_path, monkeypatch, fails_at):
    with Folder(tmp_path) as folder:
        folder.write("x", 0, ROWS[:2])
        real, calls = os.pwrite, []

        def pwrite(descriptor, data, at):
            calls.append(at)
            if len(calls) == fails_at + 1:
                real(descriptor, data[: len(data) // 2], at)
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, data, at)

        monkeypatch.setattr(os, "pwrite", pwrite)
        failed = 0
        for name, start, rows in (("x", 2, ROWS[2:]), ("y", 4, ROWS)):
            try:
                folder.write(name, start, rows)
            except OSError as error:
                failed += 1
                assert error.errno == errno.ENOSPC and "No space left" in str(error) and "make room" in str(error)
                assert name == "y" or fails_at == 1 or np.array_equal(read(tmp_path)["0"]["x"], ROWS[:2])
                folder.write(name, start, rows)
        assert failed == (len(calls) > fails_at)
    kept = read(tmp_path)["0"]
    assert np.array_equal(kept["x"], ROWS) and np.array_equal(kept["y"], ROWS) and kept.starts == {"x": 0, "y": 4}


def test_a_line_that_was_cut_off_names_nothing(tmp_path):
    with Folder(tmp_path) as folder:
        folder.write("x", 3, ROWS)
    with open(tmp_path / "0" / layout.STARTS, "ab") as file:
        file.write(b'{"name": "y", "st')
    assert list(read(tmp_path)["0"]) == ["x"]
    with Folder(tmp_path) as folder:
        folder.write("y", 1, ROWS)
    assert dict(read(tmp_path)["0"].starts) == {"x": 3, "y": 1}


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", ".hidden", "a\\b", "a\0b", "a\n", "x" * 201, "é" * 101, " a", "a.", None, 3, b"x", "\ud800"]
)
def test_names_that_are_no_file_s_are_refused(tmp_path, name):
    with Folder(tmp_path / "a") as folder:
        with pytest.raises(ValueError, match=r"a name must be a file's name: .*; got .*; pass such a one\."):
            folder.write(name, 0, ROWS)
        if not isinstance(name, int):
            with pytest.raises(ValueError, match=r"a request's key must be a file's name"):
                folder.request(name)
        with pytest.raises(ValueError, match=r"a name must be a file's name"):
            save(tmp_path / "a.npz", {name: ROWS})
    assert not read(tmp_path / "a") and not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize(
    "start, array, message",
    [
        (1, ROWS, "has tokens 0 to 2, and the next row is that of 2; got start 1; write rows in their order, each once"),
        (3, ROWS, "got start 3"),
        (2, ROWS.astype(np.float64), r"has rows of float32\(2, 3\); got float64\(2, 3\); write the same kind"),
        (2, ROWS[:, :1], r"has rows of float32\(2, 3\); got float32\(1, 3\)"),
        (2, 1.0, "must be an array .*; got one number"),
        (2, [[1], [2, 3]], "must be an array"),
        (2, np.array(["a"]), "must hold numbers that NumPy's files have a name for; got '<U1'"),
        (2, np.array([None]), "must hold numbers"),
        (2, np.ma.array(ROWS, mask=ROWS > 0), "must be an array without a mask, .* got a masked one"),
        (2, ROWS.astype(ml_dtypes.bfloat16), "must hold numbers .*; got 'bfloat16'; pass float32"),
        (-1, ROWS, "start must be a whole number of tokens from 0 on; got -1"),
        (True, ROWS, "start must be a whole number"),
        (2.0, ROWS, "start must be a whole number"),
        (10**30, ROWS, "start must be a whole number"),
    ],
)
def test_rows_that_do_not_belong_are_refused_and_change_nothing(tmp_path, start, array, message):
    with Folder(tmp_path) as folder:
        folder.write("x", 0, ROWS[:2])
        with pytest.raises(ValueError, match=message):
            folder.write("x", start, array)
        folder.write("x", 2, ROWS[2:])
    assert np.array_equal(read(tmp_path)["0"]["x"], ROWS)


def test_folders_that_are_none(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("mine")
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / layout.MARK).write_text('{"format": "gptoss-jax activations", "version": 2}')
    for path in ("other", "other/file"):
        with pytest.raises(ValueError, match="path must be a new folder, an empty one or one of activations; got"):
            Folder(tmp_path / path)
    for opened in (Folder, read):
        with pytest.raises(ValueError, match="this version has written; got .*'version': 2"):
            opened(tmp_path / "newer")
        with pytest.raises(ValueError, match="path must name a file or a folder; got"):
            opened(None)
    with pytest.raises(ValueError, match="path must be a folder of activations"):
        read(tmp_path / "absent")
    assert (tmp_path / "other/file").read_text() == "mine"


def test_files_that_were_removed_are_not_written_to_nowhere(tmp_path):
    with Folder(tmp_path) as folder:
        folder.write("x", 0, ROWS)
        (tmp_path / "0/x.npy").unlink()
        with pytest.raises(FileNotFoundError, match=r"x of request 0 must be written to .* was removed"):
            folder.write("x", 7, ROWS)


@pytest.mark.parametrize("key", [True, 10**5000, 1.0, -(2**70)], ids=["bool", "huge", "float", "low"])
def test_keys_that_are_no_number_of_a_request(tmp_path, key):
    with Folder(tmp_path) as folder, pytest.raises(ValueError, match="a request's key must be a file's name"):
        folder.request(key)


def test_one_writer_at_a_time_and_none_when_it_is_closed(tmp_path):
    folder = Folder(tmp_path)
    with pytest.raises(ValueError, match="one writer"):
        Folder(tmp_path)
    sink = folder.request("a")
    folder.close()
    folder.close()
    with pytest.raises(ValueError, match=r"a folder must be open; that of .* is closed; make another Folder of its path\."):
        sink.write("x", 0, ROWS)
    Folder(tmp_path).close()
    assert repr(folder) == f"Folder({str(tmp_path)!r}, closed)"


def test_damaged_files_are_named(tmp_path):
    with Folder(tmp_path) as folder:
        folder.write("x", 0, ROWS)
    os.truncate(tmp_path / "0/x.npy", 200)
    with pytest.raises(ValueError, match=r"x\.npy' must be a whole \.npy file"):
        read(tmp_path)["0"]["x"]
    with Folder(tmp_path) as folder, pytest.raises(ValueError, match=r"x\.npy' must be a whole \.npy file"):
        folder.write("x", 7, ROWS)
    (tmp_path / "0" / layout.STARTS).write_text('{"name": "../x", "start": 0}\n')
    with pytest.raises(ValueError, match=r"starts\.jsonl' must have a name and a start in each line"):
        list(read(tmp_path)["0"])
