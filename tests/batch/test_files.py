"""Files of a batch job: compressed or not the same lines, written whole or not at all."""

import gzip

import pytest
import zstandard

from gptoss_jax.batch import files, source

LINES = [f"line {i} {'x' * (i % 50)}\n".encode() for i in range(20_000)]
every_suffix = pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])


def write(path):
    with files.written_whole(path) as file:
        for line in LINES:
            file.write(line)


@every_suffix
def test_what_is_written_is_read_and_the_same_every_time(tmp_path, suffix):
    paths = [tmp_path / f"{name}.jsonl{suffix}" for name in "ab"]
    for path in paths:
        write(path)
        assert list(files.lines(path)) == LINES
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if suffix:
        assert paths[0].stat().st_size < sum(map(len, LINES)) / 4


def test_files_of_several_frames_are_read_to_the_end(tmp_path):
    for suffix, compress in ((".gz", gzip.compress), (".zst", zstandard.compress)):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(b"".join(compress(part) for part in (b"one\ntw", b"", b"o\nthree")))
        assert list(files.lines(path)) == [b"one\n", b"two\n", b"three"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write(path)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"no such thing", whole[:1000] + bytes(100) + whole[1100:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="must be a whole"):
            list(files.lines(path))


@every_suffix
def test_an_error_leaves_what_was_there(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), files.written_whole(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_records_are_lines_that_are_not_blank(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n  \t\r\ntwo\n\nthree")
    given = source.survey(path)
    assert given.records == 3 and given.size == path.stat().st_size
    assert [(place, number, line.strip()) for place, number, line in source.records(given)] == [
        (0, 1, b"one"),
        (1, 4, b"two"),
        (2, 6, b"three"),
    ]
    other = tmp_path / "b.jsonl.gz"
    other.write_bytes(gzip.compress(path.read_bytes()))
    assert source.survey(other).identity == given.identity  # of what is in it
    path.write_bytes(path.read_bytes().replace(b"two", b"TWO"))
    assert source.survey(path).identity != given.identity


def test_ids_are_seen_once():
    ids, names = source.Ids(), [f"id {i}" for i in range(20_000)]
    assert all(ids.add(name) for name in names)
    assert not any(ids.add(name) for name in names)
    assert ids.add("\ud800")
