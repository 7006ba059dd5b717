"""Files that describe a checkpoint, damaged at random: each loads, or is refused in one sentence that names it."""

import json
from pathlib import Path
import random
import shutil

from damages import damaged
import pytest

from gptoss_jax import adapters
from gptoss_jax.config import TINY, Config
from gptoss_jax.weights import layouts, loading, matching, safetensors
from gptoss_jax.weights.orbax import store

DAMAGES = 2000
LONGEST = 12_000  # characters of a sentence; lists of twenty names are the longest
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny checkpoint, Hugging Face layout only, to damage."""
    return Path(shutil.copytree(tiny, tmp_path / "tiny", ignore=shutil.ignore_patterns("original", "*.npz")))


def tensors(directory):
    stored = safetensors.scan(directory)
    matching.check(layouts.tensors(layouts.sources(TINY, "huggingface")), stored, directory)


def try_all(path, read, write, rng, count):
    """How many of so many damages are refused."""
    refused = 0
    whole = path.read_bytes()
    for _ in range(count):
        write(whole, rng)
        try:
            read()
        except (ValueError, FileNotFoundError) as error:
            refused += 1
            message = str(error)
            assert path.name in message, message
            assert "\n" not in message and len(message) < LONGEST
            message.encode()
    path.write_bytes(whole)
    read()
    return refused


def json_written(path):
    return lambda whole, rng: path.write_bytes(damaged(whole, rng))


def header_written(path):
    """Damages the header, and its length now and then; the values stay."""

    def write(whole, rng):
        end = 8 + int.from_bytes(whole[:8], "little")
        text = damaged(whole[8:end], rng)
        length = len(text) if rng.random() < 0.9 else rng.choice((0, 1, len(text) + 1, 2**31, 2**63, 2**64 - 1))
        path.write_bytes(length.to_bytes(8, "little") + text + whole[end:])

    return write


KINDS = ("config.json", "generation_config.json", "model.safetensors.index.json", "adapter_config.json", "header", "index.json")


def case(kind, copy, tiny):
    """What is damaged, what reads it, and how it is damaged."""
    if kind == "config.json":
        path = copy / kind
        return path, lambda: hash(Config.from_json(path)), json_written(path)
    if kind == "generation_config.json":
        path = copy / kind
        path.write_text(json.dumps({"bos_token_id": 199998, "do_sample": True, "eos_token_id": [319, 3, 7], "pad_token_id": 5}))
        return path, lambda: loading._config(copy), json_written(path)
    if kind == "model.safetensors.index.json":
        path = copy / kind
        return path, lambda: safetensors.scan(copy), json_written(path)
    if kind == "adapter_config.json":
        home = copy / "adapter"
        return home / kind, lambda: adapters.load(home, TINY), json_written(home / kind)
    if kind == "header":
        path = copy / SHARD
        return path, lambda: tensors(copy), header_written(path)
    loading.save(loading.load(tiny, experts="packed", progress=False), copy / "saved")
    path = copy / "saved" / "params" / kind
    return path, lambda: store.examine(copy / "saved", TINY), json_written(path)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_random_damages_load_or_are_refused_by_name(kind, copy, tiny):
    refused = try_all(*case(kind, copy, tiny), random.Random(kind), DAMAGES)
    assert refused > DAMAGES // 4


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("adapter_config.json", "index.json")])
def test_some_random_damages(kind, copy, tiny):
    try_all(*case(kind, copy, tiny), random.Random(f"some {kind}"), 60)
