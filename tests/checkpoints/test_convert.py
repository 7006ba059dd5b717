"""Conversions: published -> Orbax -> published bit for bit, killed ones leave nothing, nothing is overwritten."""

import dataclasses
import json
from pathlib import Path
import shutil
import signal
import subprocess
import sys
from unittest import mock

from absl import app, flags
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints import convert, inspect, synthesize
from gptoss_jax.config import TINY, Config
from gptoss_jax.parallel import sharding
from gptoss_jax.weights import loading
from gptoss_jax.weights.orbax import whole
from pallas_kernels.mxfp4 import Mxfp4, unpack

ROOT = Path(__file__).parents[2]
NANO = ROOT / "checkpoints" / "nano"


def load(path, **options):
    return loading.load(path, **{"experts": "packed", "progress": False} | options)


def stored(directory):
    """Every tensor of a published directory, by the library: dtype, shape and bytes."""
    files = sorted(Path(directory).glob("*.safetensors"))
    return {name: (x.dtype, x.shape, x.tobytes()) for file in files for name, x in load_file(file).items()}


def assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.fixture
def orbax(tmp_path):
    """nano as an Orbax directory."""
    convert.convert("nano", tmp_path / "orbax")
    return tmp_path / "orbax"


@pytest.mark.parametrize("layout", ["huggingface", "original"])
def test_published_to_orbax_and_back_is_the_same_bit_for_bit(tiny, tmp_path, layout):
    source = tiny if layout == "huggingface" else tiny / "original"
    summary = convert.convert(source, tmp_path / "orbax")
    assert summary.startswith("63 tensors, 1,587,840 bytes, ") and summary.endswith(f" s: {tmp_path}/orbax")
    assert_same(load(tmp_path / "orbax").params, load(tiny).params)
    convert.convert(tmp_path / "orbax", tmp_path / "back", layout)
    assert stored(tmp_path / "back") == stored(source)
    assert Config.from_json(tmp_path / "back" / "config.json") == Config.from_json(source / "config.json")
    assert not whole.stopped(tmp_path / "orbax") and not whole.stopped(tmp_path / "back")


def test_what_lies_beside_the_weights_goes_with_them(tmp_path):
    source = Path(shutil.copytree(NANO, tmp_path / "source"))
    (source / "generation_config.json").write_text('{"eos_token_id": [1, 3]}')
    (source / "chat_template.jinja").write_text("{{ messages }}")
    convert.convert(source, tmp_path / "orbax")
    convert.convert(tmp_path / "orbax", tmp_path / "back", "huggingface")
    assert stored(tmp_path / "back") == stored(source)
    for name in ("generation_config.json", "chat_template.jinja", "tokenizer.model"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert back == json.loads((source / "config.json").read_text()) and back["pad_token_id"] == 8
    assert load(tmp_path / "orbax").eos_token_ids == load(tmp_path / "back").eos_token_ids == (1, 3)
    assert "accuracies.json" not in {path.name for path in (tmp_path / "orbax").iterdir()}


def test_a_saved_model_becomes_a_published_one(tmp_path):
    loading.save(load("nano", mesh=sharding.mesh(1, 8)), tmp_path / "saved")  # wider than nano's experts are
    convert.convert(tmp_path / "saved", tmp_path / "back", "huggingface")
    assert stored(tmp_path / "back") == stored(NANO)


@pytest.mark.thorough
def test_a_conversion_over_a_mesh_is_of_the_same_weights(tiny, tmp_path):
    convert.convert(tiny, tmp_path / "over", mesh=sharding.mesh(1, 5))
    convert.convert(tmp_path / "over", tmp_path / "again", mesh=sharding.mesh(2, 4), dtype="float32")
    for name in ("over", "again"):
        assert_same(load(tmp_path / name).params, load(tiny).params)


def test_expanded_experts_stay_as_they_are_or_are_rounded(tiny, tmp_path):
    convert.convert(tiny, tmp_path / "wide", "huggingface-bf16")
    assert "quantization_config" not in json.loads((tmp_path / "wide" / "config.json").read_text())
    want = load(tiny, experts="stacked").params
    assert_same(load(tmp_path / "wide", experts="stacked").params, want)
    convert.convert(tmp_path / "wide", tmp_path / "orbax")
    assert_same(load(tmp_path / "orbax", experts="stacked").params, want)
    for source in ("wide", "orbax"):  # values that came from MXFP4 go back there
        convert.convert(tmp_path / source, tmp_path / f"{source}-packed", "huggingface")
        assert_same(load(tmp_path / f"{source}-packed", experts="stacked").params, want)
        description = json.loads((tmp_path / f"{source}-packed" / "config.json").read_text())
        assert description["quantization_config"]["quant_method"] == "mxfp4"
    assert {name: kind[:2] for name, kind in stored(tmp_path / "wide-packed").items()} == {
        name: kind[:2] for name, kind in stored(tiny).items()
    }


def test_others_are_rounded_to_the_nearest(tmp_path):
    synthesize.write_checkpoint(TINY, tmp_path / "wide", "huggingface-bf16")
    convert.convert(tmp_path / "wide", tmp_path / "packed", "huggingface")
    before, after = (load(tmp_path / name, dtype="float32", experts="stacked").params.layers[1].moe.down for name in ("wide", "packed"))
    scales = load(tmp_path / "packed").params.layers[1].moe.down.scales
    step = unpack(Mxfp4(jnp.full((*scales.shape, 16), 0x22, jnp.uint8), scales), jnp.float32)  # ones, times the scale
    assert 0 < np.max(np.abs(before - after) / step) <= 1


def test_float32_is_kept_unless_asked_otherwise(tiny, tmp_path):
    (tmp_path / "fine").mkdir()
    shutil.copy(tiny / "config.json", tmp_path / "fine")
    rng = np.random.default_rng(0)
    tensors = {name: x for file in sorted(tiny.glob("*.safetensors")) for name, x in load_file(file).items()}
    tensors["lm_head.weight"] = rng.standard_normal(tensors["lm_head.weight"].shape).astype(np.float32)
    save_file(tensors, tmp_path / "fine" / "model.safetensors")
    convert.convert(tmp_path / "fine", tmp_path / "kept")
    convert.convert(tmp_path / "fine", tmp_path / "rounded", dtype="bfloat16")
    np.testing.assert_array_equal(load(tmp_path / "kept", dtype="float32").params.unembedding, tensors["lm_head.weight"])
    rounded = tensors["lm_head.weight"].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(load(tmp_path / "rounded", dtype="float32").params.unembedding, rounded)


KILLED = """
import os, signal, sys
import orbax.checkpoint as ocp
from checkpoints import convert, writer

def save(self, path, *args, wrapped=ocp.Checkpointer.save, **kwargs):
    wrapped(self, path, *args, **kwargs)
    if path.name == "layers.1":
        os.kill(os.getpid(), signal.SIGKILL)

def stored(*args, wrapped=writer._stored):
    yield from wrapped(*args)
    if "layers.2." in args[0].tensors[0].name:
        os.kill(os.getpid(), signal.SIGKILL)

ocp.Checkpointer.save = save
writer._stored = stored
convert.convert("nano", *sys.argv[1:])
"""


@pytest.mark.thorough
@pytest.mark.parametrize("to", ["orbax", "huggingface"])
def test_a_killed_conversion_leaves_nothing_that_loads(tmp_path, capsys, to):
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, out, to], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    (left,) = whole.stopped(out)
    with pytest.raises(ValueError if to == "orbax" else FileNotFoundError) as caught:
        load(left)
    assert "\n" not in str(caught.value)
    given = flags.FlagValues()
    convert.define_flags(given)
    given(["convert", "--checkpoint=nano", f"--out={out}", f"--to={to}"])
    convert.main(["convert"], given)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{left} is what a stopped conversion left") and " tensors, " in printed[1]
    assert_same(load(out).params, load("nano").params)


def test_memory_is_of_one_layer_at_a_time(tiny, tmp_path, monkeypatch):
    """What a conversion has read is gone when the next layer is read."""
    alive = []
    opened = convert.open_source

    def watched(*args):
        source = opened(*args)

        def read(name, entry):
            live = sum(x.nbytes for x in jax.live_arrays() if id(x) not in before)
            alive.append(live)
            return source.read(name, entry)

        return dataclasses.replace(source, read=read)

    monkeypatch.setattr(convert, "open_source", watched)
    kept = jax.live_arrays()
    before = {id(x) for x in kept}
    convert.convert(tiny, tmp_path / "orbax")
    layer = sum(x.nbytes for x in jax.tree.leaves(load(tiny).params.layers[0]))
    assert len(alive) == 55 and max(alive) <= layer


def test_an_orbax_directory_is_listed(orbax, tmp_path):
    lines = inspect.table(str(orbax)).splitlines()
    assert lines[0] == str(orbax) and lines[-1] == "63 tensors, 1,579,648 bytes" and len(lines) == 63 + 3
    row = next(line for line in lines if "layers.2.moe.gate_up.blocks" in line)
    assert row.split() == ["layers.2.moe.gate_up.blocks", "[4,", "256,", "4,", "16]", "uint8", "65,536", "layers.2"]
    shutil.rmtree(orbax / "params" / "final")
    with pytest.raises(ValueError, match="absent or cut off"):
        inspect.table(str(orbax))


def test_what_exists_is_not_overwritten_and_other_mistakes_are_refused(orbax, tiny, tmp_path, monkeypatch):
    before = stored(tiny)
    for to in convert.TARGETS:
        with pytest.raises(ValueError, match="must not exist yet"):
            convert.convert("nano", orbax, to)
        with pytest.raises(ValueError, match="must not exist yet"):
            convert.convert("nano", tiny, to)
    assert stored(tiny) == before
    with pytest.raises(ValueError, match="dtype and mesh are for Orbax directories"):
        convert.convert("nano", tmp_path / "x", "huggingface", dtype="float32")
    given = flags.FlagValues()
    convert.define_flags(given)
    given(["convert", f"--checkpoint={tmp_path}/none", f"--out={tmp_path}/x"])
    with pytest.raises(app.UsageError, match="no checkpoint directory"):
        convert.main(["convert"], given)
    given.mesh = "1x"
    with pytest.raises(app.UsageError, match="--mesh must be DATAxMODEL"):
        convert.main(["convert"], given)
    given.mesh = None
    for raised in (OSError(28, "No space left on device"), ValueError("x" * 300 + "Error writing y: File too large")):
        with monkeypatch.context() as patched:
            patched.setattr(convert, "convert", mock.Mock(side_effect=raised))
            with pytest.raises(app.UsageError, match="No space left|File too large"):
                convert.main(["convert"], given)
            with pytest.raises(OSError, match=r"y must be written whole; got: .*(No space left on device|File too large); nothing is left"):
                with whole.appearing(tmp_path / "y"):
                    raise raised
    with pytest.raises(app.UsageError, match="unexpected arguments"):
        convert.main(["convert", "nano"], given)
    (orbax / "params" / "index.json").unlink()
    with pytest.raises(ValueError, match="must be a whole Orbax directory"):
        convert.convert(orbax, tmp_path / "x", "huggingface")
    assert {path.name for path in tmp_path.iterdir()} == {"orbax"}
