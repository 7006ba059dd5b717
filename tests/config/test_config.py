"""Config from both published config.json files, and what it refuses."""

import copy
import dataclasses
import json

import pytest

from gptoss_jax.config import GPT_OSS_20B, GPT_OSS_120B, TINY, Config

# As published by OpenAI in gpt-oss-20b, without what no engine reads.
PUBLISHED = {
    "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "eos_token_id": 200002,
    "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880, "initial_context_length": 4096,
    "initializer_range": 0.02, "intermediate_size": 2880, "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64, "num_experts_per_tok": 4,
    "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": False, "pad_token_id": 199999,
    "quantization_config": {"modules_to_not_convert": ["lm_head"], "quant_method": "mxfp4"}, "rms_norm_eps": 1e-05,
    "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
                     "rope_type": "yarn", "truncate": False},
    "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0, "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0", "use_cache": True, "vocab_size": 201088,
}  # fmt: skip
ORIGINAL = {
    "num_hidden_layers": 36, "num_experts": 128, "experts_per_token": 4, "vocab_size": 201088, "hidden_size": 2880,
    "intermediate_size": 2880, "swiglu_limit": 7.0, "head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8,
    "sliding_window": 128, "initial_context_length": 4096, "rope_theta": 150000, "rope_scaling_factor": 32.0, "rope_ntk_alpha": 1,
    "rope_ntk_beta": 32,
}  # fmt: skip


def changed(**changes):
    """PUBLISHED with values replaced; None removes one; rope__x is a key of rope_scaling."""
    values = copy.deepcopy(PUBLISHED)
    for name, value in changes.items():
        place = values["rope_scaling"] if name.startswith("rope__") else values
        name = name.removeprefix("rope__")
        place.pop(name, None)
        if value is not None:
            place[name] = value
    return values


def test_presets_are_the_published_files():
    assert Config.from_dict(PUBLISHED) == GPT_OSS_20B
    assert Config.from_dict(ORIGINAL) == GPT_OSS_120B
    assert (
        dataclasses.replace(GPT_OSS_20B, num_hidden_layers=36, num_local_experts=128, layer_types=GPT_OSS_120B.layer_types) == GPT_OSS_120B
    )


def test_both_files_of_one_checkpoint_agree(tiny):
    assert Config.from_json(tiny / "config.json") == TINY
    original = Config.from_json(tiny / "original" / "config.json")
    assert original.eos_token_ids == ()  # OpenAI's file names none, and this vocabulary is not harmony's
    assert dataclasses.replace(original, eos_token_ids=TINY.eos_token_ids) == TINY


@pytest.mark.parametrize(
    "config",
    [
        TINY, GPT_OSS_20B, dataclasses.replace(TINY, eos_token_ids=(1, 2)), dataclasses.replace(TINY, eos_token_ids=()),
        dataclasses.replace(TINY, swiglu_alpha=1.5),
    ],  # fmt: skip
)
def test_round_trip_through_json(config):
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_newer_files_put_rope_into_rope_parameters():
    values = changed(rope_theta=None)
    values["rope_parameters"] = values.pop("rope_scaling") | {"rope_theta": 150000.0}
    assert Config.from_dict(values) == GPT_OSS_20B


def test_absent_values_take_those_of_gpt_oss():
    assert Config.from_dict(changed(layer_types=None)) == GPT_OSS_20B
    assert Config.from_dict(changed(max_position_embeddings=None)) == GPT_OSS_20B
    assert Config.from_dict(changed(rope__truncate=None, rope__beta_fast=None, swiglu_limit=None)) == GPT_OSS_20B
    assert Config.from_dict(changed(num_local_experts=None, num_experts=32)) == GPT_OSS_20B
    assert Config.from_dict(changed(swiglu_alpha=1.702)) == GPT_OSS_20B
    assert Config.from_dict(changed(rope__attention_factor=1.3465735902799727)) == GPT_OSS_20B


def test_values_are_read_not_assumed():
    kinds = ["full_attention"] * 23 + ["sliding_attention"]
    config = Config.from_dict(changed(layer_types=kinds, sliding_window=100, rope__truncate=True, eos_token_id=[7, 5]))
    assert [config.window(layer) for layer in (0, 22, 23)] == [None, None, 100]
    assert Config.from_dict(changed(swiglu_alpha=1)).swiglu_alpha == 1.0
    assert config.rope_truncate and config.eos_token_ids == (7, 5)
    assert (GPT_OSS_20B.window(0), GPT_OSS_20B.window(1), GPT_OSS_20B.group, TINY.group) == (128, None, 8, 5)


def test_is_hashable_and_equal_whatever_json_wrote_for_a_float():
    again = Config.from_dict(changed(rope_theta=150000.0, swiglu_limit=7))
    assert hash(again) == hash(GPT_OSS_20B) and again == GPT_OSS_20B and type(again.swiglu_limit) is float


@pytest.mark.parametrize("changes, words", [
    ({"model_type": "llama"}, "model_type 'llama'"),
    ({"model_type": None}, "neither"),
    ({"architectures": ["GptOssForSequenceClassification"]}, "GptOssForSequenceClassification"),
    ({"hidden_act": "gelu"}, "hidden_act.*'gelu'"),
    ({"tie_word_embeddings": True}, "tie"),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
    ({"rope__rope_type": "linear"}, "rope_type.*'linear'"),
    ({"rope_scaling": None}, "rope_type"),
    ({"rope_scaling": "yarn"}, "rope_scaling"),
    ({"rope__attention_factor": 1.0}, "attention_factor"),
    ({"rope__mscale": 2.0}, "mscale"),
    ({"vocab_size": None, "rope__factor": None}, "vocab_size, rope_scaling.factor"),
    ({"hidden_size": 2881}, "hidden_size.*multiple of 32.*2881"),
    ({"intermediate_size": 2900}, "intermediate_size.*multiple of 32"),
    ({"num_key_value_heads": 7}, r"divide num_attention_heads \(64\), got 7"),
    ({"head_dim": 63}, "head_dim must be even"),
    ({"num_experts_per_tok": 33}, r"at most num_local_experts \(32\)"),
    ({"layer_types": ["sliding_attention"] * 23}, "each of the 24 layers, got 23"),
    ({"layer_types": ["sliding_attention", "chunked_attention"] * 12}, "chunked_attention"),
    ({"layer_types": "sliding_attention"}, "layer_types"),
    ({"num_hidden_layers": 24.5}, "num_hidden_layers must be a positive integer"),
    ({"num_hidden_layers": "24"}, "num_hidden_layers must be a positive integer"),
    ({"num_hidden_layers": 0, "layer_types": []}, "num_hidden_layers"),
    ({"sliding_window": -1}, "sliding_window"),
    ({"num_local_experts": True}, "num_local_experts"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"swiglu_alpha": -1.702}, "swiglu_alpha must be a positive number"),
    ({"rope__factor": 0.5}, "factor must be at least 1"),
    ({"rope__factor": "32"}, "rope_factor must be a positive number"),
    ({"rope__beta_slow": 40.0}, "beta_fast"),
    ({"rope__truncate": "no"}, "true or false"),
    ({"eos_token_id": 201088}, "below vocab_size"),
    ({"eos_token_id": ["<|return|>"]}, "eos_token_id must be integers"),
])  # fmt: skip
def test_what_is_no_gpt_oss_is_refused_in_words(changes, words):
    with pytest.raises(ValueError, match=words):
        Config.from_dict(changed(**changes))


def test_every_problem_is_named_at_once():
    with pytest.raises(ValueError, match="hidden_size.*intermediate_size.*experts_per_tok"):
        Config.from_dict(changed(hidden_size=100, intermediate_size=100, num_experts_per_tok=100))


def test_damaged_files(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(FileNotFoundError, match="config.json"):
        Config.from_json(path)
    for text, words in (("{", "JSON"), ("[]", "object"), ("null", "object")):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            Config.from_json(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="JSON"):
        Config.from_json(path)
