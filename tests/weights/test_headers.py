"""Headers of safetensors files and indexes of shards: what they may say, and where they may lead."""

import json
import os
from pathlib import Path
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gptoss_jax.weights import headers, loading, safetensors

INDEX = "model.safetensors.index.json"
F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def written(path, header, values=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + values)
    return path


@pytest.mark.parametrize(
    "header, length",
    [
        ({"a": F32}, 0),
        ({"a": F32}, 1 << 40),
        ({"a": F32}, (1 << 64) - 1),
        (b"[1]", None),
        (b"[" * 5000, None),
        (
            b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
            None,
        ),
        (b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', None),
        ({"a": F32 | {"dtype": "F33"}}, None),
        ({"a": F32 | {"dtype": ["F32"]}}, None),
        ({"a": F32 | {"shape": [-2]}}, None),
        ({"a": F32 | {"shape": [2.0]}}, None),
        ({"a": F32 | {"shape": [1 << 32, 1 << 32, 1 << 32]}}, None),
        ({"a": F32 | {"shape": [10**30]}}, None),
        ({"a": F32 | {"shape": [1] * 100}}, None),
        ({"a": F32 | {"data_offsets": [0, 9]}}, None),
        ({"a": F32 | {"data_offsets": [8, 0]}}, None),
        ({"a": F32 | {"data_offsets": [4, 12]}}, None),
        ({"a": F32 | {"data_offsets": [0]}}, None),
        ({"a": F32, "b": F32}, None),
        ({"a": F32 | {"shape": [1], "data_offsets": [0, 4]}, "b": F32 | {"shape": [1], "data_offsets": [2, 6]}}, None),
        ({"a": F32 | {"shape": [1], "data_offsets": [0, 4]}}, None),
        ({"a": {"dtype": "F32", "shape": [2]}}, None),
        ({"a": 5}, None),
        ({"a": F32, "__metadata__": {"x": 5}}, None),
        ({"a": F32, "__metadata__": "x"}, None),
    ],
)
def test_headers_that_cannot_be_are_refused(tmp_path, header, length):
    path = written(tmp_path / "model.safetensors", header, length=length)
    with pytest.raises(ValueError) as caught:
        safetensors.scan(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 900


def test_headers_are_read_as_the_library_writes_them(tmp_path, tiny):
    save_file(
        {"b": np.zeros((3, 2), np.float16), "a": np.zeros((0, 5), np.int8), "c": np.zeros((), np.bool_)},
        tmp_path / "x.safetensors",
        {"k": "v"},
    )
    found = {each.name: (each.shape, each.dtype, each.nbytes) for each in headers.header(tmp_path / "x.safetensors")}
    assert found == {"b": ((3, 2), "F16", 12), "a": ((0, 5), "I8", 0), "c": ((), "BOOL", 1)}
    for file in tiny.glob("*.safetensors"):
        want = {name: (value.shape, value.nbytes) for name, value in load_file(file).items()}
        assert {each.name: (each.shape, each.nbytes) for each in headers.header(file)} == want


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ValueError, match="model.safetensors must be a file that can be read; got: 'Is a directory'"):
        safetensors.scan(tmp_path)
    (tmp_path / "model.safetensors").rmdir()
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors must be a file; got a pipe"):
        safetensors.scan(tmp_path)


@pytest.fixture
def copy(tiny, tmp_path):
    return Path(shutil.copytree(tiny, tmp_path / "home" / "tiny", ignore=shutil.ignore_patterns("original", "*.npz")))


def renamed(directory, name, to):
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"] = {key: to if file == name else file for key, file in index["weight_map"].items()}
    (directory / INDEX).write_text(json.dumps(index))


SHARD = "model-00001-of-00002.safetensors"


@pytest.mark.parametrize("name", ["../SHARD", "/SHARD", "a/../../SHARD", "", ".", "..", "..\\SHARD", "a\0b"])
def test_an_index_names_files_inside_its_directory(copy, name):
    moved = copy.parent / SHARD
    (copy / SHARD).rename(moved)
    renamed(copy, SHARD, name.replace("/SHARD", f"/{SHARD}") if name.startswith(("..", "a")) else name.replace("/SHARD", str(moved)))
    with pytest.raises(ValueError, match=f"{INDEX} must name files inside its own directory; it names"):
        safetensors.scan(copy)


def test_a_link_that_leads_outside_is_refused_and_one_within_is_not(copy):
    moved = copy.parent / SHARD
    (copy / SHARD).rename(moved)
    (copy / SHARD).symlink_to(moved)
    with pytest.raises(ValueError, match=f"{INDEX} must name files inside its own directory; '{SHARD}' is a link to {moved}; put the file"):
        safetensors.scan(copy)
    (copy / SHARD).unlink()
    (copy / "parts").mkdir()
    moved.rename(copy / "parts" / "second")
    (copy / SHARD).symlink_to("parts/second")
    assert len(safetensors.scan(copy)) > 60
    renamed(copy, SHARD, "parts/second")
    assert len(safetensors.scan(copy)) > 60
    (copy / "parts").rename(copy.parent / "parts")
    (copy / "parts").symlink_to("../parts")
    with pytest.raises(ValueError, match="'parts/second' is a link to"):
        safetensors.scan(copy)
    (copy / "parts").unlink()
    (copy / "parts").symlink_to("parts")
    with pytest.raises((ValueError, FileNotFoundError), match=INDEX):
        safetensors.scan(copy)


def test_the_layout_of_the_hubs_cache_is_allowed(copy, tmp_path):
    """snapshots/REVISION/file is a link to ../../blobs/HASH; a directory that is itself a link counts as where it leads."""
    repository = tmp_path / "models--x--y"
    snapshot, blobs = repository / "snapshots" / "0123abcd", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(copy.iterdir())):
        if file.is_file():
            file.rename(blobs / f"{number:040x}")
            (snapshot / file.name).symlink_to(f"../../blobs/{number:040x}")
    assert loading.load(snapshot, experts="packed", progress=False).config.num_hidden_layers == 4
    (tmp_path / "short").symlink_to(snapshot)
    assert len(safetensors.scan(tmp_path / "short")) > 60
    other = tmp_path / "blobs-of-others"
    blobs.rename(other)
    blobs.mkdir()
    for link in snapshot.iterdir():
        target = other / Path(os.readlink(link)).name
        link.unlink()
        link.symlink_to(target)
    with pytest.raises(ValueError, match=f"{INDEX} must name files inside its own directory; .* is a link to {other}"):
        safetensors.scan(snapshot)


def test_long_indexes_are_refused(copy):
    (copy / INDEX).write_text(json.dumps({"weight_map": {f"x{i}": f"file{i}" for i in range(10_001)}}))
    with pytest.raises(ValueError, match="must name at most 10,000 files; got 10,001"):
        safetensors.scan(copy)
    (copy / INDEX).write_bytes(b" " * (16 << 20) + b"{}")
    with pytest.raises(ValueError, match=f"{INDEX} must be JSON of at most 16,777,216 bytes"):
        safetensors.scan(copy)
