"""The fields of a `Config` from either published config.json, Hugging Face's or OpenAI's original; other models are refused by name."""

from collections.abc import Mapping
import math
import os
from typing import Any

from gptoss_jax.config import geometry
from gptoss_jax.config.fields import Field, Flag, Many, Number, Text, called, problems, take
from gptoss_jax.config.geometry import FIELDS, TOKEN_IDS
from gptoss_jax.quoting import quoted

# Harmony's <|return|> in the published vocabulary of 201,088 ids; OpenAI's own config.json does not name it.
HARMONY_VOCAB, HARMONY_EOS = 201088, 200002

# Field -> its names in config.json; the first that is present counts.
SHARED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "sliding_window", "swiglu_limit", "swiglu_alpha",
)  # fmt: skip
_HUGGING_FACE = {name: (name,) for name in (*SHARED, "rms_norm_eps")} | {
    "num_local_experts": ("num_local_experts", "num_experts"),
    "num_experts_per_tok": ("num_experts_per_tok", "experts_per_token"),
    "rope_original_context": ("rope.original_max_position_embeddings", "initial_context_length"),
    "rope_factor": ("rope.factor",),
    "rope_theta": ("rope.rope_theta", "rope_theta"),
    "rope_beta_fast": ("rope.beta_fast",),
    "rope_beta_slow": ("rope.beta_slow",),
    "rope_truncate": ("rope.truncate",),
}
_ORIGINAL = {name: (name,) for name in SHARED} | {
    "num_local_experts": ("num_experts",),
    "num_experts_per_tok": ("experts_per_token",),
    "rope_original_context": ("initial_context_length",),
    "rope_factor": ("rope_scaling_factor",),
    "rope_theta": ("rope_theta",),
    "rope_beta_fast": ("rope_ntk_beta",),
    "rope_beta_slow": ("rope_ntk_alpha",),
}
# Absent, these take gpt-oss's values. (Hugging Face's YaRN truncates if not told; gpt-oss was trained without.)
_OPTIONAL = ("swiglu_limit", "swiglu_alpha", "rms_norm_eps", "rope_beta_fast", "rope_beta_slow", "rope_truncate")

_NAMES = Many(Text(), "texts", most=100)
_OBJECT = Many(Field(), "values", most=10_000, named=True)
_MODEL = {
    "model_type": Text(),
    "architectures": _NAMES,
    "hidden_act": Text(default="silu"),
    "tie_word_embeddings": Flag(),
    "attention_bias": Flag(),
    "attention_dropout": Number(1.0, positive=False),
    "quantization_config": _OBJECT,
    "rope_parameters": _OBJECT,
    "rope_scaling": _OBJECT,
}
_FACTORS = ("attention_factor", "mscale", "mscale_all_dim")
_ROPE = {"rope_type": Text(), "type": Text()} | {name: Number(1e6, positive=False) for name in _FACTORS}
_GENERATION = {"eos_token_id": Field()}


def read(values: Any, where: str) -> dict[str, Any]:
    """What a parsed config.json says of each field of `Config`; where is its file. Raises ValueError as `Config.from_dict`."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold a JSON object; got {called(values)}; use that of a gpt-oss checkpoint.")
    original = "rope_scaling_factor" in values and "model_type" not in values
    found = _take(values, _ORIGINAL, where) if original else _from_hugging_face(values, where)
    more = {name: found.pop(name, None) for name in ("layer_types", "max_position_embeddings", "eos_token_ids")}
    if more["layer_types"] is None:
        more["layer_types"] = geometry.kinds(found["num_hidden_layers"])
    if more["max_position_embeddings"] is None:
        more["max_position_embeddings"] = int(found["rope_original_context"] * found["rope_factor"])
    if original and found["vocab_size"] == HARMONY_VOCAB:  # OpenAI's names no token ids
        more["eos_token_ids"] = (HARMONY_EOS,)
    return found | more | {"eos_token_ids": more["eos_token_ids"] or ()}


def more_eos(values: Any, vocab_size: int, where: str | os.PathLike) -> list[int]:
    """Ids that end an answer by a parsed generation_config.json, which must lie below vocab_size."""
    ids = _ids(take(values, _GENERATION, where)["eos_token_id"])
    wrong = TOKEN_IDS.problem("eos_token_id", ids)
    if not wrong and any(token >= vocab_size for token in ids):
        wrong = f"eos_token_id must lie below vocab_size ({vocab_size}), got {ids}"
    if wrong:
        raise ValueError(f"{where} must name tokens of the model; {wrong}; correct it, or delete the file.")
    return ids


def _from_hugging_face(values: dict[str, Any], where: str) -> dict[str, Any]:
    model = take(values, _MODEL, where)
    _refuse_other_models(model, where)
    rope = model["rope_parameters"] or model["rope_scaling"] or {}
    kind = take(rope, _ROPE, where)
    rope_type = kind["type"] if kind["rope_type"] is None else kind["rope_type"]
    if rope_type != "yarn":
        raise ValueError(f"rope_type of {where} must be 'yarn', as in gpt-oss; got {quoted(rope_type)}; use the published config.json.")
    found = _take(values | {f"rope.{key}": value for key, value in rope.items()}, _HUGGING_FACE, where)
    _refuse_attention_factor(kind, found["rope_factor"], where)
    own, eos = {name: values.get(name) for name in ("layer_types", "max_position_embeddings")}, _ids(values.get("eos_token_id"))
    geometry.refuse(problems(own | {"eos_token_id": eos}, FIELDS, (*own, "eos_token_id")), where)
    return found | own | {"eos_token_ids": tuple(eos)}


def _take(values: Mapping[str, Any], wanted: Mapping[str, tuple[str, ...]], where: str) -> dict[str, Any]:
    """The value of each wanted field; one error names every field that has none, another all that cannot be."""
    present = {field: [values[name] for name in names if values.get(name) is not None] for field, names in wanted.items()}
    missing = [wanted[field][0] for field, found in present.items() if not found and field not in _OPTIONAL]
    if missing:
        names = ", ".join(missing).replace("rope.", "rope_scaling.")
        raise ValueError(f"{where} of a gpt-oss checkpoint must have {names}; absent; use the published config.json.")
    others = [(field, value) for field, found in present.items() for value in found[1:]]  # which say the same in another name
    wrong = [problem for field, value in others for problem in problems({field: value}, FIELDS, (field,))]
    found = {field: found[0] for field, found in present.items() if found}
    geometry.refuse(problems(found, FIELDS, found) + wrong, where)
    return found


def _ids(given: Any) -> Any:
    """One token id or several, as several."""
    return [] if given is None else given if isinstance(given, list) else [given]


def _refuse_other_models(model: Mapping[str, Any], where: str) -> None:
    kind, architectures = model["model_type"], model["architectures"] or ["GptOssForCausalLM"]
    if kind != "gpt_oss" or "GptOssForCausalLM" not in architectures:
        got = f"model_type {quoted(kind)}, architectures {quoted(architectures)}"
        got = got if kind else "neither its model_type nor OpenAI's rope_scaling_factor"
        raise ValueError(f"{where} must describe a gpt-oss model (model_type 'gpt_oss'); got {got}; give a gpt-oss checkpoint.")
    if model["hidden_act"] != "silu":
        raise ValueError(f"hidden_act of {where} must be 'silu', gpt-oss's; got {quoted(model['hidden_act'])}; use a gpt-oss checkpoint.")
    if model["tie_word_embeddings"]:
        raise ValueError(f"gpt-oss does not tie word embeddings; {where} has tie_word_embeddings true; use another checkpoint.")
    method = (model["quantization_config"] or {}).get("quant_method", "mxfp4")
    if method != "mxfp4":
        raise ValueError(f"quant_method of {where} must be 'mxfp4' or absent; got {quoted(method)}; use the MXFP4 or a bf16 checkpoint.")


def _refuse_attention_factor(rope: Mapping[str, Any], factor: float, where: str) -> None:
    """gpt-oss scales its RoPE tables by 0.1 ln(factor) + 1; a file that asks for another scale is another model."""
    for name in _FACTORS:
        value = rope[name]
        usual = name == "attention_factor" and value is not None and math.isclose(value, 0.1 * math.log(factor) + 1, rel_tol=1e-6)
        if value is not None and not usual:
            raise ValueError(f"{name} of rope_scaling of {where} must be absent in gpt-oss; got {quoted(value)}; use the published one.")
