"""Every test runs on the CPU without a network, with JAX's strictest settings."""

import gc
import os
from pathlib import Path
import re

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS") or "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
# Threads of XLA's CPU backend: in the interpreter of GPU kernels, warpgroups wait for each other, each in a thread of its own.
os.environ.setdefault("NPROC", "32")

import jax
import pytest
from small_vocabulary import small_vocabulary

from gptoss_jax.engine.device import lowered
from gptoss_jax.tokenizer import SentencePiece, Tokenizer, o200k

jax.config.update("jax_num_cpu_devices", 8)  # for meshes; what names no mesh runs on the first
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

DATA = Path(__file__).parent / "data"
FOLDER, lowered._folder = lowered._folder, lambda: None  # a test that changes the model must not find another's program, nor leave its own


DEFAULT = "not thorough and not slow"  # as in pyproject.toml


def pytest_configure(config: pytest.Config) -> None:
    """Whoever names a test by its id gets it, whatever its tier."""
    if config.option.markexpr == DEFAULT and any("::" in str(argument) for argument in config.args):
        config.option.markexpr = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The mark `quick` names the cases of a test that are in the quick tier: the others are thorough. What is slow is in no other tier."""
    if "slow" not in config.option.markexpr and config.option.markexpr:
        slow = [item for item in items if item.get_closest_marker("slow") is not None]
        items[:] = [item for item in items if item.get_closest_marker("slow") is None]
        config.hook.pytest_deselected(items=slow)
    seen: dict[tuple, list[bool]] = {}
    for item in items:
        if re.search(" at 0x[0-9a-f]{9}", item.nodeid):  # two processes must find the same tests
            raise pytest.UsageError(f"{item.nodeid}: a test's id must not hold an address; give that case an id.")
        if (mark := item.get_closest_marker("quick")) is None:
            continue
        named = item.callspec.id in mark.args
        seen.setdefault((item.path, item.originalname, mark.args), []).append(named)
        if not named and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.thorough)
    for (path, name, cases), found in seen.items():
        if len(found) > 1 and sum(found) < len(cases):
            raise pytest.UsageError(f"{path.name}: {name} must have the cases that it calls quick, {', '.join(cases)}.")


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """Compiles a program once in a run, and lets go of what a file has loaded.

    Test workers and the processes that tests start share JAX's cache on disk, in a folder of this run; a file may have turned it off.
    XLA's CPU backend maps memory some fifty times for a program, and Linux gives a process 65,530 maps: one that keeps the programs of
    most tests dies of a segmentation fault while it compiles.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "compiled"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def keep_lowered(monkeypatch):
    """Lets engines keep lowered programs on disk, as they do where JAX keeps compiled ones."""
    monkeypatch.setattr(lowered, "_folder", FOLDER)


@pytest.fixture(scope="session")
def tiny() -> Path:
    """A random checkpoint in both published layouts, with golden logits of the reference implementations."""
    return DATA / "tiny"


@pytest.fixture
def small() -> SentencePiece:
    """A small SentencePiece vocabulary."""
    return small_vocabulary()


@pytest.fixture(params=["o200k", "small"])
def tokenizer(request, small) -> Tokenizer:
    """Both kinds of vocabulary in turn."""
    return o200k() if request.param == "o200k" else small
