"""The sites of the model: every named value that a hook sees, in the order of a forward pass."""

import dataclasses
from typing import Literal

from gptoss_jax.config import Config
from gptoss_jax.model import aliases
from gptoss_jax.quoting import quoted


@dataclasses.dataclass(frozen=True)
class Site:
    """A place of the model that a hook sees.

    Attributes:
      shape: in the letters of `gptoss_jax.config`; float32 unless `meaning` says otherwise.
      meaning: what it is, and what patching it does where that is not plain.
      on_request: it is computed only for a hook that names it (`capture`, `patch`), with its own last word: `layers.0.*` does not.
      fixed: it can be looked at, not patched.
    """

    shape: str
    meaning: str
    on_request: bool = False
    fixed: bool = False


BEFORE = {"embedding": Site("[B, T, D]", "rows of the embedding")}
IN_LAYER = {
    "residual_pre": Site("[B, T, D]", "the residual stream before the layer"),
    "attention.q": Site("[B, T, N, H]", "queries after RoPE"),
    "attention.k": Site("[B, T, K, H]", "keys after RoPE"),
    "attention.v": Site("[B, T, K, H]", "values"),
    "attention.scores_max": Site("[B, T, N]", "a query's greatest score: q . k / sqrt(H) over the keys it sees", True, True),
    "attention.scores_lse": Site("[B, T, N]", "log of the softmax's denominator, the sink included", True, True),
    "attention.sink_mass": Site("[B, T, N]", "share of the softmax that the sink takes; patched, the keys share the rest", True),
    "attention.pattern": Site("[B, T, N, S]", "weight of each key, 1 - sink_mass in all; S is T, with a cache its context", True),
    "attention.heads": Site("[B, T, N, H]", "what each head reads"),
    "attention.head_outputs": Site("[B, T, N, D]", "what each head adds to the residual stream, which has the bias too", True),
    "attention.out": Site("[B, T, D]", "what attention adds to the residual stream"),
    "residual_mid": Site("[B, T, D]", "the residual stream between attention and experts"),
    "moe.router_logits": Site("[B, T, E]", "the router's logits"),
    "moe.experts": Site("[B, T, A]", "int32, the experts chosen, by falling logit; E is none. Patched, gates follow from their logits"),
    "moe.gates": Site("[B, T, A]", "weight of each chosen expert, 1 in all"),
    "moe.expert_outputs": Site("[B, T, A, D]", "what each chosen expert makes, before its gate", True),
    "moe.out": Site("[B, T, D]", "what the experts add to the residual stream"),
    "residual_post": Site("[B, T, D]", "the residual stream after the layer"),
}
AFTER = {"norm": Site("[B, T, D]", "the last norm's result"), "logits": Site("[B, T, V]", "the logits")}
SITES: dict[str, Site] = BEFORE | {f"layers.{{i}}.{name}": site for name, site in IN_LAYER.items()} | AFTER
"""Every site, in the order of a forward pass; `{i}` is the layer."""

OWN = Site("any", "a site of a function that calls `tap` itself")


def sites(config: Config, *, on_request: bool = False, names: Literal["own", "transformer_lens"] = "own") -> list[str]:
    """Every name that a hook is called with, in the order of a forward pass; also those on request, if asked for.

    Args:
      names: "transformer_lens" lists the names in TransformerLens that `capture` and `patch` understand, of the same sites.
    """
    if not isinstance(config, Config):
        raise ValueError(f"config must be a Config; got a {type(config).__name__}; pass model.config.")
    if names not in ("own", "transformer_lens"):
        raise ValueError(f"names must be 'own' or 'transformer_lens'; got {quoted(names)}; leave it out for our own.")
    inside = [name for name, site in IN_LAYER.items() if on_request or not site.on_request]
    layers = [f"layers.{i}.{name}" for i in range(config.num_hidden_layers) for name in inside]
    own = [*BEFORE, *layers, *AFTER]
    return own if names == "own" else [alias for name in own for alias in aliases.names_of(name)]


def site_of(name: str) -> Site:
    parts = name.split(".", 2)
    kind = f"layers.{{i}}.{parts[2]}" if len(parts) == 3 and parts[0] == "layers" else name
    return SITES.get(kind, OWN)
