"""The reader of JSON that others wrote: what is no such file is one sentence, at once and in little memory."""

import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

from gptoss_jax.config import Config
from gptoss_jax.config.fields import Field, Flag, Many, Number, Text, Whole, read_json, take

FILES = {
    "deep": b"[" * 100_000,
    "deep and closed": b"[" * 500 + b"]" * 500,
    "five thousand digits": b'{"vocab_size": ' + b"9" * 5000 + b"}",
    "no UTF-8": b'{"model_type": "\xff"}',
    "half a surrogate pair": b'{"model_type": "\\ud83d"}',
    "a surrogate for a name": b'{"\\udc00": 1}',
    "twice": b'{"model_type": "gpt_oss", "model_type": "llama"}',
    "twice, further in": b'{"rope_scaling": {"factor": 1, "factor": 2}}',
    "two values": b"{}{}",
    "nothing": b"",
    "enormous": b" " * (1 << 20) + b"{}",
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_such_json_is_refused_by_its_path(tmp_path, name):
    path = tmp_path / "config.json"
    path.write_bytes(FILES[name])
    with pytest.raises(ValueError, match="must be JSON") as caught:
        Config.from_json(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    pipe, folder, circle, long = (tmp_path / name for name in ("pipe", "folder", "circle", "x" * 5000))
    os.mkfifo(pipe)
    folder.mkdir()
    circle.symlink_to(circle)
    for path in (pipe, folder, circle, long, Path("/dev/zero"), tmp_path / "a\0b"):
        with pytest.raises(ValueError, match="must be a file") as caught:
            read_json(path)
        assert str(path) in str(caught.value)
    for path in (tmp_path / "config.json", pipe / "config.json"):
        with pytest.raises(FileNotFoundError, match=r"needs config\.json; there is no .*config\.json"):
            read_json(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_must_not_be_read_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    path.chmod(0)
    with pytest.raises(ValueError, match="must be a file that can be read; got: 'Permission denied'"):
        read_json(path)


def test_every_type_says_what_it_must_be():
    fields = {
        "whole": Whole(0, 9, default=4), "positive": Whole(1, 9), "number": Number(10.0), "signed": Number(10.0, positive=False),
        "flag": Flag(default=False), "text": Text(), "choice": Text(("a", "b")), "list": Many(Whole(0, 9), "digits", most=3),
        "object": Many(Many(Flag(), "flags", most=2), "lists of flags", most=3, named=True), "any": Field(),
    }  # fmt: skip
    assert take({"any": [None], "flag": None}, fields, "F") == dict.fromkeys(fields) | {"whole": 4, "flag": False, "any": [None]}
    good = {
        "whole": 0,
        "positive": 9,
        "number": 1,
        "signed": -2.5,
        "flag": True,
        "text": "",
        "choice": "b",
        "list": [1, 2],
        "object": {"x": [True]},
    }
    assert take(good | {"more": 5}, fields, "F") == good | {"any": None}
    bad = {
        "whole": (-1, 10, 1.0, True, "1", 10**400), "positive": (0,), "number": (0, 10.1, float("nan"), float("inf"), 10**400, True),
        "signed": (-11, float("-inf")), "flag": (0, "true"), "text": (5, "x" * 1001), "choice": ("c", ["a"]),
        "list": ([1, 10], [1] * 4, {"a": 1}, 5),
        "object": ({"x": [1]}, {"x": True}, [[True]], {"x": [True] * 3}, dict.fromkeys("abcd", [])),
    }  # fmt: skip
    for name, values in bad.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"F must hold values that it can have; {name} must .*, got ") as caught:
                take({name: value}, fields, "F")
            assert len(str(caught.value)) < 500
    with pytest.raises(ValueError, match="whole must be .*got 'x'; flag must be true or false, got 5; download"):
        take({"flag": 5, "whole": "x"}, fields, "F")
    with pytest.raises(ValueError, match="F must hold a JSON object; got a list"):
        take([], fields, "F")


_LIMITED = """
import json, resource, sys
from gptoss_jax.config import Config
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
values = json.loads(open(sys.argv[1]).read())
for name in ("num_hidden_layers", "vocab_size", "num_experts", "sliding_window", "initial_context_length", "head_dim"):
    for value in (10**9 * 2, 10**18, 10**300, 1 << 62):
        try:
            Config.from_dict(values | {name: value}, "FILE")
        except ValueError as error:
            assert "FILE" in str(error), error
        else:
            raise SystemExit(f"{name} of {value} was accepted")
"""


def test_numbers_without_measure_are_refused_before_memory_is_spent(tiny):
    command = [sys.executable, "-c", _LIMITED, str(tiny / "original" / "config.json")]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("changes", [
    {"architectures": 5}, {"architectures": "GptOssForCausalLM"}, {"quantization_config": "x"},
    {"quantization_config": {"quant_method": [1]}},
    {"layer_types": [["sliding_attention"]] * 4}, {"layer_types": {"0": "full_attention"}}, {"rms_norm_eps": 10**400},
    {"rms_norm_eps": 2.0},
    {"rope_theta": float("inf")}, {"rope_theta": "1e400"}, {"eos_token_id": [[1]]}, {"eos_token_id": -1},
    {"eos_token_id": list(range(100))},
    {"max_position_embeddings": 0}, {"max_position_embeddings": 1e9}, {"rope_scaling": ["yarn"]}, {"tie_word_embeddings": "no"},
    {"hidden_act": 1}, {"model_type": ["gpt_oss"]}, {"rope_scaling": {"rope_type": "yarn", "factor": 4, "attention_factor": 10**400}},
    {"rope_scaling": {"rope_type": {}, "factor": 4.0}}, {"num_local_experts": None, "num_experts": 1e400},
    {"attention_bias": "x"}, {"attention_bias": 10**30}, {"attention_dropout": []}, {"attention_dropout": -2},
    {"initial_context_length": "x"}, {"initial_context_length": -1}, {"experts_per_token": "x"}, {"num_experts": 0},
])  # fmt: skip
def test_fields_of_other_types_are_refused_by_the_files_name(tiny, changes, tmp_path):
    values = json.loads((tiny / "config.json").read_text()) | changes
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    for read, named in ((lambda: Config.from_dict(values), "config.json"), (lambda: Config.from_json(path), str(path))):
        with pytest.raises(ValueError) as caught:
            read()
        assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("factor", [1e400, float("nan"), 10**400, 0, -1.0, True])
def test_a_context_that_follows_from_no_number(tiny, factor):
    values = json.loads((tiny / "config.json").read_text())
    values.pop("max_position_embeddings")
    values["rope_scaling"]["factor"] = factor
    with pytest.raises(ValueError, match="rope_factor must be a positive number"):
        Config.from_dict(values)
