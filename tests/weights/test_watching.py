"""Values that are not finite are refused by the tensor's name, from whatever file they come and however it is loaded."""

from pathlib import Path
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints import writer
from gptoss_jax import adapters
from gptoss_jax.config import TINY
from gptoss_jax.parallel import sharding
from gptoss_jax.weights import loading, watching
from gptoss_jax.weights.watching import Watch, is_finite

SHARD = "model-00001-of-00002.safetensors"
BAD = {
    "nan": ("model.layers.3.self_attn.o_proj.weight", float("nan")),
    "infinity": ("model.layers.3.mlp.router.bias", float("-inf")),
    "scale": ("model.layers.3.mlp.experts.down_proj_scales", 0xFF),
}


def load(path, **options):
    return loading.load(path, **{"experts": "packed", "progress": False} | options)


@pytest.fixture
def copy(tiny, tmp_path):
    return Path(shutil.copytree(tiny, tmp_path / "tiny", ignore=shutil.ignore_patterns("original", "*.npz")))


def spoil(directory, name, value):
    """One value of a tensor, the last but one."""
    for file in directory.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            tensors[name].reshape(-1)[-2] = value
            save_file(tensors, file)


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_finite_is_refused_by_its_name(copy, kind):
    name, value = BAD[kind]
    spoil(copy, name, value)
    what = "a scale of 0xFF, which is NaN" if kind == "scale" else "NaN or infinity"
    for options in ({}, {"check": "finite", "dtype": "float32"}, {"mesh": sharding.mesh(1, 2)}, {"experts": "split"}):
        with pytest.raises(ValueError, match=rf"'{name}' of .*\.safetensors must hold finite numbers; got {what}; .* pass check=None"):
            load(copy, **options)
    assert load(copy, check=None).config == TINY


def test_blocks_are_codes_of_any_bits(copy):
    spoil(copy, "model.layers.3.mlp.experts.down_proj_blocks", 0xFF)
    load(copy, check="finite")


def test_auto_looks_at_small_checkpoints(copy, monkeypatch):
    spoil(copy, *BAD["nan"])
    nbytes = sum(value.nbytes for file in copy.glob("*.safetensors") for value in load_file(file).values())
    monkeypatch.setattr(watching, "AUTO_BYTES", nbytes)
    monkeypatch.setattr(loading, "AUTO_BYTES", nbytes)
    load(copy)
    with pytest.raises(ValueError, match="must hold finite numbers"):
        load(copy, check="finite")
    monkeypatch.setattr(loading, "AUTO_BYTES", nbytes + 1)
    with pytest.raises(ValueError, match="must hold finite numbers"):
        load(copy)


@pytest.mark.parametrize("options, words", [
    ({"check": "nan"}, "check must be 'auto', 'finite' or None; got 'nan'"),
    ({"check": True}, "check must be"),
    ({"verify": 1}, "verify must be True or False; got 1"),
    ({"verify": None}, "verify must be"),
])  # fmt: skip
def test_arguments(tiny, options, words):
    with pytest.raises(ValueError, match=words):
        load(tiny, **options)


def test_expanded_experts_and_rounding(tiny, tmp_path):
    """A float32 that bfloat16 cannot hold becomes infinity there, and not in float32."""
    writer.write(tmp_path / "wide", TINY, load(tiny, experts="stacked").params, "huggingface-bf16")
    for file in (tmp_path / "wide").glob("*.safetensors"):
        save_file({name: value.astype(np.float32) for name, value in load_file(file).items()}, file)
    name = "model.layers.2.mlp.experts.down_proj"
    spoil(tmp_path / "wide", name, 3.4e38)
    assert load(tmp_path / "wide", experts="stacked", dtype="float32").config == TINY
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=f"'{name}' of .* must hold finite numbers"):
        load(tmp_path / "wide", experts="stacked")


@pytest.mark.parametrize("mesh", [None, (2, 4)])
def test_orbax_directories(tiny, tmp_path, mesh):
    model = load(tiny)
    layer = model.params.layers[1]
    bad = layer.moe.down.replace(scales=layer.moe.down.scales.at[0, 0, 0].set(0xFF))
    layers = [layer.replace(moe=layer.moe.replace(down=bad)) if i == 1 else other for i, other in enumerate(model.params.layers)]
    params = model.params.replace(layers=tuple(layers))
    loading.save(loading.Model(TINY, params, None), tmp_path / "scale")
    loading.save(loading.Model(TINY, model.params.replace(norm=jnp.full(96, jnp.inf)), None), tmp_path / "norm")
    for name, array in (("scale", "layers.1.moe.down.scales"), ("norm", "norm")):
        with pytest.raises(ValueError, match=f"'{array}' of .* must hold finite numbers"):
            load(tmp_path / name, mesh=mesh and sharding.mesh(*mesh))
        load(tmp_path / name, check=None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_adapters_are_always_looked_at(tiny, tmp_path, value):
    shutil.copytree(tiny / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[3]
    tensors[name][1, 1] = value
    save_file(tensors, path)
    with pytest.raises(ValueError, match=f"'{name}' of {path} must hold finite numbers"):
        adapters.load(tmp_path / "adapter", TINY)


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_every_pattern_of_a_type(kind):
    """All of 16 bits, and of float32 those around the edges."""
    bits = 8 * np.dtype(kind).itemsize
    patterns = np.arange(1 << 16, dtype=np.uint32)
    patterns = patterns.astype(np.uint16) if bits == 16 else np.concatenate([patterns << 16, patterns << 16 | 1, patterns << 16 | 0xFFFF])
    values = patterns.view(kind)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(values.astype(np.float32))
    assert all(is_finite("x", values[i : i + 1]) == finite[i] for i in range(0, len(values), 7))
    assert is_finite("x", values[finite]) and is_finite("x", values[finite].reshape(2, -1)[:, ::2]) and is_finite("x", values[:0])
    for i in np.flatnonzero(~finite)[:: len(values) // 500]:
        assert not is_finite("x", np.append(values[finite], values[i]))


def test_what_is_kept_is_told_at_the_end():
    watch = Watch(finite=True, keep=True)
    watch.end()
    watch.look("a", np.array([np.nan], np.float32), "FILE")
    watch.look("a", np.array([np.nan], np.float32), "FILE")
    watch.look("b_scales", np.array([0xFF], np.uint8), "FILE")
    with pytest.raises(ValueError, match=r"'a' of FILE must hold finite numbers; got NaN or infinity; .* \(and 1 more\)"):
        watch.end()
    with pytest.raises(ValueError, match="'a' of FILE"):
        Watch(finite=True).look("a", np.array([np.inf], np.float32), "FILE")
    Watch().look("a", np.array([np.inf], np.float32), "FILE")
