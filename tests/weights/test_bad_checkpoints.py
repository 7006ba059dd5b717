"""Every kind of damage has its own sentence, before a tensor is read."""

import json
from pathlib import Path
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gptoss_jax.config import TINY
from gptoss_jax.weights import loading, safetensors

SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny checkpoint, Hugging Face layout only, to damage."""
    return Path(shutil.copytree(tiny, tmp_path / "tiny", ignore=shutil.ignore_patterns("original", "*.npz")))


@pytest.fixture
def unread(monkeypatch):
    """Fails the test if a tensor is read: damage must be found before."""
    monkeypatch.setattr(safetensors, "read", lambda *a, **k: pytest.fail("a tensor was read before everything was checked"))


def edit(directory, change):
    """Rewrites one shard of `directory` after change(tensors)."""
    tensors = load_file(directory / SHARD)
    change(tensors)
    save_file(tensors, directory / SHARD)


def refused(directory, words, error=ValueError, **options):
    with pytest.raises(error, match=words) as caught:
        loading.load(directory, **{"experts": "packed", "progress": False} | options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_directories_without_a_checkpoint(copy, tmp_path, unread):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "it is empty; download", FileNotFoundError)
    (empty / "pytorch_model.bin").write_bytes(b"x")
    refused(empty, "it holds pytorch_model.bin: PyTorch's pickled files are not read", FileNotFoundError)
    refused(copy / SHARD, "pass the directory")
    (copy / "config.json").unlink()
    refused(copy, "needs config.json", FileNotFoundError)
    (copy / "config.json").write_text("{")
    refused(copy, "must be JSON")
    (copy / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    refused(copy, "must describe a gpt-oss model.*'llama'")


def test_damaged_shards(copy, unread):
    whole = (copy / SHARD).read_bytes()
    (copy / SHARD).write_bytes(whole[:-1])
    refused(copy, f"{SHARD} is cut short.*download this file again")
    for junk in (b"", whole[:100], b"\0" * 1000):
        (copy / SHARD).write_bytes(junk)
        refused(copy, f"{SHARD} is not a safetensors file.*download it again")
    (copy / SHARD).unlink()
    refused(copy, f"names 2 shards; absent.*{SHARD}; download the missing files", FileNotFoundError)
    (copy / "model.safetensors.index.json").write_text("{}")
    refused(copy, "weight_map")
    (copy / "model.safetensors.index.json").write_text("")
    refused(copy, "must be JSON")


def test_a_tensor_in_two_files(copy, unread):
    (copy / "model.safetensors.index.json").unlink()
    save_file({"model.norm.weight": np.ones(TINY.hidden_size, np.float32)}, copy / "stale.safetensors")
    refused(copy, "one file; model.norm.weight is in .* and stale.safetensors; remove")


def test_every_difference_is_in_one_error(copy, unread):
    names = sorted(load_file(copy / SHARD))
    blocks = next(name for name in names if name.endswith("_blocks"))
    norms = [name for name in names if name.endswith("norm.weight")]

    def change(tensors):
        del tensors[norms[0]]
        tensors["model.layers.9.surprise"] = np.zeros(3, np.float32)
        tensors[norms[1]] = np.zeros((TINY.hidden_size, 1), np.float32)
        tensors[blocks] = tensors[blocks].view(np.int8)
        tensors[norms[2]] = np.zeros(TINY.hidden_size, np.int32)

    edit(copy, change)
    message = refused(copy, "must be those that its config.json describes")
    for words in (
        f"1 missing: {norms[0]};",
        "1 surplus: model.layers.9.surprise;",
        f"1 of the wrong shape: {norms[1]} (is [96, 1], must be [96]);",
        f"2 of the wrong dtype: {blocks} (is I8, must be U8), {norms[2]} (is I32, must be BF16 or F16 or F32);",
    ):
        assert words in message


def test_float_blocks_are_refused(copy, unread):
    name = next(name for name in load_file(copy / SHARD) if name.endswith("_blocks"))
    edit(copy, lambda tensors: tensors.update({name: tensors[name].astype(np.float32)}))
    refused(copy, f"wrong dtype: {name} .is F32, must be U8")


def test_long_lists_are_cut(copy, unread):
    values = json.loads((copy / "config.json").read_text())
    values |= {"num_hidden_layers": 8, "layer_types": values["layer_types"] * 2}
    (copy / "config.json").write_text(json.dumps(values))
    message = refused(copy, "76 missing: model.layers.4")
    assert "and 56 more" in message and len(message) < 3000


def test_arguments(tiny, unread):
    refused(tiny, "dtype must be 'bfloat16' or 'float32'; got 'float16'", dtype="float16")
    refused(tiny, "experts must be .*; got 'dense'", experts="dense")
