"""Random checkpoints of any geometry, and the listing of any checkpoint."""

import dataclasses
import json
from pathlib import Path
import subprocess
import sys

from absl import app, flags
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from checkpoints import inspect, synthesize
from gptoss_jax.config import GPT_OSS_20B, TINY, Config
from gptoss_jax.model.params import abstract_params, is_spec, param_bytes
from gptoss_jax.weights import loading

ROOT = Path(__file__).parents[2]


def load(path, **options):
    return loading.load(path, progress=False, **options)


@pytest.mark.parametrize(
    "config", [TINY, dataclasses.replace(TINY, num_hidden_layers=1, layer_types=("full_attention",), eos_token_ids=())]
)
def test_a_random_checkpoint_loads_as_its_config(config, tmp_path):
    synthesize.write_checkpoint(config, tmp_path, seed=3)
    model = load(tmp_path, experts="packed")
    assert model.config == config
    specs = abstract_params(config)
    jax.tree.map(
        lambda spec, x: np.testing.assert_equal((x.shape, x.dtype), (spec.shape, spec.dtype)), specs, model.params, is_leaf=is_spec
    )


def test_layouts_hold_the_same_weights_and_seeds_others(tmp_path):
    for name, layout, seed in (("a", "huggingface", 0), ("b", "original", 0), ("c", "huggingface", 1)):
        synthesize.write_checkpoint(TINY, tmp_path / name, layout, seed=seed)
    a, b, c = (load(tmp_path / name, experts="packed").params for name in "abc")
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert all(not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(c), strict=True))
    first, second = a.layers[0].moe, a.layers[1].moe
    assert not np.array_equal(first.gate_up.blocks, second.gate_up.blocks)


def test_expanded_experts_are_written_transposed(tmp_path):
    synthesize.write_checkpoint(TINY, tmp_path, "huggingface-bf16")
    assert load(tmp_path, experts="stacked").params.layers[0].moe.gate_up.shape == (6, 128, 96)
    E, D, F = TINY.num_local_experts, TINY.hidden_size, TINY.intermediate_size
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["model.layers.0.mlp.experts.gate_up_proj"].shape == (E, D, 2 * F)
    assert tensors["model.layers.0.mlp.experts.down_proj"].shape == (E, F, D)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_scales_are_realistic(tmp_path):
    config = dataclasses.replace(TINY, hidden_size=512, num_local_experts=32, vocab_size=2048)
    synthesize.write_checkpoint(config, tmp_path)
    model = load(tmp_path, dtype="float32", experts="stacked")
    layer = model.params.layers[0]
    assert np.std(layer.attention.sinks) > 0.5 and np.std(layer.moe.gate_up_bias) > 0.3
    assert abs(np.mean(layer.attention.norm) - 1) < 0.05 and np.std(model.params.embedding) == pytest.approx(1, rel=0.02)
    x = np.random.default_rng(0).standard_normal((100, 512)).astype(np.float32)
    logits = np.sort(x @ np.asarray(layer.moe.router).T + np.asarray(layer.moe.router_bias), -1)[:, -3:]
    gates = np.exp(logits - logits[:, -1:])
    assert np.median(gates[:, -1] / gates.sum(-1)) > 0.45  # a third would be uniform
    out = x @ np.asarray(layer.moe.gate_up[0]).T
    assert 0.3 < np.std(out) < 3  # a layer neither dies nor explodes


def test_shards_are_of_the_size_asked_for_and_complete(tmp_path):
    limit = 300_000
    synthesize.write_checkpoint(TINY, tmp_path, max_shard_bytes=limit)
    files = sorted(tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(files) > 4 and files[0].name == f"model-00000-of-{len(files):05d}.safetensors"
    assert all(file.stat().st_size < limit + 20_000 for file in files)
    assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
    assert index["metadata"]["total_size"] == sum(value.nbytes for file in files for value in load_file(file).values())
    assert all(value.dtype in (np.uint8, ml_dtypes.bfloat16) for file in files for value in load_file(file).values())


def test_presets():
    assert synthesize.PRESETS["gpt-oss-20b"] == GPT_OSS_20B
    assert 13.7e9 < param_bytes(synthesize.PRESETS["gpt-oss-20b"]) < 13.8e9
    assert 65.3e9 < param_bytes(synthesize.PRESETS["gpt-oss-120b"]) < 65.4e9
    expanded = param_bytes(synthesize.PRESETS["400m"], "bfloat16", "stacked") / 2
    assert 395e6 < expanded < 415e6


def test_inspect_lists_every_tensor(tiny, tmp_path):
    lines = inspect.table(str(tiny)).splitlines()
    assert lines[0] == str(tiny) and lines[1].split() == ["tensor", "shape", "dtype", "bytes", "file"]
    assert lines[-1] == "79 tensors, 1,562,688 bytes" and len(lines) == 79 + 3
    row = next(line for line in lines if "layers.2.mlp.experts.gate_up_proj_blocks" in line)
    assert row.split()[1:] == ["[6,", "128,", "3,", "16]", "U8", "36,864", "model-00000-of-00002.safetensors"]
    original = inspect.table(str(tiny / "original")).splitlines()
    assert original[-1].endswith("1,562,688 bytes") and "block.3.attn.qkv.weight" in "\n".join(original)
    file = inspect.table(str(tiny / "model-00001-of-00002.safetensors"))
    assert "model-00000" not in file
    synthesize.write_checkpoint(dataclasses.replace(TINY, num_hidden_layers=12, layer_types=TINY.layer_types * 3), tmp_path)
    listed = inspect.table(str(tmp_path))
    assert listed.index("layers.9.") < listed.index("layers.10.")
    with pytest.raises(FileNotFoundError):
        inspect.table(str(tmp_path / "none"))


def run(module, *arguments):
    return subprocess.run([sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.thorough
def test_command_lines(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_dict()))
    done = run("checkpoints.synthesize", f"--config={tmp_path}/config.json", "--layout=original", f"--out={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert dataclasses.replace(Config.from_json(tmp_path / "out" / "config.json"), eos_token_ids=(319,)) == TINY
    done = run("checkpoints.inspect", tmp_path / "out")
    assert done.returncode == 0 and "1,562,688 bytes" in done.stdout, done.stderr


def test_command_lines_refuse_in_words(tmp_path):
    given = flags.FlagValues()
    synthesize.define_flags(given)
    given(["synthesize", f"--out={tmp_path}"])
    with pytest.raises(app.UsageError, match="either --preset or --config"):
        synthesize.main(["synthesize"], given)
    given.preset = "tiny"
    synthesize.main(["synthesize"], given)
    with pytest.raises(app.UsageError, match="already holds a checkpoint"):
        synthesize.main(["synthesize"], given)
    with pytest.raises(app.UsageError, match="unexpected arguments"):
        synthesize.main(["synthesize", "tiny"], given)
    with pytest.raises(app.UsageError, match="give one checkpoint"):
        inspect.main(["inspect"])
    with pytest.raises(app.UsageError, match="no checkpoint directory"):
        inspect.main(["inspect", str(tmp_path / "none")])
