"""Files of a batch job: compressed or not the same lines, in bounded memory, written whole or not at all, over nothing of others."""

import fcntl
import gzip
import os
from pathlib import Path
import random
import stat
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
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
    for damaged in (b"", whole[:-1], whole[: len(whole) // 2], b"no such thing", whole[:1000] + bytes(100) + whole[1100:]):
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


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_every_cut_is_refused(tmp_path, suffix):
    """But those between two frames, where a whole file ends."""
    path = tmp_path / f"a{suffix}"
    compress = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    frames = [compress(part) for part in (b"one\ntwo\n" * 5, random.Random(0).randbytes(300), b"")]
    whole, ends = b"".join(frames), {sum(map(len, frames[:n])) for n in (1, 2, 3)}
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        if cut in ends:
            source.survey(path)
        else:
            with pytest.raises(ValueError, match=f"must be a whole {suffix} file"):
                source.survey(path)


@pytest.mark.parametrize("times", [100, pytest.param(2_000, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_any_damage_is_refused_or_harmless(tmp_path, suffix, times):
    rng, path = random.Random(times), tmp_path / f"a{suffix}"
    compress = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    whole = b"".join(compress(part) for part in (b"one\ntwo\n" * 500, rng.randbytes(300), bytes(300_000)))
    for _ in range(times):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(damaged))
            damaged[place : place + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
        path.write_bytes(damaged)
        try:
            assert source.survey(path).size <= 400_000
        except ValueError as error:
            assert "must be a whole" in str(error)


parts = st.lists(
    st.binary(max_size=50) | st.builds(lambda byte, n: bytes([byte]) * n, st.integers(0, 255), st.integers(0, 400_000)), max_size=4
)


@settings(max_examples=60, deadline=None)
@given(parts, st.sampled_from([1, 3, 19]), st.booleans(), st.booleans(), st.integers(0, 16))
def test_frames_of_all_kinds_are_unpacked(tmp_path_factory, contents, level, checksum, sized, skipped):
    """Raw, repeated and compressed blocks; with and without sizes and checksums; with what is to be skipped between them."""
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=checksum, write_content_size=sized)
    path = tmp_path_factory.mktemp("frames") / "a.zst"
    skip = (0x184D2A50 + skipped % 16).to_bytes(4, "little") + (skipped * 3).to_bytes(4, "little") + bytes(skipped * 3)
    path.write_bytes(skip + b"".join(compressor.compress(part) + skip for part in contents))
    assert b"".join(files.lines(path, 1 << 16)) == b"".join(contents)


def plainly(data: bytes, most: int) -> list:
    """The records of an input, by splitting the whole of it."""
    found = []
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        if line.strip():
            found.append((len(found), number, None if len(line.removesuffix(b"\n")) > most else line))
    return found


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.sampled_from([b"a", b" ", b"\n", b"aaaa", b"    ", b"\0"]), max_size=30).map(b"".join),
    st.integers(1, 6),
    st.sampled_from(["", ".gz"]),
)
def test_lines_that_are_too_long_are_passed_over(tmp_path_factory, data, most, suffix):
    path = tmp_path_factory.mktemp("lines") / f"a{suffix}"
    path.write_bytes(gzip.compress(data) if suffix else data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "_PIECE", 2)
        told = source.survey(path, most)
    records = list(source.records(told))
    assert records == plainly(data, most) and told.records == len(records) and told.size == len(data)


@every_suffix
def test_a_line_without_end_takes_no_memory(tmp_path, suffix):
    """A bomb among them: 40 MB in 1 kB."""
    path = tmp_path / f"a{suffix}"
    with files.written_whole(path) as file:
        for part in (b"first\n", *[bytes(1 << 20)] * 40, b"\n", *[b" " * (1 << 20)] * 10, b"\nlast"):
            file.write(part)
    tracemalloc.start()
    told = source.survey(path, 100_000)
    records = [(place, number, line) for place, number, line in source.records(told)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert records == [(0, 1, b"first\n"), (1, 2, None), (2, 4, b"last")] and told.records == 3
    assert peak < 4_000_000


def test_nothing_of_others_is_written_over(tmp_path):
    """Neither a file of the name that a temporary one could have, nor what a link of such a name leads to."""
    path, victim = tmp_path / "a.jsonl", tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "a.jsonl.tmp").symlink_to(victim)
    left = [tmp_path / f".a.jsonl.{i:016x}.tmp" for i in range(4)]
    left[0].symlink_to(victim)
    left[1].write_text("left over")
    left[2].mkdir()
    left[3].write_text("held")
    (tmp_path / ".a.jsonl.notes.tmp").write_text("notes")
    with open(left[3], "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write(path)
        assert {one.name for one in tmp_path.iterdir()} == {
            *("a.jsonl", "victim", "a.jsonl.tmp", ".a.jsonl.notes.tmp"), *(left[i].name for i in (0, 2, 3))
        }  # fmt: skip
    assert victim.read_text() == "precious" and not path.is_symlink() and list(files.lines(path)) == LINES
    write(path)
    assert not left[3].exists() and left[0].is_symlink()


def test_two_that_write_at_a_time_do_not_meet(tmp_path):
    path = tmp_path / "a.jsonl"
    with files.written_whole(path) as one:
        one.write(b"one")
        with files.written_whole(path) as two:
            two.write(b"two")
        assert path.read_bytes() == b"two"
    assert path.read_bytes() == b"one" and list(tmp_path.iterdir()) == [path]


def test_links_are_written_through(tmp_path):
    there, away = tmp_path / "there", tmp_path / "away"
    there.mkdir(), away.mkdir()
    (away / "old").write_text("old")
    links = {name: there / name for name in ("to-old", "to-new", "to-link", "relative")}
    links["to-old"].symlink_to(away / "old")
    links["to-new"].symlink_to(away / "new")
    links["to-link"].symlink_to(links["to-new"])
    links["relative"].symlink_to("../away/relative")
    for name, link in links.items():
        with files.written_whole(link) as file:
            file.write(name.encode())
    assert all(link.is_symlink() for link in links.values())
    assert {path.name: path.read_text() for path in away.iterdir()} == {"old": "to-old", "new": "to-link", "relative": "relative"}


@pytest.mark.parametrize("kind", ["circle", "nowhere", "device", "pipe", "folder"])
def test_what_cannot_be_replaced_is_refused(tmp_path, kind):
    path = tmp_path / "a.jsonl"
    targets = {
        "circle": path,
        "nowhere": tmp_path / "no" / "such",
        "device": Path("/dev/null"),
        "pipe": tmp_path / "pipe",
        "folder": tmp_path,
    }
    os.mkfifo(tmp_path / "pipe")
    path.symlink_to(targets[kind])
    before = os.lstat("/dev/null")
    with pytest.raises(ValueError, match="must be"), files.written_whole(path):
        pass
    assert path.is_symlink() and os.lstat("/dev/null") == before and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_modes(tmp_path, umask):
    """A new file has what the umask leaves, one that was there keeps its own, and a private one is its owner's."""
    path, mode = tmp_path / "a.jsonl", lambda: stat.S_IMODE(path.stat().st_mode)
    before = os.umask(umask)
    try:
        write(path)
        assert mode() == 0o666 & ~umask
        path.chmod(0o640)
        write(path)
        assert mode() == 0o640
        with files.written_whole(path, private=True) as file:
            assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
        assert mode() == 0o600
    finally:
        os.umask(before)


def test_names_may_be_as_long_as_they_can_be(tmp_path):
    for name in ("x" * 255, "\N{SNOWMAN}" * 85):
        write(tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 2
