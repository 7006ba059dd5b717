"""The loader: every layout to the same arrays, exactly, in little memory."""

import dataclasses
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints import writer
from gptoss_jax.config import TINY
from gptoss_jax.model.params import abstract_params, is_spec
from gptoss_jax.parallel import memory
from gptoss_jax.weights import loading
from pallas_kernels import dispatch
from pallas_kernels.mxfp4 import Mxfp4
from pallas_kernels.mxfp4.tiles import Tiles, from_tiles

CODES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
SHARD = "model-00001-of-00002.safetensors"


def load(path, **options):
    return loading.load(path, **{"experts": "packed", "progress": False} | options)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def stored(directory):
    """Every tensor of a directory, by the library."""
    return {name: value for file in sorted(directory.glob("*.safetensors")) for name, value in load_file(file).items()}


def expanded(blocks, scales):
    """[E, out, in] float32 of stored MXFP4, independent of the code under test."""
    codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(*blocks.shape[:-1], 32)
    return (CODES[codes] * np.exp2(scales.astype(np.float32) - 127)[..., None]).reshape(*scales.shape[:-1], -1)


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny checkpoint, Hugging Face layout only, to damage."""
    return Path(shutil.copytree(tiny, tmp_path / "tiny", ignore=shutil.ignore_patterns("original", "*.npz")))


@pytest.mark.parametrize("experts", ["packed", "stacked", "split"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_both_layouts_give_the_table_and_the_same_bits(tiny, experts, dtype):
    model = load(tiny, experts=experts, dtype=dtype)
    specs = abstract_params(TINY, dtype, experts)
    jax.tree.map(
        lambda spec, x: np.testing.assert_equal((x.shape, x.dtype), (spec.shape, spec.dtype)), specs, model.params, is_leaf=is_spec
    )
    assert_same(model.params, load(tiny / "original", experts=experts, dtype=dtype).params)


def test_every_array_holds_the_tensors_of_its_name(tiny):
    model, tensors = load(tiny, dtype="float32"), stored(tiny)
    K, G, H = TINY.num_key_value_heads, TINY.group, TINY.head_dim
    np.testing.assert_array_equal(model.params.embedding, tensors["model.embed_tokens.weight"].astype(np.float32))
    np.testing.assert_array_equal(model.params.unembedding, tensors["lm_head.weight"].astype(np.float32))
    np.testing.assert_array_equal(model.params.norm, tensors["model.norm.weight"].astype(np.float32))
    for i, layer in enumerate(model.params.layers):
        own = {name.removeprefix(f"model.layers.{i}."): value for name, value in tensors.items() if f"layers.{i}." in name}
        for n in range(K * G):
            got = layer.attention.qkv[n // G, n % G], layer.attention.qkv_bias[n // G, n % G]
            np.testing.assert_array_equal(got[0], own["self_attn.q_proj.weight"][n * H : (n + 1) * H].astype(np.float32))
            np.testing.assert_array_equal(got[1], own["self_attn.q_proj.bias"][n * H : (n + 1) * H].astype(np.float32))
        for k in range(K):
            for j, x in ((G, "k"), (G + 1, "v")):
                np.testing.assert_array_equal(
                    layer.attention.qkv[k, j], own[f"self_attn.{x}_proj.weight"][k * H : (k + 1) * H].astype(np.float32)
                )
        for leaf, name in (
            (layer.attention.norm, "input_layernorm.weight"),
            (layer.attention.sinks, "self_attn.sinks"),
            (layer.attention.out, "self_attn.o_proj.weight"),
            (layer.attention.out_bias, "self_attn.o_proj.bias"),
            (layer.moe.norm, "post_attention_layernorm.weight"),
            (layer.moe.router, "mlp.router.weight"),
            (layer.moe.router_bias, "mlp.router.bias"),
            (layer.moe.gate_up_bias, "mlp.experts.gate_up_proj_bias"),
            (layer.moe.down_bias, "mlp.experts.down_proj_bias"),
        ):
            np.testing.assert_array_equal(leaf, own[name].astype(np.float32))
        np.testing.assert_array_equal(layer.moe.gate_up.blocks, own["mlp.experts.gate_up_proj_blocks"])
        np.testing.assert_array_equal(layer.moe.down.scales, own["mlp.experts.down_proj_scales"])


def test_expanded_experts_are_the_packed_ones(tiny):
    tensors = stored(tiny)
    stacked, split = load(tiny, experts="stacked"), load(tiny, experts="split")
    for i, layer in enumerate(stacked.params.layers):
        for name in ("gate_up", "down"):
            parts = [tensors[f"model.layers.{i}.mlp.experts.{name}_proj_{x}"] for x in ("blocks", "scales")]
            want = expanded(*parts)
            np.testing.assert_array_equal(np.asarray(getattr(layer.moe, name), np.float32), want)
            np.testing.assert_array_equal(np.asarray(getattr(split.params.layers[i].moe, name), np.float32), want)


def test_tiled_experts_are_the_packed_ones_bit_for_bit(tmp_path):
    packed, tiled = load("nano"), load("nano", experts="tiled")
    specs = abstract_params(packed.config, experts="tiled")
    jax.tree.map(
        lambda spec, x: np.testing.assert_equal((x.shape, x.dtype), (spec.shape, spec.dtype)), specs, tiled.params, is_leaf=is_spec
    )
    for a, b in zip(packed.params.layers, tiled.params.layers, strict=True):
        assert a.moe.gate_up.shape == b.moe.gate_up.shape and a.moe.down.shape == b.moe.down.shape
        assert_same(from_tiles(b.moe.gate_up), a.moe.gate_up)
        assert_same(from_tiles(b.moe.down), a.moe.down)
    assert "experts tiled" in repr(tiled)
    writer.write(tmp_path / "again", packed.config, tiled.params)
    assert_same(load(tmp_path / "again").params, packed.params)


def test_what_cannot_be_tiled_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="multiples of 64; got 96 and 64; pass experts='packed'"):
        load(tiny, experts="tiled")
    source = load("nano")
    down = source.params.layers[1].moe.down
    large = down.replace(scales=down.scales.at[0, 0, 0].set(129))
    layers = [layer.replace(moe=layer.moe.replace(down=large)) if i == 1 else layer for i, layer in enumerate(source.params.layers)]
    writer.write(tmp_path / "large", source.config, source.params.replace(layers=tuple(layers)))
    with pytest.raises(ValueError, match="layers.1.mlp.experts.down_proj_scales has scales above 2\\^1.*pass experts='packed'"):
        load(tmp_path / "large", experts="tiled")


def test_auto_tiles_for_a_hopper(monkeypatch, tiny):
    monkeypatch.setattr(dispatch, "for_hopper", lambda: True)
    assert isinstance(load("nano", experts="auto").params.layers[0].moe.down, Tiles)
    assert not isinstance(load("nano", experts="auto", dtype="float32").params.layers[0].moe.down, Tiles)
    assert not isinstance(load(tiny, experts="auto").params.layers[0].moe.down, Tiles)


def test_however_the_files_are_cut(tiny, tmp_path):
    want = load(tiny).params
    tensors = stored(tiny)
    single, unindexed, original = tmp_path / "single", tmp_path / "unindexed", tmp_path / "only"
    for directory in (single, unindexed):
        directory.mkdir()
        shutil.copy(tiny / "config.json", directory)
    save_file(tensors, single / "model.safetensors")
    names = sorted(tensors)
    for i in range(3):
        save_file({name: tensors[name] for name in names[i::3]}, unindexed / f"part{i}.safetensors")
    shutil.copytree(tiny / "original", original / "original")  # as `hf download --include 'original/*'` leaves it
    for directory in (single, unindexed, original, str(single), f"{single}/"):
        assert_same(load(directory).params, want)


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_fine_tunes_with_expanded_experts(tiny, tmp_path, kind):
    tensors = {}
    for name, value in stored(tiny).items():
        if name.endswith("_blocks"):
            pair = expanded(value, stored(tiny)[name.replace("_blocks", "_scales")])
            tensors[name.removesuffix("_blocks")] = np.ascontiguousarray(pair.swapaxes(1, 2)).astype(kind)
        elif not name.endswith("_scales"):
            tensors[name] = value.astype(kind)
    save_file(tensors, tmp_path / "model.safetensors")
    values = json.loads((tiny / "config.json").read_text())
    del values["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    for form in ("stacked", "split", "auto"):
        for dtype in ("bfloat16", "float32"):
            want = load(tiny, experts="split" if form == "auto" else form, dtype=dtype).params
            if kind == np.float16:  # has fewer exponents than bfloat16: what was stored is what is loaded
                got = load(tmp_path, experts=form, dtype=dtype).params.layers[2].moe.down[1]
                np.testing.assert_array_equal(got, tensors["model.layers.2.mlp.experts.down_proj"][1].T.astype(got.dtype))
            else:
                assert_same(load(tmp_path, experts=form, dtype=dtype).params, want)
    with pytest.raises(ValueError, match="packed.*pass experts='auto'"):
        load(tmp_path, experts="packed")


def test_auto_expands_on_a_cpu_only_where_memory_is_plenty(tiny, monkeypatch):
    assert isinstance(load(tiny, experts="auto").params.layers[0].moe.down, tuple)
    monkeypatch.setattr(memory, "host", lambda: 1 << 20)
    assert isinstance(load(tiny, experts="auto").params.layers[0].moe.down, Mxfp4)
    assert isinstance(load(tiny, experts="split").params.layers[0].moe.down, tuple)


def test_available_memory_is_plausible():
    assert 1 << 26 < memory.host() < 1 << 46


def test_the_model_says_what_it_is(tiny, copy):
    model = load(tiny)
    assert model.config == TINY and model.eos_token_ids == (319,) and model.tokenizer is None
    assert repr(model) == "Model(1.11 M weights, 1.59 MB: 4 layers of width 96, 6 experts packed, bfloat16, no tokenizer, 320 ids)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.params = None
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [319, 3, 7]}))
    assert load(copy).eos_token_ids == (319, 3, 7)
    (copy / "generation_config.json").write_text(json.dumps({"do_sample": True}))
    assert load(copy).eos_token_ids == (319,)


def test_progress_goes_to_stderr_or_nowhere(tiny, capsys):
    load(tiny)
    assert capsys.readouterr() == ("", "")
    load(tiny, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "1.56M/1.56M" in err


def test_a_file_that_changes_later_changes_nothing(copy):
    model = load(copy)
    before = jax.tree.map(np.array, model.params)
    for file in copy.glob("*.safetensors"):
        with open(file, "r+b") as opened:  # in place, so that a mapping would see it
            opened.write(b"\xff" * file.stat().st_size)
    assert_same(model.params, before)


_MEASURE = """
import sys
from gptoss_jax.weights import loading
def resident(kind):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(kind))
loading.load(sys.argv[1], experts="packed", progress=False)  # imports, the backend and its caches
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
model = loading.load(sys.argv[2], experts=sys.argv[3], dtype=sys.argv[4], progress=False)
import jax
print(resident("VmHWM") - before, sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)), model.params.embedding.nbytes)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is measured through Linux's /proc")
@pytest.mark.slow
def test_memory_beside_the_weights_stays_under_the_largest_tensor(tiny, tmp_path):
    from checkpoints import synthesize

    config = dataclasses.replace(TINY, vocab_size=32768, hidden_size=768, intermediate_size=768, num_local_experts=16)
    synthesize.write_checkpoint(config, tmp_path / "big", max_shard_bytes=1 << 30)
    for experts, dtype in (("packed", "bfloat16"), ("split", "float32")):
        command = [sys.executable, "-c", _MEASURE, str(tiny), str(tmp_path / "big"), experts, dtype]
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peak, held, largest = map(int, done.stdout.split())
        assert held <= peak < held + largest + (96 << 20), (experts, peak, held, largest)


def test_writer_and_loader_are_inverse(tiny, tmp_path):
    params = load(tiny).params
    for layout in ("huggingface", "original"):
        writer.write(tmp_path / layout, TINY, params, layout, max_shard_bytes=500_000)
        assert_same(load(tmp_path / layout).params, params)
    wide = load(tiny, experts="stacked").params
    writer.write(tmp_path / "wide", TINY, wide, "huggingface-bf16")
    assert_same(load(tmp_path / "wide", experts="stacked").params, wide)
    assert {name: value.tobytes() for name, value in stored(tmp_path / "huggingface").items()} == {
        name: value.tobytes() for name, value in stored(tiny).items()
    }
    with pytest.raises(ValueError, match="already holds a checkpoint"):
        writer.write(tmp_path / "wide", TINY, params)
    with pytest.raises(ValueError, match="cannot say this geometry"):
        writer.write(tmp_path / "x", dataclasses.replace(TINY, rms_norm_eps=1e-6), params, "original")
    other = dataclasses.replace(TINY, swiglu_alpha=1.5)
    with pytest.raises(ValueError, match="its swiglu_alpha 1.702"):
        writer.write(tmp_path / "x", other, params, "original")
    writer.write(tmp_path / "alpha", other, params)
    assert load(tmp_path / "alpha").config == other
    with pytest.raises(ValueError, match="must have shape"):
        writer.write(tmp_path / "y", TINY, params.replace(norm=jnp.ones(95)))
