"""Every field of every JSON file beside the weights, with values that it cannot have: read as they are, or refused in the promised form."""

from collections.abc import Callable, Iterator
import copy
import dataclasses
import json
from pathlib import Path
import random
import shutil
from typing import Any

import pytest

from checkpoints import inspect
import gptoss_jax as gj
from gptoss_jax import adapters
from gptoss_jax.config import TINY
from gptoss_jax.plan import setting
from gptoss_jax.weights import loading

VALUES = (
    None, True, "16", "", "x" * 3000, "\ud800", ["x"], [], [[1]] * 50, {}, {"a": {}}, -1, 0, 1.5, 1e-300, 10**30, 10**400, float("nan"),
    float("inf"),
)  # fmt: skip
TEXTS = (
    b"", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"null", b"[]", b"5", b'"x"', b"true", b"NaN", b'{"a": NaN}', b'{"a": 1e999}',
    b"\0" * 99, b"\x80\x02}q\x00.", b"PK\x03\x04" + b"\0" * 50, b"[" * 100_000, b"{}{}", b'{"a": 1, "a": 2}', b"{", b"\xff\xfe",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
)  # fmt: skip
OF_PYTHON = ("Error", "NoneType", "Traceback", "object has no attribute", " object at 0x", "<class", "dict", "'float'")
MANY = 20  # fields of an object beyond which three stand for all: names of tensors, or of files


@dataclasses.dataclass(frozen=True)
class Case:
    """A file, what reads it before anything else of its size, and further fields that such a file may have."""

    file: str
    read: Callable[[Path], Any]
    more: tuple[str, ...] = ()


def read_adapter(home: Path):
    adapters.load(home / "adapter", TINY)


def examine(name: str) -> Callable[[Path], Any]:
    """`load`, up to where it would read weights."""
    return lambda home: loading._examine(home / name, loading._config(home / name))


ROPE, OTHERS = ("rope_parameters", "quantization_config", "hidden_act"), ("tie_word_embeddings", "architectures", "attention_bias")
ADAPTER = ("peft_version", "use_rslora", "rank_pattern", "alpha_pattern", "target_parameters", "bias", "use_dora", "init_lora_weights")
CASES = {
    "config, loaded": Case("model/config.json", examine("model"), (*ROPE, *OTHERS)),
    "config, planned": Case("model/config.json", lambda home: setting.read_config(str(home / "model")), ROPE),
    "original config": Case("model/original/config.json", examine("model/original")),
    "generation config": Case("model/generation_config.json", examine("model"), ("temperature",)),
    "index, loaded": Case("model/model.safetensors.index.json", examine("model")),
    "index, inspected": Case("model/model.safetensors.index.json", lambda home: inspect.table(str(home / "model"))),
    "adapter": Case("adapter/adapter_config.json", read_adapter, ADAPTER),
    "Orbax config": Case("saved/config.json", examine("saved")),
    "Orbax index, restored": Case("saved/params/index.json", examine("saved")),
    "Orbax index, inspected": Case("saved/params/index.json", lambda home: inspect.table(str(home / "saved"))),
}


@pytest.fixture(scope="module")
def home(tiny, tmp_path_factory) -> Path:
    """A checkpoint of each layout, and an adapter."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(tiny, home / "model", ignore=shutil.ignore_patterns("*.npz", "adapter*"))
    shutil.copytree(tiny / "adapter", home / "adapter")
    (home / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "do_sample": True}))
    gj.save(gj.load(tiny, progress=False, experts="packed"), home / "saved")
    return home


def fields(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where every value is, further in too; of a long list the first two, of a large object the first three."""
    if isinstance(value, dict):
        names = list(value)[: 3 if len(value) > MANY else MANY]
    else:
        names = range(min(2, len(value))) if isinstance(value, list) else ()
    for name in names:
        yield (*path, name)
        yield from fields(value[name], (*path, name))


def damages(text: bytes, more: tuple[str, ...]) -> Iterator[bytes]:
    """The text with one field changed or left out, and texts that are no such file at all."""
    yield from TEXTS
    whole = json.loads(text)
    for *outer, name in [*fields(whole), *((one,) for one in more)]:
        for value in (*VALUES, KeyError):
            changed = copy.deepcopy(whole)
            inner = changed
            for each in outer:
                inner = inner[each]
            if value is not KeyError:
                inner[name] = value
            elif isinstance(inner, dict):
                inner.pop(name, None)
            yield json.dumps(changed).encode()


def try_them(case: Case, home: Path, texts: list[bytes]) -> int:
    """How many are refused; all of these in the promised form."""
    file, refused = home / case.file, 0
    before = file.read_bytes()
    try:
        for text in texts:
            file.write_bytes(text)
            try:
                case.read(home)
            except (ValueError, FileNotFoundError) as error:
                refused += 1
                said = str(error)
                assert type(error) in (ValueError, FileNotFoundError), text[:200]
                assert str(file) in said or (str(file.parent) in said and file.name in said), said
                assert "\n" not in said and said.endswith(".") and len(said) < 12_000, said
                said.encode()
                for word in OF_PYTHON:
                    assert word not in said, said
                cause = error.__cause__
                assert not isinstance(cause, KeyError | TypeError | AttributeError | IndexError), cause
    finally:
        file.write_bytes(before)
    case.read(home)
    return refused


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_every_field_of_every_file(name, home):
    texts = list(damages((home / CASES[name].file).read_bytes(), CASES[name].more))
    assert try_them(CASES[name], home, texts) > len(texts) // 3


@pytest.mark.parametrize("name", ["config, loaded", "generation config", "index, loaded", "adapter", "Orbax index, restored"])
def test_some_fields_of_some_files(name, home):
    texts = list(damages((home / CASES[name].file).read_bytes(), CASES[name].more))
    assert try_them(CASES[name], home, random.Random(name).sample(texts, 25)) > 0
