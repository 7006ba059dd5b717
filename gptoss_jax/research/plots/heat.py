"""Heat maps: layers, heads, experts or texts by tokens, heads or experts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gptoss_jax.quoting import quoted, said
from gptoss_jax.research.plots import canvas
from gptoss_jax.research.plots.texts import short, token_texts
from gptoss_jax.tokenizer import Tokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis


def plot_logit_lens(
    logits: np.ndarray,
    tokenizer: Tokenizer | None,
    *,
    tokens: Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """What each layer would say next at each position: its most probable token, coloured by the token's probability.

    Args:
      logits: [layers, T, V] float32, one row of `lenses.logit_lens`.
      tokens: the T tokens that were read, below the columns.
      layers: a name for each of the layers; None numbers them.
    """
    logits = _checked("logits", logits, 3, "[layers, T, V]; take one row of the batch, logits[:, 0]")
    best = logits.argmax(-1)
    probability = 1 / np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)
    ax = _heat(ax, probability, "probability", cmap="Blues", vmax=1, wide=0.44)
    for (layer, place), token in np.ndenumerate(best):
        [text] = token_texts([token], tokenizer)
        text = short(text.removeprefix("<|").removesuffix("|>"), 7)
        colour = "white" if probability[layer, place] > 0.6 else "black"
        ax.text(place, layer, text, ha="center", va="center", color=colour, fontsize=7, parse_math=False)
    _number(ax.yaxis, "layer", len(logits))
    if layers is not None:
        ax.set_yticks(range(len(logits)), layers)
    _name_tokens(ax, tokens, tokenizer, logits.shape[1])
    return ax


def plot_expert_load(load: np.ndarray, *, ax: "Axes | None" = None) -> "Axes":
    """Share of the tokens that went to each expert, layers by experts.

    Args:
      load: [L, E], of `lenses.expert_load`.
    """
    load = _checked("load", load, 2, "[L, E], of lenses.expert_load")
    return _by_layer(ax, load, "share of tokens", "expert")


def plot_token_experts(
    experts: np.ndarray,
    gates: np.ndarray,
    num_experts: int,
    *,
    tokens: Sequence[int] | None = None,
    tokenizer: Tokenizer | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Which experts each token went to: one stripe for each choice in each layer, in the expert's colour, as opaque as its gate.

    Args:
      experts: [L, T, A] integers, one row of `layers_of(values, "moe.experts")`. E or more is left white.
      gates: [L, T, A] float32, of "moe.gates".
      tokens, tokenizer: names for the columns.
    """
    experts = _checked("experts", experts, 3, "[L, T, A]; take one row of the batch, experts[:, 0]")
    gates = np.asarray(gates)
    L, T, A = experts.shape
    if gates.shape != experts.shape:
        raise ValueError(f"gates must be [L, T, A] as experts, {experts.shape}; got {gates.shape}; capture both in one call.")
    stripes = lambda x: np.moveaxis(x, 2, 1).reshape(L * A, T)
    ids = np.ma.masked_greater_equal(stripes(experts), num_experts)
    ax = _heat(ax, ids, "expert", cmap=_expert_colours(num_experts), vmin=-0.5, vmax=num_experts - 0.5, alpha=stripes(gates))
    if num_experts <= 20:
        ax.images[-1].colorbar.set_ticks(range(num_experts))
    for layer in range(1, L):
        ax.axhline(layer * A - 0.5, color="white", linewidth=2)
    ax.set_yticks([layer * A + (A - 1) / 2 for layer in range(L)], range(L))
    ax.set_ylabel("layer")
    _name_tokens(ax, tokens, tokenizer, T)
    return ax


def plot_sink_mass(mass: np.ndarray, *, ax: "Axes | None" = None) -> "Axes":
    """Share of attention that goes to each head's sink, layers by heads.

    Args:
      mass: [L, N], of `lenses.sink_mass_by_head`.
    """
    mass = _checked("mass", mass, 2, "[L, N], of lenses.sink_mass_by_head")
    return _by_layer(ax, mass, "mass of the sink", "head")


def plot_attention(
    pattern: np.ndarray,
    texts: Sequence[str] | None = None,
    *,
    head: int | None = None,
    vmax: float | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """How much each query (row) attends to each key (column). A row adds up to 1 less what the sink takes.

    Args:
      pattern: [T, N, S] float32, one row of "attention.pattern".
      texts: of the T = S tokens, see `token_texts`.
      head: None for the mean of all heads.
      vmax: the weight from which on the colour is full; None for the greatest. A small one shows small weights.
    """
    pattern = _checked("pattern", pattern, 3, "[T, N, S]; take one row of the batch, pattern[0]")
    one = pattern.mean(1) if head is None else pattern[:, head]
    ax = _heat(ax, one, "weight", cmap="Blues", vmax=vmax, tall=0.14, wide=0.14)
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    ax.set_title("mean of the heads" if head is None else f"head {head}", fontsize=9)
    if texts is not None:
        _label(ax.xaxis, texts, 6, rotation=90)
        _label(ax.yaxis, texts, 6)
    return ax


def plot_patching(
    effects: np.ndarray,
    tokenizer: Tokenizer | None = None,
    *,
    tokens: Sequence[int] | None = None,
    columns: str = "position",
    rows: Sequence[str] | None = None,
    most: float | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """What patches did, layers by positions or by heads: blue towards the other run, red away from it, white where nothing changed.

    Args:
      effects: [layers, columns] float32, such as `patching.Effects.normalised`; NaN is left blank.
      tokens: of the columns, where they are positions.
      columns: what they are without tokens, such as "head".
      rows: a name for each row; None numbers them as layers.
      most: the effect from which on the colour is full; None for 1, or the greatest where it is more.
    """
    effects = _checked("effects", effects, 2, "[layers, columns], of one site; take effects.normalised, or one of its sites")
    if not effects.size:
        raise ValueError(f"effects must have a layer and a column; got {effects.shape}; pass patching.Effects.normalised.")
    if rows is not None and len(rows) != len(effects):
        raise ValueError(f"rows must be one name for each of the {len(effects)} rows; got {len(rows)}.")
    if most is not None and not 0 < most < np.inf:
        raise ValueError(f"most must be an effect above 0; got {quoted(most, 40)}; leave it out for 1.")
    if most is None:
        most = max(1.0, float(np.max(np.abs(effects), where=np.isfinite(effects), initial=0)))
    ax = _heat(ax, np.ma.masked_invalid(effects), "effect", cmap="RdBu", vmin=-most, vmax=most, wide=0.24)
    _number(ax.yaxis, "layer", len(effects))
    if rows is not None:
        ax.set_ylabel("")
        _label(ax.yaxis, [str(row) for row in rows], 8)
    if tokens is None:
        _number(ax.xaxis, columns, effects.shape[1])
    else:
        _name_tokens(ax, tokens, tokenizer, effects.shape[1])
    return ax


def _checked(name: str, values, ndim: int, shape: str) -> np.ndarray:
    try:
        values = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} must be {shape}; got {quoted(values, 60)} ({said(error)}).") from error
    if values.ndim != ndim:
        raise ValueError(f"{name} must be {shape}; got {values.shape}.")
    if not np.can_cast(values.dtype, np.float64, "same_kind"):
        raise ValueError(f"{name} must be real numbers {shape}; got {values.dtype}.")
    return values


def _expert_colours(count: int):
    """A colour for each expert: ones that are told apart as long as there are such."""
    from matplotlib.colors import ListedColormap

    get = canvas.pyplot().get_cmap
    return ListedColormap(get("tab10" if count <= 10 else "tab20").colors[:count]) if count <= 20 else get("turbo", count)


def _heat(ax: "Axes | None", values: np.ndarray, meaning: str, *, tall: float = 0.3, wide: float = 0.18, **options) -> "Axes":
    """An image of values [rows, columns] with its colour bar; `tall` and `wide` are inches of a cell where no `ax` is given."""
    rows, columns = values.shape
    if ax is None:
        ax = canvas.axes(min(16, 2.4 + wide * columns), min(12, 1.3 + tall * rows))
    image = ax.imshow(values, aspect="auto", interpolation="nearest", **({"vmin": 0, "cmap": "viridis"} | options))
    ax.figure.colorbar(image, ax=ax, label=meaning)
    for axis in (ax.xaxis, ax.yaxis):
        axis.get_major_locator().set_params(integer=True)
    return ax


def _by_layer(ax: "Axes | None", shares: np.ndarray, meaning: str, columns: str) -> "Axes":
    """Shares from 0 to 1, layers by columns."""
    ax = _heat(ax, shares, meaning, vmax=1)
    _number(ax.yaxis, "layer", len(shares))
    _number(ax.xaxis, columns, shares.shape[1])
    return ax


def _number(axis: "Axis", what: str, count: int) -> None:
    if count <= 16:  # otherwise not every one
        axis.set_ticks(range(count))
    axis.set_label_text(what)


def _name_tokens(ax: "Axes", tokens: Sequence[int] | None, tokenizer: Tokenizer | None, count: int) -> None:
    """Names of the columns, which are tokens."""
    if tokens is None:
        ax.set_xlabel("position")
        return
    if len(tokens) != count:
        raise ValueError(f"tokens must be one for each of the {count} columns; got {len(tokens)}.")
    _label(ax.xaxis, token_texts(tokens, tokenizer), 7, rotation=90)


def _label(axis: "Axis", texts: Sequence[str], size: int, **options) -> None:
    axis.set_ticks(range(len(texts)), [short(text, 16) for text in texts], fontsize=size, parse_math=False, **options)
