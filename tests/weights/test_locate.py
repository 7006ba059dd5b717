"""What a checkpoint may be called, and where it is looked for."""

from pathlib import Path
import shutil

import huggingface_hub
from huggingface_hub.utils import filter_repo_objects
import pytest

from gptoss_jax.config import TINY
from gptoss_jax.weights import loading, locate


def refused(path, words):
    with pytest.raises(FileNotFoundError, match=words) as caught:
        loading.load(path, progress=False)
    assert "\n" not in str(caught.value)


def test_nano_is_bundled_in_a_clone_and_in_a_wheel(tiny, tmp_path, monkeypatch):
    assert (locate.checkpoint("nano") / "config.json").is_file()
    package = tmp_path / "site-packages" / "gptoss_jax"
    shutil.copytree(tiny, package / "nano")
    monkeypatch.setattr(locate, "__file__", str(package / "weights" / "locate.py"))
    assert locate.checkpoint("nano") == package / "nano"
    shutil.rmtree(package / "nano")
    with pytest.raises(FileNotFoundError, match="install gptoss-jax again"):
        locate.checkpoint("nano")


def test_a_name_on_the_hub_is_fetched_without_duplicates(tiny, monkeypatch):
    asked = {}

    def fetch(name, **options):
        asked.update(options, name=name)
        return str(tiny)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert loading.load("openai/gpt-oss-20b", progress=False).config == TINY and asked.pop("name") == "openai/gpt-oss-20b"
    wanted = ["config.json", "generation_config.json", "model-00000-of-00002.safetensors", "model.safetensors.index.json"]
    others = ["original/config.json", "original/model.safetensors", "metal/model.bin", "README.md", "chat_template.jinja", "LICENSE"]
    assert list(filter_repo_objects(wanted + others, **asked)) == wanted


def test_a_name_that_cannot_be_fetched_says_how(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refused("openai/gpt-oss-none", "hf download openai/gpt-oss-none")


@pytest.mark.parametrize("whole", [True, False])
def test_a_copy_in_the_hubs_cache_is_enough(whole, tiny, tmp_path, monkeypatch, caplog):
    """Whatever fails beside it: the network, a proxy, the size of a file, a disk that is full. A part of a copy is not."""
    copy = Path(shutil.copytree(tiny, tmp_path / "copy", ignore=shutil.ignore_patterns("original", "adapter*")))
    if not whole:
        (copy / "model-00001-of-00002.safetensors").unlink()

    def fetch(name, local_files_only=False, **_):
        if not local_files_only:
            raise OSError(28, "No space left on device")
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    if whole:
        assert locate.checkpoint("openai/gpt-oss-20b") == copy and "its cache's copy is loaded" in caplog.text
    else:
        refused("openai/gpt-oss-20b", "No space left on device")


def test_a_wrong_path_is_no_name_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for path in ("models/none", "./none", "/none/none", "none", tmp_path / "none", "a/b/c", "~none/x"):
        refused(path, "no checkpoint directory")
