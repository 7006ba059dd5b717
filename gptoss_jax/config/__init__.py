"""The geometry of one gpt-oss model, read from either published config.json.

First station: a frozen, hashable description that every other module reads and none changes. `fields` reads JSON of others,
`published` makes a Config's fields of it, `geometry` says what is possible. It knows nothing of arrays, files of weights or devices.
Field names are Hugging Face's; the letters of the shape comments are:

    B batch . T query tokens . S keys . D hidden_size . N num_attention_heads . K num_key_value_heads . G = N / K
    H head_dim . L num_hidden_layers . W sliding_window . E num_local_experts . A num_experts_per_tok
    F intermediate_size . V vocab_size . M rows of a kernel . X groups of 32 values that share an MXFP4 scale
"""

import dataclasses
import os
from typing import Any

from gptoss_jax.config import geometry, published
from gptoss_jax.config.fields import read_json
from gptoss_jax.config.geometry import SLIDING
from gptoss_jax.config.published import HARMONY_EOS, HARMONY_VOCAB


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything about a model but its weights. Hashable, so that it can be a static argument of a jitted function.

    Attributes:
        layer_types: one of "sliding_attention" and "full_attention" for each layer.
        sliding_window: keys that a query of a sliding layer sees, itself included (0 <= query - key < sliding_window).
        swiglu_limit: clamp of the SwiGLU's inputs.
        swiglu_alpha: of its sigmoid, gate * sigmoid(swiglu_alpha * gate).
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
    swiglu_alpha: float = 1.702
    rms_norm_eps: float = 1e-5
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self):
        for name in ("layer_types", "eos_token_ids"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        geometry.check(vars(self), "config.json")
        for field in dataclasses.fields(self):  # JSON writes 32.0 as 32
            if field.type is float:
                object.__setattr__(self, field.name, float(getattr(self, field.name)))

    @property
    def group(self) -> int:
        """Query heads that share one key-value head (G)."""
        return self.num_attention_heads // self.num_key_value_heads

    def window(self, layer: int) -> int | None:
        """Keys visible to a query of this layer, itself included, or None where attention is full."""
        return self.sliding_window if self.layer_types[layer] == SLIDING else None

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str | os.PathLike = "config.json") -> "Config":
        """The Config of a parsed config.json, Hugging Face's (rope_scaling or rope_parameters) or OpenAI's original.

        Args:
            values: the JSON object.
            where: what errors call it: the path of its file.

        Raises:
            ValueError: another architecture, a value is missing or no possible one, or the geometry is impossible.
        """
        found = {field.name: field.default for field in dataclasses.fields(cls)} | published.read(values, str(where))
        geometry.check(found, str(where))
        return cls(**found)

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> "Config":
        """The Config of a config.json file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not JSON, or as in `from_dict`; either names the file.
        """
        return cls.from_dict(read_json(path), path)

    def to_dict(self) -> dict[str, Any]:
        """The same as Hugging Face's config.json; `Config.from_dict` reads it back."""
        others = "num_local_experts num_experts_per_tok max_position_embeddings rope_theta rms_norm_eps"
        usual = {"swiglu_alpha"} if self.swiglu_alpha == type(self).swiglu_alpha else set()  # published files have no word for it
        return {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            **{name: getattr(self, name) for name in (*published.SHARED, *others.split()) if name not in usual},
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


def _published(layers: int, experts: int) -> Config:
    return Config(
        vocab_size=HARMONY_VOCAB, hidden_size=2880, num_hidden_layers=layers, num_attention_heads=64, num_key_value_heads=8,
        head_dim=64, intermediate_size=2880, num_local_experts=experts, num_experts_per_tok=4, sliding_window=128,
        layer_types=geometry.kinds(layers), max_position_embeddings=131072, rope_original_context=4096,
        eos_token_ids=(HARMONY_EOS,),
    )  # fmt: skip


GPT_OSS_20B = _published(layers=24, experts=32)
GPT_OSS_120B = _published(layers=36, experts=128)

# The random checkpoint of the tests: small, and with no two dimensions equal where a swap could hide.
TINY = Config(
    vocab_size=320, hidden_size=96, num_hidden_layers=4, num_attention_heads=10, num_key_value_heads=2, head_dim=64,
    intermediate_size=64, num_local_experts=6, num_experts_per_tok=3, sliding_window=16, layer_types=geometry.kinds(4),
    max_position_embeddings=1024, rope_original_context=256, rope_factor=4.0, eos_token_ids=(319,),
)  # fmt: skip
