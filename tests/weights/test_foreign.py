"""What lies where a checkpoint or an adapter should: each kind is named, with what to do about it."""

from pathlib import Path
import shutil

import jax
import pytest
from small_model import small_model

import gptoss_jax as gj
from gptoss_jax import adapters
from gptoss_jax.config import TINY
from gptoss_jax.weights import loading, locate

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
SHARD = "model-00001-of-00002.safetensors"


def refused(read, *words):
    """The sentence in which something is refused, with all of these words."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read()
    text = str(caught.value)
    assert type(caught.value) in (ValueError, FileNotFoundError) and "\n" not in text and len(text) < 1000 and text.endswith(".")
    text.encode()
    for word in words:
        assert word in text, text


def folder(tmp_path, *files) -> Path:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_an_adapter_is_no_checkpoint(tiny, tmp_path):
    both = Path(shutil.copytree(tiny / "adapter", tmp_path / "both"))
    shutil.copy(tiny / "config.json", both)  # as trainers put it there
    pickled = folder(tmp_path / "pickled", "adapter_config.json", "adapter_model.bin")
    for directory in (tiny / "adapter", both, pickled):
        refused(lambda one=directory: gj.load(one), str(directory), "it holds a LoRA adapter", "adapters.load", "adapters.attach")
    merged = Path(shutil.copytree(tiny, tmp_path / "merged", ignore=shutil.ignore_patterns("original", "*.npz", "adapter*")))
    shutil.copy(tiny / "adapter" / "adapter_config.json", merged)
    assert locate.checkpoint(merged) == merged  # weights are there: that file tells of what was merged


def test_a_checkpoint_is_no_adapter(tiny, tmp_path):
    load = lambda path: lambda: adapters.load(path, TINY)
    refused(load(tiny), "must be a directory with adapter_config.json", "it holds a checkpoint; load that with gptoss_jax.load")
    nested = shutil.copytree(tiny / "adapter", tmp_path / "several" / "default").parent
    refused(load(nested), f"such as {nested / 'default'}")
    refused(load(tmp_path / "none"), "there is no such directory")
    refused(load(tiny / "adapter" / "adapter_model.safetensors"), "it is a file; pass the directory that holds it")
    refused(load(folder(tmp_path / "old", "adapter_config.json", "adapter_model.bin")), "absent, it holds", "safe_serialization=True")
    refused(lambda: adapters.load(tiny / "adapter", {"hidden_size": 96}), "config must be", "pass model.config")


@pytest.mark.parametrize(
    "files, words",
    [
        (["model.gguf"], "it holds model.gguf: GGUF is not read here"),
        (["config.json", "pytorch_model-00001-of-00002.bin"], "PyTorch's pickled files are not read"),
        (["consolidated.00.pth"], "PyTorch's pickled files are not read"),
        (["_CHECKPOINT_METADATA", "manifest.ocdbt", "d/0"], "an Orbax checkpoint of another program"),
        (["one/model.safetensors"], "the checkpoint is in {}/one; pass that directory"),
        (["snapshots/abc/model.safetensors", "refs/main"], "the checkpoint is in {}/snapshots/abc; pass that directory"),
        (["a/params/index.json", "b/model.safetensors"], "the checkpoint is in {0}/a and in {0}/b; pass that directory"),
        (["config.json"], "it holds config.json; download one with `hf download"),
        (["lora/adapter_model.safetensors", "lora/adapter_config.json"], "it holds lora; download one"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_else_there_may_be(tmp_path, files, words):
    directory = folder(tmp_path / "x", *files)
    refused(lambda: gj.load(directory), f"{directory} must hold the safetensors files", words.format(directory))


def test_the_inside_of_an_orbax_directory(tmp_path):
    directory = folder(tmp_path / "x", "config.json", "params/index.json", "params/layers.0/_METADATA")
    for inside in ("params", "params/layers.0"):
        refused(lambda inside=inside: gj.load(directory / inside), f"the inside of an Orbax directory; pass {directory}.")


def test_files(tmp_path):
    directory = folder(tmp_path / "x", "m.gguf", "m.pt", "m.safetensors")
    for name, words in (("m.gguf", "GGUF is not read"), ("m.pt", "pickled files are not read"), ("m.safetensors", "pass the directory")):
        refused(lambda name=name: gj.load(directory / name), f"a checkpoint is a directory; got the file {directory / name}", words)


@pytest.mark.parametrize("path", [None, 5, b"nano", [], "", "a\0b", "x" * 5000, "\ud800", object()], ids=lambda path: repr(path)[:9])
def test_what_is_no_path(path, tiny):
    refused(lambda: gj.load(path), "a checkpoint must be named by a path; got ")
    refused(lambda: adapters.load(path, TINY), "an adapter must be named by a path; got ")
    refused(lambda: adapters.save(adapters.load(tiny / "adapter", TINY), path), "what is written must be named by a path; got ")


def test_what_cannot_be_made(tmp_path, tiny):
    folder(tmp_path, "file")
    refused(lambda: adapters.save(adapters.load(tiny / "adapter", TINY), tmp_path / "file" / "out"), "can be made; got: Not a directory")


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "model.safetensors.index.json", SHARD, "tokenizer.model", "adapter/adapter_config.json",
     "adapter/adapter_model.safetensors"],
)  # fmt: skip
def test_a_pointer_of_git_lfs_is_told_from_the_file(tiny, tmp_path, name):
    copy = Path(shutil.copytree(tiny, tmp_path / "tiny", ignore=shutil.ignore_patterns("original", "*.npz")))
    (copy / name).write_bytes(POINTER)
    read = (lambda: adapters.load(copy / "adapter", TINY)) if "adapter" in name else lambda: loading.load(copy, progress=False)
    refused(read, str(copy / name), "git-lfs pointer", "run `git lfs pull` there")


@pytest.mark.parametrize("odd", [None, True, 5, "x", [], {"a": 1}, b"x", object()], ids=lambda odd: repr(odd)[:9])
def test_what_is_no_model_adapter_mesh_or_config(odd, tiny, tmp_path):
    model, adapter = small_model(), adapters.load(tiny / "adapter", TINY)
    refused(lambda: adapters.attach(odd, model.config, adapter), "params must be a model's parameters; got a ")
    refused(lambda: adapters.merge(model.params, odd, adapter), "config must be the geometry of a model; got a ")
    refused(lambda: gj.save(odd, tmp_path / "x"), "model must be a Model")
    refused(lambda: gj.Model(odd, model.params, None), "config of a model must be its Config; got a ")
    refused(lambda: gj.Model(model.config, odd, None), "params of a model must be its Params; got a ")
    if odd != []:
        refused(lambda: adapters.attach(model.params, model.config, odd), "an adapter must be a dictionary of names and Factors; got a ")
        refused(lambda: adapters.save(odd, tmp_path / "x"), "an adapter must be a dictionary of names and Factors; got a ")
    if not isinstance(odd, str):
        refused(lambda: gj.Config.from_json(odd), "a file must be named by a path; got a ")
    if odd is not None:
        refused(lambda: gj.load(tiny, mesh=odd), "mesh must be a jax.sharding.Mesh; got ")
        refused(lambda: gj.mesh(devices=odd), "devices must be some of jax.devices()")
    assert not list(tmp_path.iterdir())


def test_parameters_that_are_gone():
    model = small_model()
    gone = jax.numpy.array(model.params.norm)
    gone.delete()
    gone = gj.Model(model.config, model.params.replace(norm=gone), None)
    refused(lambda: gj.LLM(gone, slots=2, context=96), "norm is deleted", "load the model again")
