"""What a geometry must be to be possible: type and range of each field of `Config`, and how they depend on each other."""

from collections.abc import Mapping
from typing import Any

from gptoss_jax.config.fields import Flag, Many, Number, Text, Whole, problems

SLIDING = "sliding_attention"
FULL = "full_attention"

_LAYERS, _EXPERTS, _WIDTH, _VOCAB, _TOKENS = 1024, 4096, 1 << 17, 1 << 24, 1 << 30
_LIMIT = 1e30  # what float32 holds, with room for products
TOKEN_IDS = Many(Whole(0, _VOCAB - 1), f"integers from 0 to {_VOCAB - 1:,}", most=32)

# The bounds are many times what any gpt-oss has: what lies beyond is a damaged file, not a larger model.
FIELDS = {
    "vocab_size": Whole(1, _VOCAB),
    "hidden_size": Whole(1, _WIDTH),
    "num_hidden_layers": Whole(1, _LAYERS),
    "num_attention_heads": Whole(1, _EXPERTS),
    "num_key_value_heads": Whole(1, _EXPERTS),
    "head_dim": Whole(1, 4096),
    "intermediate_size": Whole(1, _WIDTH),
    "num_local_experts": Whole(1, _EXPERTS),
    "num_experts_per_tok": Whole(1, _EXPERTS),
    "sliding_window": Whole(1, _TOKENS),
    "layer_types": Many(Text((SLIDING, FULL)), f"'{SLIDING}' or '{FULL}'", most=_LAYERS),
    "max_position_embeddings": Whole(1, _TOKENS),
    "rope_original_context": Whole(1, _TOKENS),
    "rope_factor": Number(1e6),
    "rope_theta": Number(1e12),
    "rope_beta_fast": Number(1e6),
    "rope_beta_slow": Number(1e6),
    "rope_truncate": Flag(),
    "swiglu_limit": Number(_LIMIT),
    "swiglu_alpha": Number(1e6),
    "rms_norm_eps": Number(1.0),
    "eos_token_id": TOKEN_IDS,
}


def check(values: Mapping[str, Any], where: str) -> None:
    """Raises one ValueError that names every value of a `Config` that is not possible, and the file that they are of."""
    given = {name: value for name, value in values.items() if name != "eos_token_ids"} | {"eos_token_id": values["eos_token_ids"]}
    wrong = [f"{name} must be {field.words()}, got None" for name, field in FIELDS.items() if given[name] is None]
    refuse(wrong or problems(given, FIELDS, FIELDS) or _relations(given), where)


def refuse(wrong: list[str], where: str) -> None:
    """Raises ValueError where there are problems."""
    if wrong:
        raise ValueError(f"this is no possible gpt-oss geometry: {'; '.join(wrong)}; correct these values of {where}.")


def kinds(layers: int) -> tuple[str, ...]:
    """The types of layers where a file does not name them: even ones slide."""
    return tuple((SLIDING, FULL)[layer % 2] for layer in range(layers))


def _relations(c: Mapping[str, Any]) -> list[str]:
    kv_heads, experts, layers, vocab = c["num_key_value_heads"], c["num_local_experts"], c["num_hidden_layers"], c["vocab_size"]
    checks = [
        (c["num_attention_heads"] % kv_heads,
         f"num_key_value_heads must divide num_attention_heads ({c['num_attention_heads']}), got {kv_heads}"),
        (c["head_dim"] % 2, f"head_dim must be even for RoPE, got {c['head_dim']}"),
        (c["hidden_size"] % 32, f"hidden_size must be a multiple of 32 (an MXFP4 group), got {c['hidden_size']}"),
        (c["intermediate_size"] % 32, f"intermediate_size must be a multiple of 32 (an MXFP4 group), got {c['intermediate_size']}"),
        (c["num_experts_per_tok"] > experts,
         f"num_experts_per_tok must be at most num_local_experts ({experts}), got {c['num_experts_per_tok']}"),
        (len(c["layer_types"]) != layers, f"layer_types must name each of the {layers} layers, got {len(c['layer_types'])}"),
        (c["rope_factor"] < 1, f"the RoPE factor must be at least 1, got {c['rope_factor']}"),
        (c["rope_theta"] <= 1, f"rope_theta must be more than 1, got {c['rope_theta']}"),
        (c["rope_beta_fast"] <= c["rope_beta_slow"],
         f"RoPE's beta_fast must be more than beta_slow ({c['rope_beta_slow']}), got {c['rope_beta_fast']}"),
        (any(eos >= vocab for eos in c["eos_token_id"]),
         f"eos_token_id must lie below vocab_size ({vocab}), got {list(c['eos_token_id'])}"),
    ]  # fmt: skip
    return [problem for wrong, problem in checks if wrong]
