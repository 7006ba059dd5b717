"""Files of sparse autoencoders: written and read back, older ones, and damaged ones: refused in one sentence that names the file."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gptoss_jax.research import sae

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
ALL = ("standard", "gated", "jumprelu", "topk")


@pytest.fixture
def directory(tiny):
    return tiny.parent / "sae"


@pytest.fixture
def copy(directory, tmp_path):
    return shutil.copytree(directory / "standard", tmp_path / "standard")


def configured(copy, changes, *, without=()):
    """The file with other settings."""
    settings = json.loads((copy / CONFIG).read_text()) | changes
    (copy / CONFIG).write_text(json.dumps({name: value for name, value in settings.items() if name not in without}))


def refused(copy, name, words=None, error=ValueError):
    with pytest.raises(error, match=words) as caught:
        sae.load(copy)
    assert str(copy / name) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ALL)
def test_what_is_saved_is_read_back(kind, directory, tmp_path):
    own = sae.load(directory / kind)
    sae.save(own, tmp_path / "again", model_name="tiny")
    again = sae.load(tmp_path / "again")
    assert jax.tree.structure(own) == jax.tree.structure(again)
    assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (own, again)), strict=True))
    written, theirs = (json.loads((folder / CONFIG).read_text()) for folder in (tmp_path / "again", directory / kind))
    assert written["metadata"]["hook_name"] == own.hook_name == "blocks.1.hook_resid_post"
    assert {name: value for name, value in theirs.items() if name != "metadata"} == {k: v for k, v in written.items() if k != "metadata"}


def test_dtypes(directory, tmp_path):
    own = sae.load(directory / "topk", dtype="bfloat16")
    assert own.w_enc.dtype == own.b_dec.dtype == jnp.bfloat16
    sae.save(own, tmp_path / "half")
    assert sae.load(tmp_path / "half").w_dec.dtype == jnp.bfloat16
    tensors = {name: value.astype(np.float16) for name, value in load_file(directory / "topk" / WEIGHTS).items()}
    save_file(tensors, tmp_path / "half" / WEIGHTS)
    assert sae.load(tmp_path / "half").w_dec.dtype == jnp.float32


def test_what_could_not_be_loaded_is_not_saved(directory, tmp_path):
    own = sae.load(directory / "standard")
    broken = own.replace(b_dec=own.b_dec.at[3].set(jnp.nan))
    for wrong, words in ((broken, "NaN or infinity in b_dec"), (own.replace(heads=1), "heads of an SAE")):
        with pytest.raises(ValueError, match=words):
            sae.save(wrong, tmp_path / "broken")
    assert not list(tmp_path.iterdir())


def test_a_number_of_features_that_no_topk_keeps_is_none(copy, tmp_path):
    configured(copy, {"k": 5})
    sae.save(own := sae.load(copy), tmp_path / "again")
    assert own.k is None


def test_a_folder_that_is_there_is_not_written_over(directory, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="must not exist yet"):
        sae.save(sae.load(directory / "topk"), tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="sae must be a sparse autoencoder; got a dict"):
        sae.save({}, tmp_path / "other")
    with pytest.raises(ValueError, match="model_name must be a text; got 3"):
        sae.save(sae.load(directory / "topk"), tmp_path / "other", model_name=3)
    with pytest.raises(ValueError, match="weights of an SAE must be float32 or .*; got float64"):
        own = sae.load(directory / "topk")
        sae.save(own.replace(w_enc=np.asarray(own.w_enc, np.float64)), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    for dtype in ("int7", "int32", np.int8, 3, jnp.float64):
        with pytest.raises(ValueError, match="dtype must be float32 or bfloat16 or float16; got"):
            sae.load(directory / "topk", dtype=dtype)
    assert (
        sae.load(directory / "topk", dtype=jnp.bfloat16).w_enc.dtype == sae.load(directory / "topk", dtype=np.dtype("bfloat16")).w_enc.dtype
    )


def test_files_of_before_version_6(copy):
    old = {"sae_lens_version": "3.22.1", "hook_name": "blocks.0.hook_resid_pre", "hook_layer": 0, "activation_fn_str": "relu"}
    configured(copy, old | {"normalize_activations": "none"}, without=("metadata", "architecture", "reshape_activations"))
    own = sae.load(copy)
    assert (own.architecture, own.hook_name, own.heads, own.b_dec_first) == ("standard", "blocks.0.hook_resid_pre", False, True)
    configured(
        copy, old | {"hook_name": "blocks.0.attn.hook_z", "apply_b_dec_to_input": False}, without=("metadata", "reshape_activations")
    )
    own = sae.load(copy)
    assert own.heads and not own.b_dec_first
    kept = {
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 5},
        "normalize_activations": False,
        "hook_point": "blocks.2.hook_resid_post",
    }
    configured(copy, kept, without=("metadata", "hook_name"))
    own = sae.load(copy)
    assert (own.architecture, own.k, own.hook_name, own.by_decoder_norm) == ("topk", 5, "blocks.2.hook_resid_post", False)
    configured(copy, {"normalize_activations": True})
    refused(copy, CONFIG, "normalize_activations is 'expected_average_only_in'")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"architecture": "temporal"}, "architecture is 'temporal', must be standard, gated, jumprelu, topk"),
        ({"architecture": 3}, "architecture must be a text"),
        ({"architecture": "x" * 900}, "architecture is 'x"),
        ({"normalize_activations": "expected_average_only_in"}, "SAELens folds it into the weights"),
        ({"normalize_activations": "zscore"}, "normalize_activations is 'zscore'"),
        ({"normalize_activations": ["none"]}, "normalize_activations is"),
        ({"reshape_activations": "hook_q"}, "reshape_activations is 'hook_q'"),
        ({"architecture": "topk"}, "k is None, must be a number of features"),
        ({"architecture": "topk", "k": 129}, "k is 129, must be"),
        ({"architecture": "topk", "k": 0}, "k must be a positive integer"),
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm is true, which only topk has"),
        ({"architecture": "topk", "k": 2.5}, "k must be a positive integer"),
        ({"d_in": 95}, r"W_enc in .* must be \[95, 128\] of .* by its cfg.json; got \[96, 128\]"),
        ({"d_sae": 10**39}, "d_sae must be a positive integer"),
        ({"d_sae": None}, "d_sae is absent"),
        ({"d_in": True}, "d_in must be"),
        ({"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input must be true or false"),
        ({"metadata": {"hook_head_index": 3}}, "hook_head_index is 3"),
        ({"metadata": {"hook_name": 3}}, "hook_name must be a text"),
        ({"metadata": []}, "metadata must be an object"),
        ({"metadata": {}, "activation_fn_str": "tanh-relu"}, "activation_fn is 'tanh-relu', must be relu or topk"),
        ({"metadata": {}, "activation_fn": "topk", "activation_fn_kwargs": {"k": "x"}}, "k must be a positive integer"),
    ],
)
def test_settings_that_are_not_computed_are_refused(copy, changes, words):
    configured(copy, changes)
    with pytest.raises(ValueError, match=words) as caught:
        sae.load(copy)
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", [b"null", b"[]", b"{}", b"", b"[" * 9999, b"\xff", b'{"k": 1, "k": 2}'])
def test_settings_that_are_none_are_refused(copy, text):
    (copy / CONFIG).write_bytes(text)
    refused(copy, CONFIG)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop("W_dec"), "those of a standard SAE; W_dec absent, got"),
        (lambda t: t.update(threshold=np.zeros(128, np.float32)), "got also threshold"),
        (lambda t: t.update(scaling_factor=np.full(128, 2, np.float32)), "no scaling_factor other than 1"),
        (lambda t: t.update(W_enc=t["W_enc"].T.copy()), r"W_enc in .* must be \[96, 128\]"),
        (lambda t: t.update(b_enc=t["b_enc"].astype(np.float64)), "b_enc in .* got .* of F64"),
        (lambda t: t["W_dec"].__setitem__((5, 5), np.nan), "'W_dec' of .* must hold finite numbers; got NaN or infinity"),
        (lambda t: t["b_dec"].__setitem__(0, np.inf), "'b_dec' of .* must hold finite numbers"),
    ],
)
def test_tensors_that_are_none_are_refused(copy, change, words):
    tensors = load_file(copy / WEIGHTS)
    change(tensors)
    save_file(tensors, copy / WEIGHTS)
    refused(copy, WEIGHTS, words)


def test_a_scaling_factor_of_ones_is_none(copy):
    tensors = load_file(copy / WEIGHTS)
    save_file(tensors | {"scaling_factor": np.ones(128, np.float32)}, copy / WEIGHTS)
    assert sae.load(copy).d_sae == 128


def test_files_that_are_cut_short_are_refused(copy):
    whole = (copy / WEIGHTS).read_bytes()
    for data in (whole[:5000], whole[:-1], b"", b"{}", whole + b"\0", b"version https://git-lfs.github.com/spec/v1\n"):
        (copy / WEIGHTS).write_bytes(data)
        refused(copy, WEIGHTS)


def test_what_lies_where_an_sae_should_is_said(directory, copy, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds 4 in its subdirectories; pass one of them, such as .*gated"):
        sae.load(directory)
    with pytest.raises(FileNotFoundError, match="there is no such directory"):
        sae.load(tmp_path / "absent")
    with pytest.raises(ValueError, match="it is a file; pass the directory that holds it"):
        sae.load(copy / WEIGHTS)
    (copy / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="sae_weights.safetensors absent, it holds cfg.json"):
        sae.load(copy)
    for wrong in (None, 3, "", "\0", b"sae"):
        with pytest.raises(ValueError, match="a sparse autoencoder must be named by a path"):
            sae.load(wrong)
