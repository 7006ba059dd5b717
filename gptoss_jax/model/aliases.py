"""TransformerLens' names for sites: which are the same values, in which order of axes, and what has a name there and is no site here.

Names are HookedTransformer's, and those of TransformerBridge. Where a patch would reach less there, HookedTransformer counts: one of
`hook_resid_mid` reaches the experts and the layers behind. Values were compared with TransformerLens 3.9. No jax.
"""

import fnmatch
from typing import Any

TRANSFORMER_LENS: dict[str, str] = {
    "hook_embed": "embedding",
    "embed.hook_out": "embedding",
    "blocks.{i}.hook_resid_pre": "layers.{i}.residual_pre",
    "blocks.{i}.hook_in": "layers.{i}.residual_pre",
    "blocks.{i}.attn.hook_rot_q": "layers.{i}.attention.q",
    "blocks.{i}.attn.hook_rot_k": "layers.{i}.attention.k",
    "blocks.{i}.attn.hook_v": "layers.{i}.attention.v",
    "blocks.{i}.attn.v.hook_out": "layers.{i}.attention.v",
    "blocks.{i}.attn.hook_pattern": "layers.{i}.attention.pattern",
    "blocks.{i}.attn.hook_z": "layers.{i}.attention.heads",
    "blocks.{i}.attn.o.hook_in": "layers.{i}.attention.heads",
    "blocks.{i}.attn.hook_result": "layers.{i}.attention.head_outputs",
    "blocks.{i}.hook_attn_out": "layers.{i}.attention.out",
    "blocks.{i}.attn.hook_out": "layers.{i}.attention.out",
    "blocks.{i}.attn.o.hook_out": "layers.{i}.attention.out",
    "blocks.{i}.hook_resid_mid": "layers.{i}.residual_mid",
    "blocks.{i}.hook_mlp_out": "layers.{i}.moe.out",
    "blocks.{i}.mlp.hook_out": "layers.{i}.moe.out",
    "blocks.{i}.hook_resid_post": "layers.{i}.residual_post",
    "blocks.{i}.hook_out": "layers.{i}.residual_post",
    "ln_final.hook_out": "norm",
    "unembed.hook_in": "norm",
    "unembed.hook_out": "logits",
    "hook_unembed": "logits",
}
"""Names there and the sites that they are, in the order of a forward pass; `{i}` is the layer."""

AXES = {"blocks.{i}.attn.hook_pattern": (0, 2, 1, 3)}
"""Where axes have another order there: which of the site's stands at each place, [B, N, T, S] for [B, T, N, S]."""

_ROPE = "queries and keys are seen behind RoPE only, as attn.hook_rot_q and attn.hook_rot_k"
_INPUTS = (
    "norms are no sites, and no part has an input of its own that could be changed; what goes into them is hook_resid_pre, hook_resid_mid"
)
ABSENT: dict[str, str] = {
    "*.attn.hook_[qk]": _ROPE,
    "*.attn.[qk].hook_out": _ROPE,
    "*.hook_cos": _ROPE,
    "*.hook_sin": _ROPE,
    "rotary_emb.hook_*": _ROPE,
    "*hook_pos_embed": _ROPE,
    "*.attn.hook_attn_scores": "scores are never held; attention.scores_max and attention.scores_lse are what rows of them come to",
    "*.ln[12].hook_*": _INPUTS,
    "*.hook_*_in": _INPUTS,
    "*.hook_[qkv]_input": _INPUTS,
    "*.attn.hook_in": _INPUTS,
    "*.attn.[qkv].hook_in": _INPUTS,
    "*.mlp.hook_in": _INPUTS,
    "ln_final.hook_*": "the last norm is seen with its gain, as ln_final.hook_out; what goes into it is the last layer's hook_resid_post",
    "*.mlp.hook_router_scores": "it has a row for each token of all sequences there; gates are [B, T, A], layers.N.moe.gates",
    "*.mlp.hook_expert_weights": "the router is seen as layers.N.moe.router_logits, and as the gates of the chosen, layers.N.moe.gates",
    "*.mlp.hook_expert_indices": "it has a row for each token of all sequences there; experts are [B, T, A], layers.N.moe.experts",
    "*.mlp.hook_*": "experts have no hidden layer in common; what each makes is layers.N.moe.expert_outputs",
    "*hook_tokens": "tokens are an argument, not a site",
    "embed.hook_in": "tokens are an argument, not a site",
}
"""Patterns of names there that are no site here, and why; the first that fits counts."""

_BY_SITE: dict[str, list[str]] = {}
for _alias, _site in TRANSFORMER_LENS.items():
    _BY_SITE.setdefault(_site, []).append(_alias)


def names_of(site: str) -> list[str]:
    """TransformerLens' names of a site; none where it has none there."""
    kind, layer = _split(site)
    return [alias.replace("{i}", layer) for alias in _BY_SITE.get(kind, ())]


def is_alias(pattern: str) -> bool:
    """Whether a name or a pattern is meant as one of TransformerLens': it says `hook_`, or begins with `blocks.`."""
    return "hook_" in pattern or pattern.startswith("blocks.")


def meant(pattern: str, site: str, *, named: bool) -> list[str]:
    """Under which of its names a pattern means a site: its own, or some of TransformerLens'; none where it does not.

    Args:
      named: it must be asked for with the last word of a name.
    """
    found = [name for name in (site, *(names_of(site) if is_alias(pattern) else ())) if fnmatch.fnmatchcase(name, pattern)]
    last = pattern.rpartition(".")[2]
    return [name for name in found if name.rpartition(".")[2] == last] if named else found


def there(name: str, value: Any) -> Any:
    """A site's value, an array of whatever kind, with its axes as they are under a name."""
    axes = AXES.get(_split(name)[0])
    return value if axes is None else value.transpose(axes)


def here(name: str, value: Any) -> Any:
    """The inverse of `there`; what is no such array stays as it is."""
    axes = AXES.get(_split(name)[0])
    if axes is None or getattr(value, "ndim", None) != len(axes):
        return value
    return value.transpose([axes.index(i) for i in range(len(axes))])


def reorders(name: str) -> bool:
    """Whether axes have another order under a name."""
    return _split(name)[0] in AXES


def why_absent(name: str) -> str:
    """Why a name or a pattern of TransformerLens is no site here; "" where it is none of its names."""
    return next((why for absent, why in ABSENT.items() if fnmatch.fnmatchcase(name, absent)), "") if is_alias(name) else ""


def _split(name: str) -> tuple[str, str]:
    """A name as tables have it, with `{i}` for the layer, and the layer; "" where there is none."""
    parts = name.split(".", 2)
    if len(parts) == 3 and parts[0] in ("layers", "blocks"):
        return f"{parts[0]}.{{i}}.{parts[2]}", parts[1]
    return name, ""
