"""The geometry of one gpt-oss model, read from either published config.json.

First station: a frozen, hashable description that every other module reads and none changes. It knows nothing of arrays,
files of weights or devices. Field names are Hugging Face's; the letters of the shape comments are:

    B batch . T query tokens . S keys . D hidden_size . N num_attention_heads . K num_key_value_heads . G = N / K
    H head_dim . L num_hidden_layers . W sliding_window . E num_local_experts . A num_experts_per_tok
    F intermediate_size . V vocab_size . M rows of a kernel . X groups of 32 values that share an MXFP4 scale
"""

import dataclasses
import json
import math
import os
from typing import Any

SLIDING = "sliding_attention"
FULL = "full_attention"

# Harmony's <|return|> in the published vocabulary of 201,088 ids; OpenAI's own config.json does not name it.
_HARMONY_VOCAB, _HARMONY_EOS = 201088, 200002


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything about a model but its weights. Hashable, so that it can be a static argument of a jitted function.

    Attributes:
        layer_types: one of "sliding_attention" and "full_attention" for each layer.
        sliding_window: keys that a query of a sliding layer sees, itself included (0 <= query - key < sliding_window).
        swiglu_limit: clamp of the SwiGLU's inputs.
        rope_factor: how far YaRN stretches `rope_original_context`, the context of pre-training.
        rope_truncate: floor and ceil YaRN's range of frequencies. gpt-oss does not.
        eos_token_ids: ids that end an answer, the one of config.json first; may be empty.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    num_local_experts: int
    num_experts_per_tok: int
    sliding_window: int
    layer_types: tuple[str, ...]
    max_position_embeddings: int
    rope_original_context: int
    rope_factor: float = 32.0
    rope_theta: float = 150000.0
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    rope_truncate: bool = False
    swiglu_limit: float = 7.0
    rms_norm_eps: float = 1e-5
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "layer_types", tuple(self.layer_types))
        object.__setattr__(self, "eos_token_ids", tuple(self.eos_token_ids))
        for field in dataclasses.fields(self):  # JSON writes 32.0 as 32
            if field.type is float and type(getattr(self, field.name)) is int:
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        problems = _type_problems(self) or _geometry_problems(self)
        if problems:
            raise ValueError(f"this is no possible gpt-oss geometry: {'; '.join(problems)}; correct these values of config.json.")

    @property
    def group(self) -> int:
        """Query heads that share one key-value head (G)."""
        return self.num_attention_heads // self.num_key_value_heads

    def window(self, layer: int) -> int | None:
        """Keys visible to a query of this layer, itself included, or None where attention is full."""
        return self.sliding_window if self.layer_types[layer] == SLIDING else None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The Config of a parsed config.json, Hugging Face's (rope_scaling or rope_parameters) or OpenAI's original.

        Raises:
            ValueError: another architecture, a value is missing, or the geometry is impossible.
        """
        if not isinstance(values, dict):
            raise ValueError(f"config.json must hold a JSON object; got {type(values).__name__}; use that of a gpt-oss checkpoint.")
        is_original = "rope_scaling_factor" in values and "model_type" not in values
        return _from_original(values) if is_original else _from_hugging_face(values)

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> "Config":
        """The Config of a config.json file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not JSON, or as in `from_dict`.
        """
        return cls.from_dict(read_json(path))

    def to_dict(self) -> dict[str, Any]:
        """The same as Hugging Face's config.json; `Config.from_dict` reads it back."""
        others = "num_local_experts num_experts_per_tok max_position_embeddings rope_theta rms_norm_eps"
        return {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            **{name: getattr(self, name) for name in (*_SHARED, *others.split())},
            "layer_types": list(self.layer_types),
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": self.rope_factor,
                "original_max_position_embeddings": self.rope_original_context,
                "beta_fast": self.rope_beta_fast,
                "beta_slow": self.rope_beta_slow,
                "truncate": self.rope_truncate,
            },
            "eos_token_id": self.eos_token_ids[0] if len(self.eos_token_ids) == 1 else list(self.eos_token_ids) or None,
            "experts_per_token": self.num_experts_per_tok,
            "initial_context_length": self.rope_original_context,
            "hidden_act": "silu",
            "attention_bias": True,
            "attention_dropout": 0.0,
            "tie_word_embeddings": False,
        }


def read_json(path: str | os.PathLike) -> Any:
    """The value of a JSON file. Raises FileNotFoundError or ValueError, each naming the file."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"a checkpoint needs {os.path.basename(path)}; there is no {path}; download it again.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} must be JSON; reading it stopped at: {error}; download it again.") from None


def _from_hugging_face(values: dict[str, Any]) -> Config:
    _refuse_other_models(values)
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_scaling of config.json must be an object; got {rope!r}; use the published config.json.")
    rope_type = rope.get("rope_type", rope.get("type"))
    if rope_type != "yarn":
        raise ValueError(f"rope_type of config.json must be 'yarn', as in every gpt-oss; got {rope_type!r}; use the published config.json.")
    flat = values | {f"rope.{key}": value for key, value in rope.items()}
    found = _take(flat, _HUGGING_FACE)
    _refuse_attention_factor(rope, found["rope_factor"])
    eos = values.get("eos_token_id")
    return Config(
        **found,
        layer_types=_layer_types(values.get("layer_types"), found["num_hidden_layers"]),
        max_position_embeddings=values.get("max_position_embeddings") or _stretched(found),
        eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
    )


def _from_original(values: dict[str, Any]) -> Config:
    """OpenAI's own config.json: short names, no layer types (even layers slide), no token ids."""
    found = _take(values, _ORIGINAL)
    return Config(
        **found,
        layer_types=_layer_types(None, found["num_hidden_layers"]),
        max_position_embeddings=_stretched(found),
        eos_token_ids=(_HARMONY_EOS,) if found["vocab_size"] == _HARMONY_VOCAB else (),
    )


# Field -> its names in config.json; the first that is present counts.
_SHARED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "sliding_window", "swiglu_limit",
)  # fmt: skip
_HUGGING_FACE = {name: (name,) for name in (*_SHARED, "rms_norm_eps")} | {
    "num_local_experts": ("num_local_experts", "num_experts"),
    "num_experts_per_tok": ("num_experts_per_tok", "experts_per_token"),
    "rope_original_context": ("rope.original_max_position_embeddings", "initial_context_length"),
    "rope_factor": ("rope.factor",),
    "rope_theta": ("rope.rope_theta", "rope_theta"),
    "rope_beta_fast": ("rope.beta_fast",),
    "rope_beta_slow": ("rope.beta_slow",),
    "rope_truncate": ("rope.truncate",),
}
_ORIGINAL = {name: (name,) for name in _SHARED} | {
    "num_local_experts": ("num_experts",),
    "num_experts_per_tok": ("experts_per_token",),
    "rope_original_context": ("initial_context_length",),
    "rope_factor": ("rope_scaling_factor",),
    "rope_theta": ("rope_theta",),
    "rope_beta_fast": ("rope_ntk_beta",),
    "rope_beta_slow": ("rope_ntk_alpha",),
}
# Absent, these take gpt-oss's values. (Hugging Face's YaRN truncates if not told; gpt-oss was trained without.)
_OPTIONAL = ("swiglu_limit", "rms_norm_eps", "rope_beta_fast", "rope_beta_slow", "rope_truncate")


def _take(values: dict[str, Any], wanted: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """The value of each wanted field; one error names every field that has none."""
    present = {field: [values[name] for name in names if values.get(name) is not None] for field, names in wanted.items()}
    missing = [wanted[field][0] for field, found in present.items() if not found and field not in _OPTIONAL]
    if missing:
        names = ", ".join(missing).replace("rope.", "rope_scaling.")
        raise ValueError(f"config.json of a gpt-oss checkpoint must have {names}; absent; use the published config.json.")
    return {field: found[0] for field, found in present.items() if found}


def _stretched(found: dict[str, Any]) -> int:
    context, factor = found["rope_original_context"], found["rope_factor"]
    return int(context * factor) if isinstance(context, int) and isinstance(factor, int | float) else 0  # refused with the others


def _layer_types(given: Any, layers: Any) -> tuple[str, ...]:
    if given is not None:
        return tuple(given) if isinstance(given, list) else (repr(given),)
    return tuple((SLIDING, FULL)[layer % 2] for layer in range(layers if isinstance(layers, int) else 0))


def _refuse_other_models(values: dict[str, Any]) -> None:
    kind = values.get("model_type")
    architectures = values.get("architectures") or ["GptOssForCausalLM"]
    if kind != "gpt_oss" or "GptOssForCausalLM" not in architectures:
        got = f"model_type {kind!r}, architectures {architectures!r}" if kind else "neither its model_type nor OpenAI's rope_scaling_factor"
        raise ValueError(f"config.json must describe a gpt-oss model (model_type 'gpt_oss'); got {got}; give a gpt-oss checkpoint.")
    if values.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act of config.json must be 'silu', gpt-oss's; got {values['hidden_act']!r}; use a gpt-oss checkpoint.")
    if values.get("tie_word_embeddings"):
        raise ValueError("gpt-oss does not tie word embeddings; config.json has tie_word_embeddings true; use another checkpoint.")
    method = (values.get("quantization_config") or {}).get("quant_method", "mxfp4")
    if method != "mxfp4":
        raise ValueError(f"quant_method of config.json must be 'mxfp4' or absent; got {method!r}; use the MXFP4 or a bf16 checkpoint.")


def _refuse_attention_factor(rope: dict[str, Any], factor: Any) -> None:
    """gpt-oss scales its RoPE tables by 0.1 ln(factor) + 1; a file that asks for another scale is another model."""
    for name in ("attention_factor", "mscale", "mscale_all_dim"):
        value = rope.get(name)
        usual = name == "attention_factor" and isinstance(value, int | float) and isinstance(factor, int | float)
        if value is not None and not (usual and math.isclose(value, 0.1 * math.log(factor) + 1, rel_tol=1e-6)):
            raise ValueError(f"{name} of rope_scaling must be absent in gpt-oss; got {value!r}; use the published config.json.")


def _type_problems(config: Config) -> list[str]:
    problems = []
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if field.type is int and (type(value) is not int or value < 1):
            problems.append(f"{field.name} must be a positive integer, got {value!r}")
        if field.type is float and (type(value) is not float or not math.isfinite(value) or value <= 0):
            problems.append(f"{field.name} must be a positive number, got {value!r}")
        if field.type is bool and type(value) is not bool:
            problems.append(f"{field.name} must be true or false, got {value!r}")
    problems += [f"eos_token_id must be integers, got {eos!r}" for eos in config.eos_token_ids if type(eos) is not int]
    return problems


def _geometry_problems(config: Config) -> list[str]:
    c = config
    unknown = sorted({kind for kind in c.layer_types if kind not in (SLIDING, FULL)}, key=str)
    checks = [
        (c.num_attention_heads % c.num_key_value_heads,
         f"num_key_value_heads must divide num_attention_heads ({c.num_attention_heads}), got {c.num_key_value_heads}"),
        (c.head_dim % 2, f"head_dim must be even for RoPE, got {c.head_dim}"),
        (c.hidden_size % 32, f"hidden_size must be a multiple of 32 (an MXFP4 group), got {c.hidden_size}"),
        (c.intermediate_size % 32, f"intermediate_size must be a multiple of 32 (an MXFP4 group), got {c.intermediate_size}"),
        (c.num_experts_per_tok > c.num_local_experts,
         f"num_experts_per_tok must be at most num_local_experts ({c.num_local_experts}), got {c.num_experts_per_tok}"),
        (len(c.layer_types) != c.num_hidden_layers,
         f"layer_types must name each of the {c.num_hidden_layers} layers, got {len(c.layer_types)}"),
        (unknown, f"layer_types must be '{SLIDING}' or '{FULL}', got {', '.join(map(str, unknown))}"),
        (c.rope_factor < 1, f"the RoPE factor must be at least 1, got {c.rope_factor}"),
        (c.rope_theta <= 1, f"rope_theta must be more than 1, got {c.rope_theta}"),
        (c.rope_beta_fast <= c.rope_beta_slow,
         f"RoPE's beta_fast must be more than beta_slow ({c.rope_beta_slow}), got {c.rope_beta_fast}"),
        (any(not 0 <= eos < c.vocab_size for eos in c.eos_token_ids),
         f"eos_token_id must lie below vocab_size ({c.vocab_size}), got {list(c.eos_token_ids)}"),
    ]  # fmt: skip
    return [problem for wrong, problem in checks if wrong]


def _published(layers: int, experts: int) -> Config:
    return Config(
        vocab_size=_HARMONY_VOCAB, hidden_size=2880, num_hidden_layers=layers, num_attention_heads=64, num_key_value_heads=8,
        head_dim=64, intermediate_size=2880, num_local_experts=experts, num_experts_per_tok=4, sliding_window=128,
        layer_types=_layer_types(None, layers), max_position_embeddings=131072, rope_original_context=4096,
        eos_token_ids=(_HARMONY_EOS,),
    )  # fmt: skip


GPT_OSS_20B = _published(layers=24, experts=32)
GPT_OSS_120B = _published(layers=36, experts=128)

# The random checkpoint of the tests: small, and with no two dimensions equal where a swap could hide.
TINY = Config(
    vocab_size=320, hidden_size=96, num_hidden_layers=4, num_attention_heads=10, num_key_value_heads=2, head_dim=64,
    intermediate_size=64, num_local_experts=6, num_experts_per_tok=3, sliding_window=16, layer_types=_layer_types(None, 4),
    max_position_embeddings=1024, rope_original_context=256, rope_factor=4.0, eos_token_ids=(319,),
)  # fmt: skip
