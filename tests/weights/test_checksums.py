"""Orbax directories carry checksums: a byte that has changed is refused by the array's name, whatever is made of the array."""

import json
import random
import shutil

import numpy as np
import pytest

from gptoss_jax.config import TINY
from gptoss_jax.parallel import sharding
from gptoss_jax.weights import loading
from gptoss_jax.weights.orbax import chunks, saving, store

WAYS = {
    "packed": {"experts": "packed"},
    "split": {"experts": "split"},
    "float32": {"experts": "stacked", "dtype": "float32"},
    "2x4": {"experts": "packed", "mesh": (2, 4)},
    "1x5": {"experts": "stacked", "mesh": (1, 5)},
}


def load(path, mesh=None, **options):
    return loading.load(path, mesh=mesh and sharding.mesh(*mesh), **{"experts": "packed", "progress": False} | options)


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """TINY in many chunks."""
    home = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "_CHUNK_BYTES", 1 << 12)
        loading.save(load(tiny), home / "small-chunks")
    return home / "small-chunks"


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def flipped(directory, name, model):
    """Changes one byte of one chunk of an array where it lies in its file. Gives the file."""
    stored = store.scan(directory)[name]
    piece, _, key = name.rpartition(".attention.") if ".attention." in name else name.rpartition(".moe.")
    array = model.params.layers[int(piece.split(".")[1])]
    for word in name.split(".")[2:]:
        array = getattr(array, word)
    last = tuple(n - 1 for n in stored.grid)
    box = chunks.box_of(stored, last)
    data = np.ascontiguousarray(np.asarray(array)[tuple(slice(a, b) for a, b in box)]).tobytes()
    for file in sorted(stored.piece.rglob("d/*")):
        at = file.read_bytes().find(data)
        if at >= 0:
            with open(file, "r+b") as opened:
                opened.seek(at + len(data) // 2)
                byte = opened.read(1)[0]
                opened.seek(-1, 1)
                opened.write(bytes([byte ^ 4]))
            return file
    raise AssertionError(f"{name} is in no file of {stored.piece}")


@pytest.mark.quick("packed-layers.2.moe.down.blocks")
@pytest.mark.parametrize(
    "name", ["layers.2.moe.down.blocks", "layers.0.attention.qkv", "layers.3.moe.gate_up.scales", "layers.1.moe.router"]
)
@pytest.mark.parametrize("way", WAYS)
def test_a_changed_byte_is_refused_by_the_arrays_name(copy, tiny, name, way):
    flipped(copy, name, load(tiny))
    with pytest.raises(
        ValueError, match=rf"{name} in .*/{name[:8]} must be as it was saved; chunk .* has another checksum.*; copy"
    ) as caught:
        load(copy, **WAYS[way])
    assert "\n" not in str(caught.value)
    load(copy, verify=False, check=None, **WAYS[way])


def test_older_directories_have_none_and_load(copy, tiny):
    path = copy / "params" / "index.json"
    index = json.loads(path.read_text())
    assert set(index.pop("checksums")) == set(store.scan(copy)) and index.pop("file_checksums")
    path.write_text(json.dumps(index))
    load(copy)
    flipped(copy, "layers.2.moe.down.blocks", load(tiny))
    load(copy)


@pytest.mark.thorough
def test_what_is_saved_on_a_mesh_has_the_same_checksums(saved, tiny, tmp_path, monkeypatch):
    """Where chunks are cut alike; in any case every chunk of every array has one."""
    monkeypatch.setattr(saving, "_CHUNK_BYTES", 1 << 12)
    loading.save(load(tiny, mesh=(2, 4)), tmp_path / "mesh")
    one, other = (json.loads((path / "params" / "index.json").read_text())["checksums"] for path in (saved, tmp_path / "mesh"))
    arrays = store.scan(saved), store.scan(tmp_path / "mesh")
    assert one.keys() == other.keys() == arrays[0].keys()
    alike = [name for name in one if arrays[0][name].chunks == arrays[1][name].chunks]
    assert alike and all(one[name] == other[name] for name in alike)
    assert max(map(len, one.values())) > 8
    load(tmp_path / "mesh", mesh=(1, 8))


def test_an_index_with_other_checksums_than_chunks_is_refused(copy):
    path = copy / "params" / "index.json"
    index = json.loads(path.read_text())
    for change in ({"norm": []}, {"another": [1]}):
        path.write_text(json.dumps(index | {"checksums": index["checksums"] | change}))
        with pytest.raises(ValueError, match=f"index.json must hold a checksum of every chunk .* not for {next(iter(change))};"):
            load(copy)
    path.write_text(json.dumps(index | {"files": index["files"] | {"../config.json": 5}}))
    with pytest.raises(ValueError, match="index.json must name files inside its own directory; it names '../config.json'"):
        load(copy)


@pytest.mark.thorough
def test_a_bit_of_any_file_that_changes_is_seen(saved, tmp_path):
    """Of config.json and of the index alone some values could be others."""
    copy = shutil.copytree(saved, tmp_path / "copy")
    files = sorted(path for path in (copy / "params").rglob("*") if path.is_file() and path.name != "index.json")
    rng = random.Random(0)
    for turn in range(120):
        path = files[turn] if turn < len(files) else rng.choices(files, [file.stat().st_size for file in files])[0]
        data = bytearray(whole := path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        with pytest.raises((ValueError, FileNotFoundError), match=str(copy)):
            load(copy, check=None)
        path.write_bytes(whole)
    assert load(copy).config == TINY
