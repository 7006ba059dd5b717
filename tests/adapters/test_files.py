"""PEFT's files, damaged: refused in one sentence that names the file; patterns come to an end."""

import json
import shutil
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gptoss_jax import adapters
from gptoss_jax.adapters.patterns import Patterns
from gptoss_jax.config import TINY

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny / "adapter", tmp_path / "adapter")


def refused(copy, name, words=None):
    with pytest.raises(ValueError, match=words) as caught:
        adapters.load(copy, TINY)
    assert str(copy / name) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_alpha": "x"}, {"lora_alpha": float("nan")}, {"lora_alpha": float("inf")}, {"lora_alpha": 10**400}, {"lora_alpha": [12]},
        {"lora_alpha": True}, {"alpha_pattern": [1]}, {"alpha_pattern": {"(": 1}}, {"alpha_pattern": {"q_proj": None}},
        {"alpha_pattern": {"q_proj": float("nan")}}, {"alpha_pattern": {"a" * 300: 1}}, {"rank_pattern": {"q_proj": 0}}, {"r": -1},
        {"use_rslora": "yes"}, {"peft_type": ["LORA"]}, {"peft_type": "X" * 5000}, {"bias": {}}, {"x" * 5000: "y" * 5000},
        {"init_lora_weights": [[1]]}, {"peft_version": 0.19},
    ],
)  # fmt: skip
def test_settings_of_other_types_are_refused(copy, changes):
    (copy / CONFIG).write_text(json.dumps(json.loads((copy / CONFIG).read_text()) | changes))
    refused(copy, CONFIG)


@pytest.mark.parametrize("text", [b"null", b"[]", b"{}", b"", b"[" * 9999, b"\xff", b"9" * 5000, b'{"r": 1, "r": 2}'])
def test_settings_that_are_none_are_refused(copy, text):
    (copy / CONFIG).write_bytes(text)
    refused(copy, CONFIG)


def test_tensors_that_are_none_are_refused(copy):
    whole = (copy / WEIGHTS).read_bytes()
    for data in (whole[:5000], whole[:-1], b"", b"{}", whole + b"\0"):
        (copy / WEIGHTS).write_bytes(data)
        refused(copy, WEIGHTS, "is cut short or damaged|is not a safetensors file")
    (copy / WEIGHTS).unlink()
    (copy / WEIGHTS).mkdir()
    refused(copy, WEIGHTS, "must be a file that can be read")


@pytest.mark.parametrize(
    "tensor, words",
    [
        ({Q.format("A"): np.zeros(96, np.float32)}, "must be matrices of BF16, F16, F32; 1 are not: base_model.*lora_A"),
        (
            {Q.format("A"): np.zeros((0, 96), np.float32), Q.format("B"): np.zeros((640, 0), np.float32)},
            "must be matrices of .*; 2 are not",
        ),
        ({Q.format("A"): np.zeros((3, 96), np.int32)}, "must be matrices"),
        ({Q.format("A"): np.zeros((3, 96), np.float64)}, "must be matrices"),
        ({Q.format("A"): np.zeros((3, 95), np.float32)}, "layers.0.q_proj needs a"),
        ({Q.format("A").replace("layers.0", "layers.9" * 3): np.zeros((3, 96), np.float32)}, "1 are not: "),
        (
            {Q.format(side).replace("layers.0", "layers.77"): np.zeros((3, 3), np.float32) for side in "AB"},
            "has names layers.0 to layers.3",
        ),
        ({Q.format("A").replace("layers.0", "layers." + "9" * 5000): np.zeros((3, 96), np.float32)}, "1 are not: "),
        ({Q.format("A").removeprefix("base_model.model."): np.zeros((3, 96), np.float32)}, "must have one lora_A in .*; got two"),
        ({Q.format("A"): None}, "must have lora_A and lora_B in .*; got only lora_B"),
    ],
)
def test_tensors_of_other_shapes_types_and_names_are_refused(copy, tensor, words):
    tensors = load_file(copy / WEIGHTS) | tensor
    save_file({name: value for name, value in tensors.items() if value is not None}, copy / WEIGHTS)
    refused(copy, WEIGHTS, words)


@pytest.mark.quick("alike")
@pytest.mark.parametrize(
    "pattern",
    [r"(([a-z]|[a-y]|\.)+)+[0-9]{9}", r"(?:(?:\S?){30}){30}\s", r"((\S)|(\S)|\S\S)*\s", r"(.*)*x|(\w|\w\w|\.)*!{2,3}[0-9_]{7}"],
    ids=["alike", "counts", "doubled", "either"],
)
def test_patterns_come_to_an_end(copy, pattern):
    (copy / CONFIG).write_text(json.dumps(json.loads((copy / CONFIG).read_text()) | {"alpha_pattern": {pattern: 3}}))
    began = time.thread_time()
    try:
        adapters.load(copy, TINY)
    except ValueError as error:
        assert "alpha_pattern of" in str(error) and "must match within 1 s" in str(error) and str(copy / CONFIG) in str(error)
    assert time.thread_time() - began < 20


@pytest.mark.parametrize(
    "pattern", ["(", "[[a]", "q{e<=1}", "(?R)", r"\p{L}", "a{99999999999999}", "(?P<n>x)(?P<n>y)", "\\", "(?V1)q", "(" * 250]
)
def test_what_is_no_expression_of_pythons_is_refused(tmp_path, pattern):
    with pytest.raises(ValueError, match="alpha_pattern of .* must be of regular expressions; .* write the modules' names"):
        Patterns({pattern: 1.0}, tmp_path)


def test_patterns_match_as_peft_matches(tmp_path):
    module = "model.layers.11.self_attn.q_proj"
    for pattern, matches in {
        "q_proj": True, "proj": False, "self_attn.q_proj": True, r"self_attn\.q_proj": True, "layers.1.self_attn.q_proj": False,
        r"model\.layers\.11\.self_attn\.q_proj": True, "layers.[0-9]+.*": True, "(?i)Q_PROJ": True, r"q_proj$": True, "x|q_proj": True,
        r"layers\.(1{2}|2{1,})\..*": True, r"\w{1,9}": True,
    }.items():  # fmt: skip
        assert Patterns({pattern: 5.0}, tmp_path).alpha(module, 1.0) == (5.0 if matches else 1.0), pattern
    assert Patterns({"x": 2.0, "q_proj": 3.0, "self_attn.q_proj": 4.0}, tmp_path).alpha(module, 1.0) == 3.0


def test_as_many_patterns_as_a_large_model_has_are_in_time(tmp_path):
    modules = [f"model.layers.{i}.self_attn.{x}_proj" for i in range(36) for x in "qkvo"]
    patterns = Patterns({module.replace(".", r"\."): float(i + 1) for i, module in enumerate(modules)}, tmp_path)
    assert [patterns.alpha(module, 0.0) for module in modules] == [i + 1 for i in range(len(modules))]
