"""Orbax directories: what is saved is restored bit for bit, in any form and on any mesh, or refused in a sentence."""

import dataclasses
import functools
import json
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import gptoss_jax
from gptoss_jax.config import TINY
from gptoss_jax.parallel import sharding
from gptoss_jax.weights import loading
from gptoss_jax.weights.orbax import restoring, saving, store, whole

MESHES = {"none": None, "1x8": (1, 8), "2x4": (2, 4), "8x1": (8, 1), "1x5": (1, 5)}  # five devices widen TINY's experts


def load(path, **options):
    return loading.load(path, **{"experts": "packed", "progress": False} | options)


def mesh(name):
    return MESHES[name] and sharding.mesh(*MESHES[name])


@functools.cache
def published(path, onto="none", **options):
    """What the published files load as."""
    return load(path, mesh=mesh(onto), **options)


def assert_same(got, want):
    """Bits, dtypes and the way to lie."""
    assert got.partition == want.partition

    def same(a, b):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()

    jax.tree.map(same, got, want)


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """TINY as an Orbax directory, packed and stacked."""
    home = tmp_path_factory.mktemp("saved")
    for form in ("packed", "stacked"):
        loading.save(published(tiny, experts=form), home / form)
    return home


@pytest.fixture
def copy(saved, tmp_path):
    """One to damage."""
    return Path(shutil.copytree(saved / "packed", tmp_path / "copy"))


def refused(path, words, **options):
    with pytest.raises(ValueError, match=words) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["packed", "stacked", "split"])
@pytest.mark.parametrize("onto", MESHES)
def test_what_is_stored_packed_is_restored_as_the_published_files_load(saved, tiny, onto, form):
    assert_same(load(saved / "packed", mesh=mesh(onto), experts=form).params, published(tiny, onto, experts=form).params)
    if onto == "none":
        got = load(saved / "packed", experts=form, dtype="float32")
        assert_same(got.params, published(tiny, experts=form, dtype="float32").params)


@pytest.mark.parametrize("onto", ["none", "2x4", "1x5"])
def test_what_is_stored_stacked_is_restored_stacked_or_split(saved, tiny, onto):
    for form in ("stacked", "split"):
        assert_same(load(saved / "stacked", mesh=mesh(onto), experts=form).params, published(tiny, onto, experts=form).params)
    wide = load(saved / "stacked", mesh=mesh(onto), experts="split", dtype="float32").params
    assert wide.embedding.dtype == wide.layers[0].moe.down[0].dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(wide.embedding), np.asarray(published(tiny).params.embedding, np.float32))
    for form in ("packed", "tiled"):
        words = f"experts='{form}' keeps published MXFP4 blocks.*pass experts='auto', 'stacked' or 'split'"
        refused(saved / "stacked", words, experts=form)


def test_another_alpha_is_kept(tiny, tmp_path):
    model = published(tiny)
    other = dataclasses.replace(model, config=dataclasses.replace(model.config, swiglu_alpha=1.5))
    loading.save(other, tmp_path / "alpha")
    assert load(tmp_path / "alpha").config == other.config


@pytest.mark.parametrize("onto", ["none", pytest.param("2x4", marks=pytest.mark.thorough)])
def test_tiles_are_saved_packed_and_restored_in_any_form(tmp_path, onto):
    loading.save(published("nano", onto, experts="tiled"), tmp_path / "tiled")
    assert_same(load(tmp_path / "tiled", mesh=mesh(onto), experts="tiled").params, published("nano", onto, experts="tiled").params)
    got, want = load(tmp_path / "tiled"), published("nano")
    assert_same(got.params, want.params)
    assert got.config == want.config and got.tokenizer.encode("27 + 58") == want.tokenizer.encode("27 + 58")


@pytest.mark.quick("2x4-split-others1")
@pytest.mark.parametrize(
    ("held", "form", "others"),
    [("1x8", "packed", ("none", "2x4", "8x1")), ("2x4", "split", ("none",)), ("1x5", "stacked", ("none", "1x8"))],
)
def test_what_is_saved_on_one_mesh_is_restored_on_another(tiny, tmp_path, held, form, others):
    loading.save(published(tiny, held, experts=form), tmp_path / "saved")
    for onto in (held, *others):
        assert_same(load(tmp_path / "saved", mesh=mesh(onto), experts=form).params, published(tiny, onto, experts=form).params)


def test_a_float32_model_is_kept_in_float32_and_rounds_to_even(tiny, tmp_path):
    model = published(tiny, dtype="float32")
    odd = jax.random.normal(jax.random.key(0), model.params.embedding.shape)
    model = dataclasses.replace(model, params=model.params.replace(embedding=odd))
    loading.save(model, tmp_path / "saved")
    assert_same(load(tmp_path / "saved", dtype="float32").params, model.params)
    got = load(tmp_path / "saved").params
    assert_same(got, published(tiny).params.replace(embedding=odd.astype(jnp.bfloat16)))


def test_scales_too_large_for_tiles_are_refused(tmp_path):
    model = published("nano")
    down = model.params.layers[1].moe.down
    large = down.replace(scales=down.scales.at[0, 0, 0].set(129))
    layers = [layer.replace(moe=layer.moe.replace(down=large)) if i == 1 else layer for i, layer in enumerate(model.params.layers)]
    loading.save(dataclasses.replace(model, params=model.params.replace(layers=tuple(layers))), tmp_path / "large")
    refused(tmp_path / "large", "layers.1.moe.down.scales has scales above 2\\^1.*pass experts='packed'", experts="tiled")


def test_each_piece_is_a_checkpoint_of_orbax(saved, tiny):
    params = published(tiny).params
    layer = saved / "packed" / "params" / "layers.2"
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), params.layers[2])
    restored = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
        layer, args=ocp.args.PyTreeRestore(item=params.layers[2], restore_args=arguments)
    )
    jax.tree.map(np.testing.assert_array_equal, restored, params.layers[2])


def test_large_arrays_are_stored_in_chunks_that_a_device_reads_alone(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_CHUNK_BYTES", 1 << 10)
    model = published(tiny)
    loading.save(model, tmp_path / "saved")
    handler = ocp.PyTreeCheckpointHandler()
    layer = handler.metadata(tmp_path / "saved" / "params" / "layers.0").tree
    chunks = layer["attention"]["qkv"].storage.chunk_shape, layer["moe"]["gate_up"]["blocks"].storage.chunk_shape
    assert chunks[0][0] == 1 and chunks[1][1] <= 2 * TINY.intermediate_size // 8
    for onto in ("none", "1x8"):
        assert_same(load(tmp_path / "saved", mesh=mesh(onto)).params, published(tiny, onto).params)


def test_a_directory_is_never_overwritten(saved, tiny, tmp_path):
    before = sorted(path.stat().st_mtime_ns for path in (saved / "packed").rglob("*"))
    with pytest.raises(ValueError, match="must not exist yet.*another directory"):
        gptoss_jax.save(published(tiny), saved / "packed")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must not exist yet"):
        loading.save(published(tiny), tmp_path / "file")
    assert before == sorted(path.stat().st_mtime_ns for path in (saved / "packed").rglob("*"))
    (tmp_path / "empty").mkdir()
    loading.save(published(tiny), tmp_path / "empty")
    assert load(tmp_path / "empty").config == TINY and not whole.stopped(tmp_path / "empty")


def test_what_fails_while_it_is_written_leaves_nothing(tiny, tmp_path, monkeypatch):
    params = published(tiny).params
    with pytest.raises(ValueError, match="moe.norm must be float32 \\[96\\]; got float32 \\[95\\]"):
        layers = (*params.layers[:2], params.layers[2].replace(moe=params.layers[2].moe.replace(norm=jnp.ones(95))), params.layers[3])
        saving.save(tmp_path / "out", TINY, params.replace(layers=layers))
    with pytest.raises(ValueError, match="absent: embedding; give all"):
        pieces = [piece for piece in store.split(params).items() if piece[0] != "embedding"]
        saving.write(tmp_path / "out", TINY, pieces, experts="packed", dtype="bfloat16")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(whole.os, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        loading.save(published(tiny), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def largest(directory, pattern):
    return max(directory.glob(pattern), key=lambda path: path.stat().st_size)


def cut(path):
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda params: shutil.rmtree(params / "layers.2"),
        lambda params: largest(params, "layers.1/ocdbt.process_0/d/*").unlink(),
        lambda params: cut(largest(params, "layers.1/ocdbt.process_0/d/*")),
        lambda params: cut(largest(params, "layers.1/d/*")),
        lambda params: (params / "layers.0" / "manifest.ocdbt").unlink(),
        lambda params: (params / "final" / "_METADATA").unlink(),
        lambda params: (params / "final" / "commit_success.txt").unlink(),
        lambda params: (params / "embedding").rename(params / "embedding.orbax-checkpoint-tmp"),
    ],
)
def test_what_is_cut_off_is_refused_before_anything_is_read(copy, damage, monkeypatch):
    damage(copy / "params")
    monkeypatch.setattr(restoring, "Reader", None)
    refused(copy, "must be as they were written; absent or cut off: .*; copy them again")


def test_a_directory_without_its_index_is_a_part_of_one(copy):
    (copy / "params" / "index.json").unlink()
    refused(copy, "must be a whole Orbax directory; its params/index.json, which is written last, is absent")
    partial = copy.with_name("out.partial-00000000")
    copy.rename(partial)
    refused(partial, "convert or copy it again")
    (partial / "params" / "index.json").write_text("{}")
    refused(partial, "must be of version 1")


def test_what_has_changed_in_place_is_refused(copy, saved):
    """Sizes as written, and yet something else: found by Orbax's own checks, or while it is read."""
    manifest = copy / "params" / "layers.0" / "manifest.ocdbt"
    manifest.write_bytes(bytes(manifest.stat().st_size))
    refused(copy, "layers.0 must be a whole Orbax checkpoint; got: .*convert or copy it again")


def test_what_becomes_unreadable_later_is_one_sentence(copy, monkeypatch):
    examine = store.examine

    def examine_and_lose(*arguments):
        found = examine(*arguments)
        cut(largest(copy, "params/layers.1/ocdbt.process_0/d/*"))
        return found

    monkeypatch.setattr(store, "examine", examine_and_lose)
    refused(copy, "layers.1.* in .*layers.1 must be readable; got: .*; copy the directory again")


def test_arrays_that_are_not_those_of_the_config_are_listed(copy):
    def change(**values):
        path = copy / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    change(intermediate_size=32)
    refused(copy, "holds experts of hidden width 64 by its params/index.json, and its config.json says 32; put back")
    change(intermediate_size=64, num_hidden_layers=3, layer_types=list(TINY.layer_types[:3]))
    refused(copy, "15 surplus: layers.3.attention.norm")
    change(num_hidden_layers=5, layer_types=[*TINY.layer_types, "full_attention"], vocab_size=640)
    refused(copy, "15 missing: layers.4.*2 not as they must be: embedding \\(is bfloat16 \\[320, 96\\], must be bfloat16 \\[640, 96\\]\\)")


def test_a_saved_model_says_that_it_is_loaded(saved, capsys):
    load(saved / "packed", progress=True)
    assert "loading packed" in capsys.readouterr().err
    model = load(saved / "packed", mesh=mesh("1x8"))
    assert repr(model).endswith("6 experts packed, bfloat16, no tokenizer, 320 ids, on data=1 x model=8 cpu devices)")
