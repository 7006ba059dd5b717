"""What a grid consists of, checked at its door: prompts, sites, layers, positions, heads. Host arrays only."""

from collections.abc import Iterator, Sequence
import dataclasses
import difflib
import itertools
from typing import Literal

import numpy as np

from gptoss_jax.config import Config
from gptoss_jax.model import inputs
from gptoss_jax.model.params import Params
from gptoss_jax.model.sites import IN_LAYER
from gptoss_jax.quoting import quoted, said

By = Literal["position", "head", "position and head"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """What one run has patched: a site in a layer, where `places` are, of one head or, -1, of all."""

    name: int  # in the plan's names, -1 for none
    places: np.ndarray  # [B, T] bool
    head: int = -1


@dataclasses.dataclass(frozen=True)
class Plan:
    """A grid: `names` are sites in layers, in the order of its first axes."""

    clean: np.ndarray  # [B, T] int32
    corrupt: np.ndarray  # [B, T] int32
    sites: tuple[str, ...]
    several: bool  # sites were given as a sequence: they are an axis
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    heads: tuple[int, ...]  # (-1,) where heads are no axis
    by: By

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"layers.{layer}.{site}" for site in self.sites for layer in self.layers)

    @property
    def axes(self) -> tuple[str, ...]:
        return (*(("site",) if self.several else ()), "layer", *self.by.split(" and "))

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = {"site": self.sites, "layer": self.layers, "position": self.positions, "head": self.heads}
        return tuple(len(sizes[axis]) for axis in self.axes)

    @property
    def places(self) -> np.ndarray:
        """[columns, B, T] bool: what each position of the grid patches, or all together; nothing before a row's first difference."""
        here = np.zeros((len(self.positions), *self.clean.shape), bool)
        here[np.arange(len(here)), :, list(self.positions)] = True
        here &= np.logical_or.accumulate(self.clean != self.corrupt, 1)
        return here if "position" in self.by else here.any(0, keepdims=True)

    def cells(self) -> Iterator[Cell]:
        """In the order of the grid, the last axis first."""
        for name, places, head in itertools.product(range(len(self.names)), self.places, self.heads):
            yield Cell(name, places, head)


def plan(
    params: Params,
    config: Config,
    clean: object,
    corrupt: object,
    site: object,
    by: object,
    layers: object,
    positions: object,
) -> Plan:
    """Raises ValueError where it is no grid."""
    if not isinstance(params, Params):
        raise ValueError(f"params must be Params; got {type(params).__name__}; pass model.params, and behind them model.config.")
    clean, corrupt = _prompts("clean", clean), _prompts("corrupt", corrupt)
    if clean.shape != corrupt.shape:
        raise ValueError(
            f"clean and corrupt must be prompts of equal length, row by row; got {clean.shape} and {corrupt.shape}; pad none of them, "
            "but choose words of as many tokens."
        )
    for tokens in (clean, corrupt):
        inputs.check(params, config, tokens, None)
    if (clean == corrupt).all():
        raise ValueError("clean and corrupt must differ in a token; got the same twice; pass a prompt with another word, say.")
    if by not in By.__args__:
        raise ValueError(f"by must be {', '.join(map(quoted, By.__args__))}; got {quoted(by, 60)}; pass one of these.")
    sites = _sites(site)
    layers, positions = (
        tuple(range(count)) if some is None else indices(name, some, count)
        for name, some, count in (("layers", layers, config.num_hidden_layers), ("positions", positions, clean.shape[1]))
    )
    heads = range(_heads(config, sites)) if "head" in by else (-1,)
    return Plan(clean, corrupt, sites, not isinstance(site, str), layers, positions, tuple(heads), by)


def _prompts(name: str, tokens: object) -> np.ndarray:
    """[B, T] int32, of one prompt or of several."""
    try:
        rows = np.asarray(tokens)
    except Exception as error:  # rows of different lengths, an array that was given away
        raise ValueError(
            f"{name} must be token ids [B, T], rows of one length; got {quoted(tokens, 60)} ({said(error)}); pass such rows."
        ) from error
    if rows.dtype.kind not in "iu" or rows.ndim not in (1, 2) or not rows.size:
        raise ValueError(f"{name} must be token ids [B, T], or [T] of one prompt; got {rows.dtype}{rows.shape}; pass llm.render(...), say.")
    return np.atleast_2d(np.clip(rows, -1, 2**31 - 1)).astype(np.int32)


def _sites(site: object) -> tuple[str, ...]:
    sites = (site,) if isinstance(site, str) else tuple(site) if isinstance(site, Sequence) else ()
    if not sites or not all(isinstance(one, str) for one in sites) or len(set(sites)) < len(sites):
        raise ValueError(f"site must be the name of a site, or several different ones; got {quoted(site, 60)}; pass 'residual_post', say.")
    for one in sites:
        if one not in IN_LAYER:
            near = ", ".join(difflib.get_close_matches(one, IN_LAYER, n=3, cutoff=0))
            raise ValueError(
                f"site must be one of a layer, without the layer; got {quoted(one)}; similar names are {near}; of the embedding pass "
                "'residual_pre' with layers=[0]."
            )
        if IN_LAYER[one].fixed:
            raise ValueError(f"{one} can be looked at, not patched; pass attention.sink_mass or attention.pattern instead.")
    return sites


def indices(name: str, values: object, count: int, instead: str = "None for all") -> tuple[int, ...]:
    """Different ones of so many; negative ones count from the end."""
    try:
        found = np.asarray(list(values))
    except Exception:  # no iterable, or a ragged one
        found = np.asarray(None)
    if found.dtype.kind not in "iu" or found.ndim != 1 or (found < -count).any() or (found >= count).any():
        raise ValueError(f"{name} must be whole numbers from {-count} to {count - 1}; got {quoted(values, 60)}; pass {instead}.")
    found = tuple(int(one) % count for one in found)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{name} must be one at least, each once; got {quoted(values, 60)}; pass {instead}.")
    return found


def _heads(config: Config, sites: tuple[str, ...]) -> int:
    """Heads of sites that have some, the same number each."""
    counts = {"N": config.num_attention_heads, "K": config.num_key_value_heads}
    found = []
    for site in sites:
        letters = IN_LAYER[site].shape.strip("[]").split(", ")
        if letters[2] not in counts:
            having = ", ".join(name for name, one in IN_LAYER.items() if one.shape.split(", ")[2].strip("]") in counts and not one.fixed)
            raise ValueError(f"{site} has no heads; by='head' takes {having}; pass one of these, or by='position'.")
        found.append(counts[letters[2]])
    if len(set(found)) > 1:
        raise ValueError(f"sites of a grid by head must have as many heads; got {found} of {', '.join(sites)}; make a grid for each.")
    return found[0]
